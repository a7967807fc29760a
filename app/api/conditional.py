"""A strong ETag on every JSON answer to a GET, and 304 where If-None-Match names it.

The tag is the body's SHA-256 unless the route gave one that If-Match can name. Files have theirs from their route.
"""

import hashlib

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Conditional:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET":
            await self.app(scope, receive, send)
            return
        wanted = Headers(scope=scope).get("if-none-match")
        held: Message | None = None

        async def tagged(message: Message) -> None:
            nonlocal held
            if message["type"] == "http.response.start" and _is_json(message):
                held = message
                return
            if held is not None:
                message = _tag(held, message, wanted)
                await send(held)
                held = None
            await send(message)

        await self.app(scope, receive, tagged)


def names(if_none_match: str, etag: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return tags == ["*"] or etag in tags


def _is_json(start: Message) -> bool:
    return start["status"] == 200 and _media_type(start).endswith("json")


def _media_type(start: Message) -> str:
    return Headers(scope=start).get("content-type", "").partition(";")[0].strip()


def _tag(start: Message, body: Message, wanted: str | None) -> Message:
    """Give the start its tag; the body to send with it, which is empty where the client has it."""
    headers = MutableHeaders(scope=start)
    etag = headers.setdefault("ETag", f'"{hashlib.sha256(body.get("body", b"")).hexdigest()}"')
    if wanted is None or not names(wanted, etag):
        return body
    start["status"] = 304
    for name in ("content-length", "content-type"):
        del headers[name]
    return {"type": "http.response.body", "body": b""}
