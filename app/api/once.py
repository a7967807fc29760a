"""Idempotency-Key on a POST: what routes ask for, and how they say that an answer is a repeated one."""

from typing import Annotated

from fastapi import Depends, Header, Request, Response

from app.api.dependencies import Lethe, get_key
from app.errors import Refused
from app.idempotency import UNKEYED, Keyed, Once
from app.records.api_key import ApiKey

KEY = "Idempotency-Key"
ABOUT = (
    "Any text of your own, such as a UUID. The same POST with the same key is done once in 24 hours and answered from what it "
    "made; with another path, query or body the key is refused (422)."
)


def get_once(
    request: Request,
    lethe: Lethe,
    key: Annotated[ApiKey, Depends(get_key)],
    text: Annotated[
        str | None, Header(alias=KEY, min_length=1, max_length=255, pattern=r"^[!-~]+$", description=ABOUT)
    ] = None,
) -> Once:
    if text is None:
        return UNKEYED
    if len(request.headers.getlist(KEY)) > 1:
        raise Refused("invalid-input", KEY, "It came twice.", "Send one.")
    secret = lethe.keyring.named_key("idempotency")
    target = request.url.path.encode() + b"?" + bytes(request.scope["query_string"])
    status = request.scope["route"].status_code or 200
    return Keyed(lethe.store, secret, key.actor, text.removeprefix('"').removesuffix('"'), target, status)


async def get_once_with_body(request: Request, once: Annotated[Once, Depends(get_once)]) -> Once:
    if once is not UNKEYED:
        once.read(await request.body())
    return once


Idempotent = Annotated[Once, Depends(get_once_with_body)]
IdempotentStream = Annotated[Once, Depends(get_once)]  # the route reads the body, and hands each piece to it


def tell(once: Once, response: Response) -> None:
    """A repeated answer says that it is one, with the status of the first."""
    if once.replayed:
        response.status_code = once.replayed.status
        response.headers["Idempotent-Replayed"] = "true"
