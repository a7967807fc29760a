"""/healthz, /readyz and /v1/catalog: what a load balancer and a newcomer ask first."""

from typing import Any

from fastapi import APIRouter, Depends
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from app import keyring_status, migration
from app.api.dependencies import Lethe, refuse_unknown_parameters
from app.api.openapi import refusals
from app.catalog_view import catalogue
from app.errors import Unavailable
from app.fingerprint_keys import Unusable

router = APIRouter()


@router.get("/healthz", tags=["health"])
def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz", tags=["health"], responses=refusals(503))
def readyz(lethe: Lethe) -> dict[str, Any]:
    """The database answers and has the newest schema, and the keys that the service needs are there; else 503."""
    try:
        with lethe.store.read() as session:
            session.execute(text("SELECT 1"))
        present = migration.present(lethe.store)
    except SQLAlchemyError:
        raise Unavailable("The database") from None
    if present != migration.newest():
        raise Unavailable("The database's schema is old: run `lethe migrate`. It")
    if broken := keyring_status.broken(lethe):
        raise Unusable(broken)
    return {"status": "ready", "schema": present}


@router.get("/v1/catalog", tags=["catalog"], dependencies=[Depends(refuse_unknown_parameters)], responses=refusals(422))
def get_catalog() -> dict[str, Any]:
    """Methods with their hyper-parameters, families and metrics: what a request may name."""
    return catalogue()
