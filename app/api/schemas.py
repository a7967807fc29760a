"""/v1/schemas: the shapes that are promised to programs outside, as JSON schema."""

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse

from app import report
from app.api.dependencies import refuse_unknown_parameters
from app.api.openapi import refusals

router = APIRouter(prefix="/v1/schemas", tags=["catalog"])


class SchemaResponse(JSONResponse):
    media_type = "application/schema+json"


@router.get(
    "/report",
    response_class=SchemaResponse,
    dependencies=[Depends(refuse_unknown_parameters)],
    responses=refusals(422),
)
def get_report_schema() -> SchemaResponse:
    """The JSON schema of a report (draft 2020-12). Every report meets it; a reader must bear fields that it does not know."""
    return SchemaResponse(report.schema())
