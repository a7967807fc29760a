"""One POST under its Idempotency-Key: done once, and answered again as often as it is sent again.

The key's row is the first statement of the transaction that has the effect. A twin that comes at the same time waits there,
finds the row, undoes what it had prepared, and answers with what the first one made.

A POST of many parts takes its key before the first part, and each part has a row of its own: one that broke off half-way
and is sent again goes on where it stopped.
"""

import copy
import hashlib
import hmac
from collections.abc import Callable

from sqlalchemy.orm import Session

from app.errors import LetheError, Refused
from app.records import idempotency
from app.records.idempotency import IdempotencyKey
from app.records.session import Store


class Repeated(Exception):
    """The same POST has been done: `first` is its row."""

    def __init__(self, first: IdempotencyKey) -> None:
        super().__init__("done before")
        self.first = first


class Once:
    """A POST without a key: it is done each time that it is sent."""

    replayed: IdempotencyKey | None = None

    def read(self, piece: bytes) -> None:
        """A piece of the body; all of it before `made`."""

    def made(self, make: Callable[[], str]) -> str:
        """The id of what `make` makes; or, where this was sent before, of what it made then."""
        return make()

    def claim(self, session: Session, resource: str = "") -> None:
        """First in the transaction that makes `resource`. Raises Repeated when it was made before."""

    def settle(self, resource: str) -> None:
        """Later in the same transaction, where the id of what it makes was not known at its start."""

    def begin(self) -> None:
        """Take the key of a POST of many parts, before the first; all of the body was read. Refused for another body."""

    def part(self, number: int, status: int) -> "Once":
        """One part of such a POST, done once by itself and answered with `status`."""
        return Once()


class Keyed(Once):
    """A POST of `caller` with a key. Of the key and the body only digests are kept, under `secret`."""

    def __init__(self, store: Store, secret: bytes, caller: str, key: str, target: bytes, status: int) -> None:
        self._store, self._secret, self._status = store, secret, status
        self._id = hmac.new(secret, f"key\0{caller}\0{key}".encode(), hashlib.sha256).hexdigest()
        self._digest = hmac.new(secret, b"body\0" + target + b"\0", hashlib.sha256)

    def read(self, piece: bytes) -> None:
        self._digest.update(piece)

    def made(self, make: Callable[[], str]) -> str:
        self.replayed = self._earlier()
        if self.replayed is None:
            try:
                return make()
            except Repeated as repeated:
                self.replayed = self._same(repeated.first)
            except LetheError:  # perhaps because the twin was first: the name is taken, the upload is used up
                self.replayed = self._earlier()
                if self.replayed is None:
                    raise
        return self.replayed.resource

    def claim(self, session: Session, resource: str = "") -> None:
        digest = self._digest.hexdigest()
        self._row = IdempotencyKey(id=self._id, digest=digest, status=self._status, resource=resource)
        first = idempotency.claim(session, self._row)
        if first is not None:
            raise Repeated(first)

    def settle(self, resource: str) -> None:
        self._row.resource = resource

    def begin(self) -> None:
        try:
            with self._store.write() as session:
                self.claim(session)
        except Repeated as repeated:
            self.replayed = self._same(repeated.first)

    def part(self, number: int, status: int) -> "Keyed":
        part = copy.copy(self)
        part._id = hmac.new(self._secret, f"part\0{self._id}\0{number}".encode(), hashlib.sha256).hexdigest()
        part._status, part.replayed = status, None
        return part

    def _earlier(self) -> IdempotencyKey | None:
        with self._store.read() as session:
            found = idempotency.find(session, self._id)
        return self._same(found) if found else None

    def _same(self, first: IdempotencyKey) -> IdempotencyKey:
        if not hmac.compare_digest(first.digest, self._digest.hexdigest()):
            raise Refused(
                "idempotency-key-reused",
                "Idempotency-Key",
                "It came with another path, query or body in the last 24 hours.",
                "Choose a new key for a new POST, or send the old one again byte for byte.",
            )
        return first


UNKEYED = Once()
