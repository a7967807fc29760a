"""The OpenAPI document: one problem schema, and on each operation the refusals that can occur there."""

from typing import Any

from fastapi import FastAPI

from app.api.gate import UNCOUNTED

_WHEN = {
    400: "The body is not JSON, or the path or the query has the character NUL.",
    401: "No key, or one that is unknown, expired or revoked.",
    403: "The key lacks the scope that the operation needs; or the model or set is another key's; or the key made the request "
    "that it would decide on.",
    404: "There is no such thing, or the key may not see it.",
    408: "The body is not whole in time: it is held in memory until it is.",
    409: "The present state does not allow it.",
    410: "It is erased for ever: the weights of a retired version, or a picture that showed images. The report stays.",
    412: "If-Match names another version than the present one, or If-None-Match: * one that exists.",
    413: "The body, or what it unpacks to, is larger than a limit.",
    415: "The body has another media type than the operation reads.",
    416: "The range begins beyond the end of the file; Content-Range tells the size.",
    422: "The input breaks a rule: `errors` names field, rule and remedy. Nothing was stored.",
    428: "If-Match is missing; or, for what is new, If-None-Match: *.",
    429: "More calls than the key, or an address without a valid key, may make; Retry-After and RateLimit tell when to go on.",
    503: "A dependency does not answer, or there is no room for another large body; try again after Retry-After.",
    507: "There is no room for what was sent. Nothing was stored.",
}
_TITLES = {
    400: ("Refused", "not-json"),
    401: ("No valid key", "unauthorized"),
    403: ("Not allowed", "missing-scope"),
    404: ("Not found", "not-found"),
    408: ("Refused", "body-time"),
    409: ("Conflict", "conflict"),
    410: ("Gone", "version-retired"),
    412: ("Changed meanwhile", "precondition-failed"),
    413: ("Too large", "too-large"),
    415: ("Unsupported media type", "unsupported-media-type"),
    416: ("Range beyond the file", "range-not-satisfiable"),
    422: ("Refused", "out-of-bounds"),
    428: ("Refused", "precondition-required"),
    429: ("Too many calls", "too-many-requests"),
    503: ("Not now", "unavailable"),
    507: ("No room", "storage-full"),
}
PROBLEM: dict[str, Any] = {
    "title": "Problem",
    "type": "object",
    "description": "RFC 9457. Programs tell problems apart by `type`, which stays; people read `detail`.",
    "required": ["type", "title", "status", "detail", "request_id"],
    "properties": {
        "type": {
            "type": "string",
            "description": "`urn:lethe:problem:<code>`; stable.",
            "examples": ["urn:lethe:problem:not-found"],
        },
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string"},
        "request_id": {"type": "string", "description": "Also in the header X-Request-Id and in the server's log."},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "rule", "remedy"],
                "properties": {
                    "field": {
                        "type": "string",
                        "description": "Where: a field's path, a parameter, a header or a file.",
                    },
                    "rule": {"type": "string", "description": "Which rule it breaks. Never the value that was sent."},
                    "remedy": {"type": "string", "description": "What to do."},
                },
            },
        },
    },
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: what can occur there beyond what `describe` finds by itself."""
    return {status: _response(status) for status in statuses}


def describe(app: FastAPI) -> None:
    """Make `app.openapi` add the schema, and 400, 401, 403, 404, 408, 415, 422, 429 and 503 to the operations where they occur."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        document = plain()
        schemas = document["components"]["schemas"]
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        schemas["Problem"] = PROBLEM
        for path, operations in document["paths"].items():
            for operation in operations.values():
                if "application/json" in operation["responses"].get("422", {}).get("content", {}):
                    del operation["responses"][
                        "422"
                    ]  # FastAPI's own: it has another shape, and texts cannot be invalid
                _make_conditional(operation)
                for status in _found(path, operation):
                    operation["responses"][str(status)] = _response(status)
                operation["responses"] = dict(sorted(operation["responses"].items()))
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _make_conditional(operation: dict[str, Any]) -> None:
    """JSON is answered with an ETag; only GET has JSON under 200 and no body to send."""
    content = operation["responses"].get("200", {}).get("content", {})
    if "requestBody" in operation or not any("json" in kind for kind in content):
        return
    operation["responses"]["304"] = {"description": "If-None-Match names the ETag of the answer before."}
    about = "ETag of an answer that you have."
    operation.setdefault("parameters", []).append(
        {"name": "If-None-Match", "in": "header", "required": False, "schema": {"type": "string"}, "description": about}
    )


def _found(path: str, operation: dict[str, Any]) -> list[int]:
    """Which refusals an operation's own description implies."""
    parameters = operation.get("parameters", [])
    body = operation.get("requestBody", {}).get("content", {})
    found = [] if path in UNCOUNTED else [429]
    if operation.get("security"):
        found += [401, 403, 422]  # 422: a parameter that the operation does not know
    if "{" in path:
        found.append(404)
    if body:
        found += [408, 413, 415, 422, 503]
    named = any(parameter["in"] == "query" for parameter in parameters)
    if "application/json" in body or named or "{" in path:
        found.append(400)
    if named:
        found.append(422)
    return found


def _response(status: int) -> dict[str, Any]:
    title, code = _TITLES[status]
    example = {
        "type": f"urn:lethe:problem:{code}",
        "title": title,
        "status": status,
        "detail": _WHEN[status],
        "request_id": "5f0c6a1e0b7d4f3c9a2e8d1b6c4f7a90",
    }
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        "description": _WHEN[status],
        "content": {"application/problem+json": {"schema": schema, "example": example}},
    }
