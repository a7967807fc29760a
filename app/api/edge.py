"""Around every route: the request's id, headers for safety, limits on what is read, and the last resort for a fault of ours.

It stands where Starlette would raise a fault on to the server, whose log would quote the exception; an exception's
text may hold personal data, so this is as far as it comes.
"""

import uuid
from collections.abc import Callable
from contextlib import ExitStack

import structlog
from anyio import current_time
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.bodies import Bodies
from app.deployment import Deployment
from app.errors import Refused, TooLarge
from app.rate_limits import Budget

JSON_BYTES = 64 << 20
LARGE = 1 << 20  # a longer one needs one of the places that there are for large bodies
KEYLESS_BYTES = 64 << 10  # of a call whose key is missing or wrong: a body is read before the route refuses it
SAFETY = {  # unless the route says otherwise: answers may tell about people, and none is a page to show in another
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
HSTS = {"Strict-Transport-Security": "max-age=31536000"}
STREAMED = ("/v1/datasets", "/v1/uploads")  # their bodies go to a file in pieces, under limits of their own

log = structlog.get_logger()


class Edge:
    """`answer` makes a problem document of an exception."""

    def __init__(self, app: ASGIApp, answer: Callable[[Request, Exception], Response], lethe: Deployment) -> None:
        self.app, self.answer, self._bodies = app, answer, lethe.bodies
        self._safety = SAFETY | (HSTS if lethe.settings.https else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id, started = uuid.uuid4().hex, False
        scope.setdefault("state", {})["request_id"] = request_id

        async def with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                budget: Budget | None = scope["state"].get("budget")
                headers.update(budget.headers if budget else {})
                for name, value in self._safety.items():
                    headers.setdefault(name, value)
            await send(message)

        with structlog.contextvars.bound_contextvars(http=request_id), ExitStack() as held:
            try:
                _refuse_address(scope)
                await self.app(scope, _limited(scope, receive, self._bodies, held), with_id)
            except ClientDisconnect:
                log.info("http.client_gone")
            except Exception as error:  # noqa: BLE001  (answered, logged by name, and never quoted)
                response = self.answer(Request(scope), error)
                if not started:  # else the connection is cut, which tells the client that the body is not whole
                    await response(scope, receive, with_id)


def _refuse_address(scope: Scope) -> None:
    """Postgres stores no NUL, and no name or id has one."""
    for where, found in (("path", "\0" in scope["path"]), ("query", b"%00" in scope.get("query_string", b""))):
        if found:
            raise Refused("control-character", where, "It must not contain the character NUL.", "Remove it.", 400)


def _limited(scope: Scope, receive: Receive, bodies: Bodies, held: ExitStack) -> Receive:
    """`receive`, which fails as soon as a body that is held in memory is too long (413), takes too long (408) or is a large one
    too many (503)."""
    if scope["path"] in STREAMED:
        return receive
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if declared.isdigit() and len(declared) < 20 and int(declared) > JSON_BYTES:
        raise TooLarge("body", JSON_BYTES)
    read, whole, until = 0, False, current_time() + bodies.seconds

    async def counted() -> Message:
        nonlocal read, whole
        if whole:  # what comes now is that the client has gone
            return await receive()
        with bodies.in_time(max(0.0, until - current_time())):
            message = await receive()
        before, read = read, read + len(message.get("body", b""))
        whole = not message.get("more_body", False)
        most = JSON_BYTES if scope["state"].get("key") else KEYLESS_BYTES  # the gate has looked by now
        if read > most:
            raise HTTPException(413, f"The body is larger than {most} bytes.")
        if before <= LARGE < read:
            held.enter_context(bodies.slot())
        return message

    return counted
