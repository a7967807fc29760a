"""Every error as application/problem+json (RFC 9457), with the request's id."""

import errno
import json
import re
import traceback
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi_problem.handler import new_exception_handler
from rfc9457 import Problem, StatusProblem
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from app.api.conditional import Conditional
from app.api.edge import Edge
from app.api.gate import Gate
from app.deployment import Deployment
from app.errors import LetheError, StorageExhausted, Unavailable
from app.privacy.sealing import KeyringUnusable
from app.storage import StorageFull

log = structlog.get_logger()
TYPE = "urn:lethe:problem:{type}"
_CODES = {400: "not-json", 404: "not-found", 405: "method-not-allowed", 413: "too-large"}
_FIELD = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")


def install(app: FastAPI, lethe: Deployment) -> None:
    """Expected errors are answered beside their route; the gate's, faults and failing dependencies at the edge."""
    handler = new_exception_handler(
        handlers={
            OSError: _of_storage,
            OperationalError: _of_database,
            InterfaceError: _of_database,
            PoolTimeout: _of_database,
        },
        http_exception_handler=_http,
        request_validation_handler=_invalid,
        unhandled_wrappers={"default": Unexpected},
        pre_hooks=[_log_fault],
        post_hooks=[_with_request_id],
        documentation_uri_template=TYPE,
    )
    app.state.refusal = handler
    for kind in (Problem, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, handler)
    app.add_middleware(Conditional)
    app.add_middleware(Gate, lethe=lethe)
    app.add_middleware(Edge, answer=handler, lethe=lethe)


def document_of(request: Request, error: Exception) -> dict[str, Any]:
    """The problem document that an exception would be answered with, for a part of an answer."""
    document: dict[str, Any] = json.loads(request.app.state.refusal(request, error).body)
    return document


def only_post() -> None:
    """Other verbs where the path would else be taken for an id."""
    raise HTTPException(405, "Method Not Allowed", {"Allow": "POST"})


def _invalid(handler: Any, request: Request, error: RequestValidationError) -> Problem:
    """Names field and rule; never repeats the value, which may be personal data."""
    found = error.errors()
    if found[0]["loc"] == ("body",) and "json" not in request.headers.get("content-type", ""):
        rule = {"field": "Content-Type", "rule": "not application/json", "remedy": "Send JSON and say so."}
        return _problem("The body must be application/json.", "unsupported-media-type", 415, [rule])
    if any(item["type"] == "json_invalid" for item in found):
        return _problem("The body is not JSON.", "not-json", 400, [_NOT_JSON])
    errors = [
        {
            "field": ".".join(map(_shown, item["loc"])),
            "rule": item["msg"].removeprefix("Value error, "),
            "remedy": "See /docs for this route.",
        }
        for item in found[:100]
    ]
    return _problem(f"{errors[0]['field']}: {errors[0]['rule']}", "invalid-input", 422, errors)


_NOT_JSON = {"field": "body", "rule": "not JSON", "remedy": "Send a JSON document."}


def _shown(part: object) -> str:
    """A name in the input as a problem may repeat it: what cannot be a field's name may be personal data."""
    return str(part) if _FIELD.fullmatch(str(part)) else "(unnamed)"


def _http(handler: Any, request: Request, error: HTTPException) -> Problem:
    """Starlette's own errors, and as what FastAPI raises ours of a body on its way."""
    if isinstance(error.__cause__, LetheError):
        return error.__cause__
    headers = dict(error.headers) if error.headers else None
    if error.status_code == 400:
        return _problem("The body is not JSON.", "not-json", 400, [_NOT_JSON])
    if error.status_code == 405 and headers:
        headers["Allow"] = _allowed(request, headers.get("Allow", ""))
    code = _CODES.get(error.status_code, "http-error")
    return Problem(str(error.detail), type_=code, detail=str(error.detail), status=error.status_code, headers=headers)


def _allowed(request: Request, one: str) -> str:
    """Every documented method of the path: the router names those of one of its routes alone, and of those that refuse."""
    route = request.scope.get("route")
    documented = request.app.openapi()["paths"].get(getattr(route, "path_format", ""), {})
    return ", ".join(sorted(verb.upper() for verb in documented)) or one


def _of_storage(handler: Any, request: Request, error: OSError) -> Problem:
    """A full disk, wherever it was met: blobs, keys or scratch; or a master key that is not there."""
    if isinstance(error, KeyringUnusable):
        return Unavailable("The keyring")
    full = isinstance(error, StorageFull) or error.errno in (errno.ENOSPC, errno.EDQUOT)
    return StorageExhausted() if full else Unexpected("")


def _of_database(handler: Any, request: Request, error: Exception) -> Problem:
    origin = getattr(error, "orig", None)
    full = getattr(origin, "sqlite_errorname", "") == "SQLITE_FULL" or getattr(origin, "sqlstate", "") == "53100"
    return StorageExhausted() if full else Unavailable("The database")


class Unexpected(StatusProblem):
    """What a fault of ours looks like from outside: nothing of the exception, which may hold personal data."""

    type_ = "internal-error"
    title = "Something went wrong"
    status = 500

    def __init__(self, message: str) -> None:
        super().__init__("The server's log has more under this request id.")


def _log_fault(request: Request, error: Exception) -> None:
    if isinstance(error, Problem | HTTPException | RequestValidationError):
        return
    frame = traceback.extract_tb(error.__traceback__)[-1]
    route = getattr(request.scope.get("route"), "path", None)
    log.error("http.fault", error=type(error).__name__, where=f"{frame.filename}:{frame.lineno}", route=route)


def _problem(detail: str, code: str, status: int, errors: list[dict[str, str]]) -> Problem:
    return Problem("Refused", type_=code, detail=detail, status=status, errors=errors)


def _with_request_id(content: dict[str, Any], request: Request, response: Any) -> tuple[dict[str, Any], Any]:
    content["request_id"] = request.scope.get("state", {}).get("request_id")
    response.body = response.render(content)
    return content, response
