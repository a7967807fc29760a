"""/v1/requests/bulk: up to a hundred deletion requests in one call, each stored or refused by itself."""

from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.api.dependencies import Lethe
from app.api.once import Idempotent, tell
from app.api.openapi import PROBLEM
from app.api.problems import document_of, only_post
from app.api.requests import Poster, RequestIn, RequestOut, find, shown, wish_of
from app.deployment import Deployment
from app.idempotency import Once
from app.queue import ring
from app.records.api_key import ApiKey
from app.submission import submit

router = APIRouter(prefix="/v1/requests/bulk", tags=["requests"])
router.add_api_route("", only_post, methods=["GET", "PUT", "PATCH", "DELETE"], include_in_schema=False)
MOST = 100
STORED = 202  # what a POST of one request answers
Item = Annotated[RequestIn | Any, Field(union_mode="left_to_right")]  # what is no request is that item's problem alone


class BulkIn(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "requests": [
                        {"model": "digits", "forget": {"class_label": "3"}},
                        {"model": "digits", "forget": {"samples": ["7/0012"]}, "method": "salun"},
                    ]
                }
            ]
        },
    )
    requests: list[Item] = Field(
        min_length=1, max_length=MOST, description="Each as the body of POST /v1/requests, and checked by itself."
    )


class BulkResult(BaseModel):
    """What became of one item: a request, or the problem for which it was refused."""

    index: int = Field(description="Of the item in `requests`, from 0.")
    status: int = Field(description="That POST /v1/requests would have answered: 202, or the problem's.")
    replayed: bool = Field(description="Whether an earlier sending under the same Idempotency-Key stored it.")
    request: RequestOut | None
    problem: dict[str, Any] | None = Field(json_schema_extra={"anyOf": [PROBLEM, {"type": "null"}]})


class BulkOut(BaseModel):
    results: list[BulkResult] = Field(description="One for each item, in the order of the items.")


@router.post("", response_model=BulkOut)
def post_requests(
    body: BulkIn,
    request: Request,
    background: BackgroundTasks,
    response: Response,
    lethe: Lethe,
    key: Poster,
    once: Idempotent,
) -> dict[str, Any]:
    """Ask for many deletions at once. 200 says that each item was looked at: read its `status`. Every item is a transaction of
    its own, so one that is refused keeps no other from being stored.

    With an Idempotency-Key each item is stored once: a call that broke off half-way is sent again as it was, answers with what
    is stored, and does the rest. As with a single POST, an item that was refused is tried again."""
    once.begin()
    results = [_result(lethe, at, item, key, once.part(at, STORED), request) for at, item in enumerate(body.requests)]
    stored = [each for each in results if each["request"]]
    made = [each for each in stored if not each["replayed"]]
    if made:
        background.add_task(ring, lethe.celery)
    elif stored:
        tell(once, response)
    return {"results": results}


def _result(lethe: Deployment, at: int, item: Any, key: ApiKey, once: Once, request: Request) -> dict[str, Any]:
    """Whatever goes wrong with an item is answered in its place, as it would be if the item had come alone."""
    try:
        wish = wish_of(_checked(item))
        request_id = once.made(lambda: submit(lethe, wish, key.actor, "requests:admin" in key.scopes, once))
        made = {"status": STORED, "request": shown(lethe, find(lethe, request_id, key), key), "problem": None}
    except Exception as error:  # noqa: BLE001  (a fault of ours becomes a 500 that quotes nothing, and is logged by name)
        problem = document_of(request, error)
        made = {"status": problem["status"], "request": None, "problem": problem}
    return {"index": at, "replayed": once.replayed is not None, **made}


def _checked(item: Any) -> RequestIn:
    if isinstance(item, RequestIn):
        return item
    try:
        return RequestIn.model_validate(item, from_attributes=True)  # as the route of one request does
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False, include_context=False)
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in errors]) from None
