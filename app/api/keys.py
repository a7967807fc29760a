"""/v1/keys: API keys. A key's text is in the answer to its making and to each rotation, and nowhere else."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.api.dependencies import After, Lethe, Limit, Moment, Page, Text, bad_cursor, moment, need, paged
from app.api.once import Idempotent, tell
from app.api.openapi import refusals
from app.deployment import Deployment
from app.errors import Forbidden, NotFound, Refused
from app.idempotency import Once
from app.records import api_key as api_keys
from app.records.api_key import CUSTOM, ROLES, SCOPES, ApiKey

router = APIRouter(prefix="/v1/keys", tags=["keys"])
LONGEST = timedelta(days=36525)
Admin = Annotated[ApiKey, Depends(need("keys:write"))]
Role = Literal["requester", "owner", "verifier", "approver", "auditor", "admin"]


class KeyIn(BaseModel):
    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"name": "erasure script", "role": "requester"}]}
    )
    name: Text = Field(min_length=1, max_length=100)
    role: Role | None = Field(None, description="A named set of scopes. Give it, or scopes.")
    scopes: list[str] | None = Field(
        None, min_length=1, max_length=len(SCOPES), description=f"Of {', '.join(SCOPES)}; none that your key lacks."
    )
    expires_at: Moment | None = Field(None, description="Default: never.")

    @model_validator(mode="after")
    def one_way(self) -> "KeyIn":
        if (self.role is None) == (self.scopes is None):
            raise ValueError("give role or scopes, one of the two")
        if set(self.scopes or []) - set(SCOPES):
            raise ValueError("scopes must be of those that the description names")
        return self


class RotationIn(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"overlap_seconds": 86400}]})
    overlap_seconds: int = Field(
        3600, ge=0, le=30 * 86400, strict=True, description="For how long the secret of before is good, too."
    )


class KeyOut(BaseModel):
    id: str
    name: str
    role: str = Field(description="custom: its scopes were chosen one by one.")
    scopes: list[str]
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    previous_until: str | None = Field(description="Until when the secret before the last rotation is good.")


class NewKeyOut(KeyOut):
    key: str | None = Field(
        description="Shown once: null when the POST is repeated with its Idempotency-Key. If it was lost, rotate the key."
    )


@router.post("", status_code=201, response_model=NewKeyOut)
def make_key(body: KeyIn, response: Response, lethe: Lethe, key: Admin, once: Idempotent) -> dict[str, Any]:
    """Make a key of a role, or with the scopes that it needs. A key never gives scopes that it lacks."""
    scopes = [scope for scope in SCOPES if scope in (ROLES[body.role] if body.role else body.scopes or [])]
    _refuse_more(scopes, key)
    expires = _checked_expiry(body.expires_at)
    text: list[str] = []

    def make() -> str:
        with lethe.store.write() as session:
            once.claim(session)
            made, secret = api_keys.issue(
                session, lethe.pepper, name=body.name, role=body.role or CUSTOM, actor=key.actor, scopes=scopes,
                expires_at=expires,
            )  # fmt: skip
            once.settle(made.id)
        text.append(secret)
        return made.id

    return _shown_once(lethe, once, once.made(make), text, response)


@router.post("/{key_id}/rotate", response_model=NewKeyOut, responses=refusals(409))
def rotate_key(
    key_id: str, body: RotationIn, response: Response, lethe: Lethe, key: Admin, once: Idempotent
) -> dict[str, Any]:
    """Give a key another secret. The present one is good for `overlap_seconds` more, so that its users can change over;
    one before that ends now. Id, scopes and expiry stay. A key rotates none with scopes that it lacks."""
    text: list[str] = []

    def rotate() -> str:
        with lethe.store.write() as session:
            once.claim(session, key_id)
            found = session.get(ApiKey, key_id, with_for_update=True)
            if found is None:
                raise NotFound("key")
            _refuse_more(found.scopes, key)
            text.append(api_keys.rotate(session, lethe.pepper, found, key.actor, body.overlap_seconds))
        return key_id

    return _shown_once(lethe, once, once.made(rotate), text, response)


@router.get("", response_model=Page[KeyOut])
def list_keys(
    request: Request, response: Response, lethe: Lethe, key: Admin, limit: Limit = 50, after: After = None
) -> dict[str, Any]:
    """All keys, oldest first, without their text."""
    with lethe.store.read() as session:
        last = None if after is None else session.get(ApiKey, after)
        if after is not None and last is None:
            raise bad_cursor()
        found = api_keys.page(session, after=last, limit=limit + 1)
    page = paged(found, limit, lambda each: each.id, request, response)
    return {**page, "data": [_out(each) for each in page["data"]]}


@router.delete("/{key_id}", status_code=204)
def revoke_key(key_id: str, lethe: Lethe, key: Admin) -> None:
    """Revoke a key for good, with both of its secrets. A key revokes none with scopes that it lacks."""
    with lethe.store.write() as session:
        found = session.get(ApiKey, key_id)
        if found is None:
            raise NotFound("key")
        _refuse_more(found.scopes, key)
        api_keys.revoke(session, found, key.actor)


def _shown_once(lethe: Deployment, once: Once, key_id: str, text: list[str], response: Response) -> dict[str, Any]:
    tell(once, response)
    with lethe.store.read() as session:
        return {**_out(session.get_one(ApiKey, key_id)), "key": None if once.replayed else text[-1]}


def _refuse_more(scopes: list[str], key: ApiKey) -> None:
    lacking = sorted(set(scopes) - set(key.scopes))
    if lacking:
        raise Forbidden(lacking[0])


def _checked_expiry(expires_at: datetime | None) -> float | None:
    if expires_at is None:
        return None
    if not datetime.now(UTC) < expires_at < datetime.now(UTC) + LONGEST:
        raise Refused(
            "out-of-bounds",
            "expires_at",
            "It must lie in the future, at most 100 years away.",
            "Leave it out for a key without end.",
        )
    return expires_at.timestamp()


def _out(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "role": key.role,
        "scopes": key.scopes,
        "created_at": moment(key.created_at),
        "expires_at": moment(key.expires_at),
        "revoked_at": moment(key.revoked_at),
        "previous_until": moment(key.previous_until),
    }
