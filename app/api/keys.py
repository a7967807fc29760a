"""/v1/keys: API keys. The key's text is in the answer to its making and nowhere else."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from app.api.dependencies import Lethe, Text, moment, need
from app.errors import Forbidden, NotFound, Refused
from app.records import api_key as api_keys
from app.records.api_key import ROLES, ApiKey

router = APIRouter(prefix="/v1/keys", tags=["keys"])
LONGEST = timedelta(days=36525)
Admin = Annotated[ApiKey, Depends(need("keys:write"))]


class KeyIn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Text = Field(min_length=1, max_length=100)
    role: Literal["requester", "admin"]
    expires_at: AwareDatetime | None = Field(None, description="Default: never.")


class KeyOut(BaseModel):
    id: str
    name: str
    role: str
    scopes: list[str]
    created_at: str
    expires_at: str | None
    revoked_at: str | None


class NewKeyOut(KeyOut):
    key: str = Field(description="Shown once.")


@router.post("", status_code=201, response_model=NewKeyOut)
def make_key(body: KeyIn, lethe: Lethe, key: Admin) -> dict[str, Any]:
    """Make a key. A key never gives scopes that it lacks."""
    lacking = sorted(set(ROLES[body.role]) - set(key.scopes))
    if lacking:
        raise Forbidden(lacking[0])
    expires = _checked_expiry(body.expires_at)
    with lethe.store.write() as session:
        made, text = api_keys.issue(
            session, lethe.pepper, name=body.name, role=body.role, actor=key.actor, expires_at=expires
        )
    return {**_out(made), "key": text}


@router.get("", response_model=list[KeyOut])
def list_keys(lethe: Lethe, key: Admin) -> list[dict[str, Any]]:
    """All keys, without their text."""
    with lethe.store.read() as session:
        return [_out(each) for each in api_keys.every(session)]


@router.delete("/{key_id}", status_code=204)
def revoke_key(key_id: str, lethe: Lethe, key: Admin) -> None:
    """Revoke a key for good."""
    with lethe.store.write() as session:
        found = session.get(ApiKey, key_id)
        if found is None:
            raise NotFound("key")
        api_keys.revoke(session, found, key.actor)


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
    }
