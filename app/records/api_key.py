"""Who may call: API keys, of which only a keyed digest is kept.

A key reads `lethe_<id>_<secret>`; the id finds the row, the secret (128 bits) is compared by HMAC in constant time. After a
rotation the secret before lives on for a while, so that nobody who uses it need stop. A role is a name for a set of scopes.
"""

import hashlib
import hmac
import secrets
from typing import Any

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.errors import Conflict
from app.records import history
from app.records.base import Record, now

SCOPES = {
    "datasets:read": "list and read data sets",
    "datasets:write": "upload data sets, and delete one's own",
    "models:read": "list and read models and checkpoints, download released weights",
    "models:write": "register models, change the policy of one's own, move their aliases",
    "models:admin": "what other scopes say of one's own models and registered sets, of everybody's",
    "checkpoints:superseded": "download checkpoints that a completed request superseded, or that are quarantined",
    "checkpoints:override": "release a quarantined version of any model against its verdict",
    "checkpoints:retire": "erase what superseded and quarantined checkpoints of one's own models alone hold, for ever",
    "requests:create": "post deletion requests, and cancel or retry one's own",
    "requests:read": "read requests and jobs",
    "requests:concept": "read the concept of one's own requests, and see what their versions drew; of everybody's with requests:admin",
    "requests:admin": "see and cancel everybody's requests",
    "requests:verify": "say whether who asked is who they say, for anybody's request",
    "requests:approve": "approve and deny requests of others, and extend any",
    "requests:reopen": "roll an alias of any model back, also behind a completed request, which un-forgets someone and reopens it",
    "requests:hold": "put a request under legal hold, so that nothing of it is purged, and lift the hold",
    "audit:read": "read and export the audit of everything, and the moves of aliases",
    "keys:write": "make, rotate and revoke keys that have no scope which this one lacks",
}
ROLES: dict[str, tuple[str, ...]] = {
    "admin": tuple(SCOPES),
    "requester": ("datasets:read", "datasets:write", "models:read", "requests:create", "requests:read"),
    "owner": (
        "datasets:read", "datasets:write", "models:read", "models:write", "checkpoints:superseded", "checkpoints:retire",
    ),
    "approver": (
        "datasets:read", "models:read", "checkpoints:superseded", "requests:read", "requests:concept", "requests:admin",
        "requests:approve", "requests:hold", "audit:read",
    ),
    "verifier": ("requests:verify",),
    "auditor": ("datasets:read", "models:read", "requests:read", "requests:admin", "audit:read"),
}  # fmt: skip
CUSTOM = "custom"  # of a key whose scopes were chosen one by one


class ApiKey(Record):
    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    role: Mapped[str]
    scopes: Mapped[list[Any]]
    digest: Mapped[str]
    previous_digest: Mapped[str | None]  # of the secret before the last rotation, good until previous_until
    previous_until: Mapped[float | None]
    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    revoked_at: Mapped[float | None]

    @property
    def actor(self) -> str:
        return f"key:{self.id}"


def issue(
    session: Session,
    pepper: bytes,
    *,
    name: str,
    role: str,
    actor: str,
    scopes: list[str] | None = None,
    expires_at: float | None = None,
) -> tuple[ApiKey, str]:
    """Make a key of a role, or with these scopes. Returns the record and the key's text, which is never stored."""
    key_id, secret = secrets.token_hex(6), secrets.token_hex(16)
    key = ApiKey(
        id=key_id,
        name=name,
        role=role,
        scopes=list(ROLES[role]) if scopes is None else scopes,
        digest=_digest(pepper, secret),
        created_at=session.scalar(select(now())),
        expires_at=expires_at,
        revoked_at=None,
    )
    session.add(key)
    history.write(session, actor, "key.issued", f"key:{key_id}", details={"role": role, "scopes": key.scopes})
    return key, f"lethe_{key_id}_{secret}"


def rotate(session: Session, pepper: bytes, key: ApiKey, actor: str, overlap_seconds: int) -> str:
    """Give a live key another secret; the present one is good for `overlap_seconds` more, and one before it no longer."""
    clock = session.scalar(select(now())) or 0.0
    if not _alive(key, clock):
        raise Conflict("This key has expired or was revoked: make a new one.", code="key-ended")
    secret = secrets.token_hex(16)
    key.previous_digest, key.digest = key.digest, _digest(pepper, secret)
    key.previous_until = clock + overlap_seconds
    history.write(session, actor, "key.rotated", f"key:{key.id}", details={"overlap_seconds": overlap_seconds})
    return f"lethe_{key.id}_{secret}"


def verify(session: Session, pepper: bytes, text: str) -> ApiKey | None:
    """The live key that `text` is, or None."""
    parts = text.split("_")
    if len(parts) != 3 or parts[0] != "lethe":
        return None
    key = session.get(ApiKey, parts[1])
    digest = _digest(pepper, parts[2])
    if key is None:
        return None
    clock = session.scalar(select(now())) or 0.0
    known = hmac.compare_digest(key.digest, digest)
    if key.previous_digest is not None and (key.previous_until or 0.0) > clock:
        known |= hmac.compare_digest(key.previous_digest, digest)
    return key if known and _alive(key, clock) else None


def revoke(session: Session, key: ApiKey, actor: str) -> None:
    key.revoked_at = key.revoked_at or session.scalar(select(now()))
    history.write(session, actor, "key.revoked", f"key:{key.id}")


def _alive(key: ApiKey, clock: float) -> bool:
    return key.revoked_at is None and (key.expires_at is None or key.expires_at > clock)


def living(session: Session, key_id: str) -> ApiKey | None:
    """The key, unless it has expired or was revoked."""
    key = session.get(ApiKey, key_id)
    return key if key and _alive(key, session.scalar(select(now())) or 0.0) else None


def any_admin(session: Session) -> bool:
    """Whether one lives."""
    lives = ApiKey.revoked_at.is_(None) & (ApiKey.expires_at.is_(None) | (ApiKey.expires_at > now()))
    return session.scalar(select(ApiKey.id).where(ApiKey.role == "admin", lives).limit(1)) is not None


def page(session: Session, *, after: ApiKey | None, limit: int) -> list[ApiKey]:
    """In the order in which they were made."""
    query = select(ApiKey).order_by(ApiKey.created_at, ApiKey.id).limit(limit)
    if after is not None:
        query = query.where(tuple_(ApiKey.created_at, ApiKey.id) > tuple_(after.created_at, after.id))
    return list(session.scalars(query))


def _digest(pepper: bytes, secret: str) -> str:
    return hmac.new(pepper, secret.encode(), hashlib.sha256).hexdigest()
