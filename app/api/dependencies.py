"""What routes ask for: the deployment, the caller's key with a scope, a page."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, Field

from app.deployment import Deployment
from app.errors import Forbidden, NotFound, NotOwner, Refused, Unauthorized
from app.records import model as models
from app.records.api_key import ApiKey
from app.records.model import Model

MODELS_ADMIN = "models:admin"
_bearer = HTTPBearer(auto_error=False, description="An API key: `Authorization: Bearer lethe_...`")


def get_lethe(request: Request) -> Deployment:
    lethe: Deployment = request.app.state.lethe
    return lethe


Lethe = Annotated[Deployment, Depends(get_lethe)]


async def get_key(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> ApiKey:
    """The caller's, as the gate found it."""
    if credentials is None:
        raise Unauthorized("Send your key as `Authorization: Bearer lethe_...`.")
    key: ApiKey | None = request.state.key
    if key is None:
        raise Unauthorized("This key is unknown, expired or revoked.")
    await refuse_unknown_parameters(request)
    return key


async def refuse_unknown_parameters(request: Request) -> None:
    """A misspelt filter must not look like one that found everything."""
    operations = request.app.openapi()["paths"][request.scope["route"].path_format]
    operation = operations.get(request.method.lower()) or operations["get"]  # HEAD is not in the document
    known = {each["name"] for each in operation.get("parameters", []) if each["in"] == "query"}
    for name in request.query_params:
        if name not in known:
            shown = f"query.{name}" if re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name) else "query.(unnamed)"
            remedy = f"Leave it out; known are: {', '.join(sorted(known)) or 'none'}."
            raise Refused("unknown-parameter", shown, "This operation has no such parameter.", remedy)


def need(scope: str) -> Callable[..., ApiKey]:
    """A dependency that gives the caller's key if it has `scope`."""

    def key_with_scope(key: Annotated[ApiKey, Depends(get_key)]) -> ApiKey:
        if scope not in key.scopes:
            raise Forbidden(scope)
        return key

    return key_with_scope


def need_own(scope: str, *others: str) -> Callable[..., ApiKey]:
    """A dependency that gives the caller's key if it has `scope`, and may change the model that the path names: as its owner,
    or by models:admin or one of the `others`."""

    def key_of_owner(name: str, lethe: Lethe, key: Annotated[ApiKey, Depends(need(scope))]) -> ApiKey:
        with lethe.store.read() as session:
            model = models.find(session, name)
        if model is None:
            raise NotFound("model")
        refuse_foreign(model, key, *others)
        return key

    return key_of_owner


def refuse_foreign(model: Model, key: ApiKey, *others: str) -> None:
    if model.owner != key.actor and not {MODELS_ADMIN, *others} & set(key.scopes):
        raise NotOwner("model")


def _storable(text: str) -> str:
    if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("it must be Unicode text without the character NUL")
    return text


Text = Annotated[
    str, AfterValidator(_storable)
]  # JSON may hold what neither UTF-8 nor Postgres has: lone surrogates, NUL


def _dated(text: object) -> object:
    """A number would be read as seconds since 1970, which nobody promised."""
    if not (isinstance(text, str) and re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}", text)):
        raise ValueError("it must be a date and time such as 2027-01-31T00:00:00Z")
    return text


Moment = Annotated[AwareDatetime, BeforeValidator(_dated)]
Item = TypeVar("Item")


class Page(BaseModel, Generic[Item]):
    """One page of a list. `next` is the cursor for `after`; null on the last page."""

    data: list[Item]
    has_more: bool
    next: str | None = Field(description="Pass as `after` to get the next page.")


Limit = Annotated[int, Query(ge=1, le=200, description="Most items on a page.")]
After = Annotated[str | None, Query(description="Cursor: `next` of the page before.", max_length=64)]


def paged(
    items: list[Any], limit: int, cursor: Callable[[Any], str], request: Request, response: Response
) -> dict[str, Any]:
    """`items` were asked for with limit + 1: the extra one says that there is more."""
    shown, more = items[:limit], len(items) > limit
    following = cursor(shown[-1]) if more else None
    if following is not None:
        response.headers["Link"] = f'<{request.url.include_query_params(after=following)}>; rel="next"'
    return {"data": shown, "has_more": more, "next": following}


def bad_cursor() -> Refused:
    return Refused("bad-cursor", "after", "It is not a cursor of this list.", "Pass `next` of the page before.")


def last_seen(after: str | None) -> str | None:
    """A cursor that is an id: what comes after it."""
    if after is not None and not re.fullmatch(r"[a-z]+_[0-9a-f]{28}", after):
        raise bad_cursor()
    return after


def last_deadline(after: str | None) -> tuple[float, str] | None:
    """A cursor that is a deadline and an id: what comes after both."""
    if after is None:
        return None
    found = re.fullmatch(r"(-?[0-9]{1,12}\.[0-9]{1,9})~(req_[0-9a-f]{28})", after)
    if found is None:
        raise bad_cursor()
    return float(found[1]), found[2]


def position(after: str | None) -> int:
    """A cursor that is a number: what comes after it. 0 without one."""
    if after is None:
        return 0
    if not (after.isascii() and after.isdigit() and len(after) < 10):
        raise bad_cursor()
    return int(after)


def moment(seconds: float | None) -> str | None:
    """RFC 3339 in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
