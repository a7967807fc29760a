"""/v1/requests/{request_id}/hold and /purge: a legal hold on what a request brought, and the proof that it was purged."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.api.dependencies import Lethe, moment, need
from app.api.openapi import refusals
from app.api.request_schemas import Hold
from app.api.requests import Reader, find, shown_hold
from app.errors import Conflict, NotFound
from app.privacy import proof
from app.records import dataset as datasets
from app.records import legal_hold as legal_holds
from app.records import purge_proof as purge_proofs
from app.records import request as requests
from app.records.api_key import ApiKey
from app.records.base import now
from app.records.legal_hold import Code, LegalHold
from app.records.model import Model

router = APIRouter(prefix="/v1/requests/{request_id}", tags=["requests"])
Holder = Annotated[ApiKey, Depends(need("requests:hold"))]


class HoldIn(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"code": "legal_claims"}]})
    code: Code = Field(description="Why nothing may be purged. There is no free text: it could name the person.")


class Destroyed(BaseModel):
    """A sealed object, as it was before it was deleted."""

    bytes: int
    sha256: str = Field(description="Of the ciphertext: whoever finds a copy can tell that it is this one.")


class Forgotten(BaseModel):
    """Which images the purge was about, told to nobody without the key."""

    count: int = Field(description="Number of samples.")
    leaves: int = Field(description="Number of different images among them.")
    root: str = Field(description="RFC 9162 tree hash over the images' keyed digests, sorted, each once.")
    key: str = Field(description="Name of the key of these digests.")


class Now(BaseModel):
    """Looked up as this was asked: every count is 0, or the purge is not true any more."""

    checked_at: str
    keys_present: int = Field(description="Key files of the request's set and jobs that are there.")
    objects_present: int = Field(description="Sealed objects of the request's set and jobs that are there.")


class PurgeOut(BaseModel):
    """What the history says in `request.purged`, and a fresh look. Purges of before have fewer members: null, or none."""

    request: str
    purged_at: str
    method: str | None = Field(None, description="How keys and sealed objects were destroyed.")
    set: str | None = Field(None, description="Id of the set that was forgotten from; a registered one stays.")
    objects: list[Destroyed] = Field([], description="Sealed objects of an uploaded set: images, and their index.")
    keys: list[str] = Field([], description="SHA-256 of the ids of the keys that were destroyed.")
    samples: Forgotten | None = None
    now: Now


@router.put("/hold", response_model=Hold, responses=refusals(404, 409))
def put_hold(request_id: str, body: HoldIn, lethe: Lethe, key: Holder) -> dict[str, Any] | None:
    """Keep what the request brought and named, and the images and answers of its versions, from being purged, and its model's
    versions from being retired, for as long as this stands. Its job goes on, and its status is told as ever; deleting its data set is refused. 409 when the forget set was purged already, or
    when another key holds the request, or you do for another reason."""
    found = find(lethe, request_id, key)
    with lethe.store.write() as session:
        request = requests.hold(session, found.id)
        _wait_for_retirement(session, request.model_id)
        if request.purged_at is not None or _set_is_gone(session, request):
            raise Conflict("The request's forget set was purged already.", code="forget-set-purged")
        return shown_hold(legal_holds.put(session, request.id, body.code, key.actor))


@router.delete("/hold", status_code=204, responses=refusals(404))
def delete_hold(request_id: str, lethe: Lethe, key: Holder) -> None:
    """Lift the hold. What is overdue by then is purged at the sweeper's next round."""
    found = find(lethe, request_id, key)
    with lethe.store.write() as session:
        requests.hold(session, found.id)
        held = session.get(LegalHold, found.id)
        if held is None:
            raise NotFound("legal hold")
        legal_holds.lift(session, held, key.actor)


@router.get("/purge", response_model=PurgeOut, responses=refusals(404))
def get_purge(request_id: str, lethe: Lethe, key: Reader) -> dict[str, Any]:
    """What proves that the request's forget set was purged, and a look, now, whether its key files and sealed objects are
    absent. 404 until it was purged. The audit has the same in `request.purged`, under its hashes."""
    request = find(lethe, request_id, key)
    if request.purged_at is None:
        raise NotFound("purge")
    with lethe.store.read() as session:
        document = purge_proofs.find(session, request.id) or {}
        present = proof.still_there(session, lethe.keyring, lethe.blobs, request)
        clock = session.scalar(select(now()))
    looked = {"checked_at": moment(clock), **present}
    return {**document, "request": request.id, "purged_at": moment(request.purged_at), "now": looked}


def _wait_for_retirement(session: Session, model_id: str) -> None:
    """One that is being recorded ends first; one that comes later waits, and sees the hold. Whoever only moves an alias, and so
    requests, is in nobody's way."""
    session.get_one(Model, model_id, with_for_update={"read": True, "key_share": True})


def _set_is_gone(session: Session, request: requests.Request) -> bool:
    """Also while its owner deletes it."""
    source = session.get(datasets.Dataset, request.forget_dataset_id) if request.forget_dataset_id else None
    return source is not None and (source.purged_at is not None or source.adopted_by == datasets.WITHDRAWN)
