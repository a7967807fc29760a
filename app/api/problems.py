"""Every error as application/problem+json (RFC 9457), with the request's id."""

import traceback
import uuid
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi_problem.handler import add_exception_handler, new_exception_handler
from rfc9457 import Problem, StatusProblem
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import StorageExhausted
from app.storage import StorageFull

log = structlog.get_logger()
TYPE = "urn:lethe:problem:{type}"


class RequestId:
    """Gives every request an id, in the log and in the answer's X-Request-Id."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        with structlog.contextvars.bound_contextvars(http=request_id):
            await self.app(scope, receive, with_id)


def install(app: FastAPI) -> None:
    handler = new_exception_handler(
        handlers={
            StorageFull: lambda handler, request, error: StorageExhausted(),
        },
        http_exception_handler=_http,
        request_validation_handler=_invalid,
        unhandled_wrappers={"default": Unexpected},
        pre_hooks=[_log_fault],
        post_hooks=[_with_request_id],
        documentation_uri_template=TYPE,
    )
    add_exception_handler(app, handler)


def _invalid(handler: Any, request: Request, error: RequestValidationError) -> Problem:
    """Names field and rule; never repeats the value, which may be personal data."""
    found = error.errors()
    if found[0]["loc"] == ("body",) and "json" not in request.headers.get("content-type", ""):
        rule = {"field": "Content-Type", "rule": "not application/json", "remedy": "Send JSON and say so."}
        return _problem("The body must be application/json.", "unsupported-media-type", 415, [rule])
    if any(item["type"] == "json_invalid" for item in found):
        rule = {"field": "body", "rule": "not JSON", "remedy": "Send a JSON document."}
        return _problem("The body is not JSON.", "not-json", 400, [rule])
    errors = [
        {"field": ".".join(str(part) for part in item["loc"]), "rule": item["msg"], "remedy": "See /docs for this route."}
        for item in found
    ]
    return _problem(f"{errors[0]['field']}: {errors[0]['rule']}", "invalid-input", 422, errors)


def _http(handler: Any, request: Request, error: HTTPException) -> Problem:
    name = {404: "not-found", 405: "method-not-allowed", 416: "range-not-satisfiable"}.get(error.status_code, "http-error")
    headers = dict(error.headers) if error.headers else None
    return Problem(str(error.detail), type_=name, detail=str(error.detail), status=error.status_code, headers=headers)


class Unexpected(StatusProblem):
    """What a fault of ours looks like from outside: nothing of the exception, which may hold personal data."""

    type_ = "internal-error"
    title = "Something went wrong"
    status = 500

    def __init__(self, message: str) -> None:
        super().__init__("The server's log has more under this request id.")


def _log_fault(request: Request, error: Exception) -> None:
    if isinstance(error, Problem | HTTPException | RequestValidationError | StorageFull):
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
