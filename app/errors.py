"""Every error that a client or an operator can meet, as one tree.

    LetheError                        a problem document (RFC 9457): type, title, status, detail, errors[]
    |- Refused               422     input that breaks a rule: names the field, the rule and the remedy
    |- NotFound              404     no such thing, or not yours
    |- Unauthorized          401     no key, or a key that is unknown, expired or revoked
    |- Forbidden             403     a good key without the scope
    |- SameKey               403     who asked may not decide
    |- NotOwner              403     another key's, which everybody may read and use, and its owner change
    |- Conflict              409     the thing's present state does not allow it
    |- Gone                  410     it was here, and is erased for ever
    |- PreconditionFailed    412     If-Match or If-None-Match does not hold
    |- TooLarge              413     more bytes than a limit allows
    |- UnsupportedMedia      415     a body of another type than the route reads
    |- RangeNotSatisfiable   416     a byte range beyond the file
    |- TooManyRequests       429     more calls than the key or the address may make
    |- StorageExhausted      507     no room for what was sent; nothing was kept
    |- Unavailable           503     a dependency is away; try again
    |- Busy                  503     as many large bodies in memory as there may be; try again
    JobError                          why a job ended: a code, and whether another attempt may help
    |- LeaseLost                      another worker has the job; this one must not write
    |- Stopped                        cancelled, or asked to drain

No message carries a forget set's bytes, a concept or a file name of a forget set.
"""

from collections.abc import Mapping

from rfc9457 import Problem


class LetheError(Problem):
    """Base of all that is answered as a problem document. `code` becomes the last part of `type`."""

    status_of_class = 500
    title_of_class = "Something went wrong"

    def __init__(
        self,
        detail: str,
        *,
        code: str,
        errors: list[dict[str, str]] | None = None,
        headers: Mapping[str, str] | None = None,
        status: int | None = None,
    ) -> None:
        extras: dict[str, object] = {"errors": errors} if errors else {}
        super().__init__(
            self.title_of_class,
            type_=code,
            detail=detail,
            status=status or self.status_of_class,
            headers=dict(headers) if headers else None,
            **extras,
        )
        self.code = code

    def __str__(self) -> str:
        return self.detail or self.title


class Refused(LetheError):
    """Input that breaks a rule: `field` names what, `rule` says which, `remedy` says what to do."""

    status_of_class = 422
    title_of_class = "Refused"

    def __init__(self, code: str, field: str, rule: str, remedy: str, status: int = 422) -> None:
        super().__init__(
            f"{field}: {rule} {remedy}",
            code=code,
            errors=[{"field": field, "rule": rule, "remedy": remedy}],
            status=status,
        )
        self.field, self.rule, self.remedy = field, rule, remedy


class NotFound(LetheError):
    status_of_class = 404
    title_of_class = "Not found"

    def __init__(self, what: str) -> None:
        super().__init__(f"There is no such {what}, or your key may not see it.", code="not-found")


class Unauthorized(LetheError):
    status_of_class = 401
    title_of_class = "No valid key"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, code="unauthorized", headers={"WWW-Authenticate": 'Bearer realm="lethe"'})


class Forbidden(LetheError):
    status_of_class = 403
    title_of_class = "Not allowed"

    def __init__(self, scope: str) -> None:
        super().__init__(f"This needs a key with the scope {scope}.", code="missing-scope")


class SameKey(LetheError):
    status_of_class = 403
    title_of_class = "Not allowed"

    def __init__(self) -> None:
        super().__init__(
            "The key that made a request may not decide on it: another one must.", code="separation-of-duties"
        )


class NotOwner(LetheError):
    status_of_class = 403
    title_of_class = "Not allowed"

    def __init__(self, what: str) -> None:
        super().__init__(
            f"This {what} is another key's. Ask its owner, or use a key with the scope models:admin.", code="not-owner"
        )


class Conflict(LetheError):
    status_of_class = 409
    title_of_class = "Conflict"

    def __init__(self, detail: str, code: str = "conflict") -> None:
        super().__init__(detail, code=code)


class Gone(LetheError):
    status_of_class = 410
    title_of_class = "Gone"

    def __init__(self, detail: str, code: str) -> None:
        super().__init__(detail, code=code)


class PreconditionFailed(LetheError):
    status_of_class = 412
    title_of_class = "Changed meanwhile"

    def __init__(self, detail: str = "If-Match does not name the present version: read it again.") -> None:
        super().__init__(detail, code="precondition-failed")


class TooLarge(LetheError):
    status_of_class = 413
    title_of_class = "Too large"

    def __init__(self, field: str, limit: int) -> None:
        super().__init__(
            f"{field} is larger than {limit} bytes.",
            code="too-large",
            errors=[{"field": field, "rule": f"at most {limit} bytes", "remedy": "send less, or raise the limit"}],
        )


class UnsupportedMedia(LetheError):
    status_of_class = 415
    title_of_class = "Unsupported media type"

    def __init__(self, allowed: str) -> None:
        super().__init__(f"The body must be {allowed}.", code="unsupported-media-type")


class RangeNotSatisfiable(LetheError):
    status_of_class = 416
    title_of_class = "Range beyond the file"

    def __init__(self, size: int) -> None:
        super().__init__(
            f"The file has {size} bytes.", code="range-not-satisfiable", headers={"Content-Range": f"bytes */{size}"}
        )


class TooManyRequests(LetheError):
    """The edge adds Retry-After and what is left."""

    status_of_class = 429
    title_of_class = "Too many calls"

    def __init__(self, policy: str, quota: int, seconds: int) -> None:
        super().__init__(
            f"This {policy} may make {quota} calls in {seconds} seconds: try again after Retry-After.",
            code="too-many-requests",
        )


class StorageExhausted(LetheError):
    status_of_class = 507
    title_of_class = "No room"

    def __init__(self) -> None:
        super().__init__(
            "The store has no room for this; nothing was kept. Free space and send it again.", code="storage-full"
        )


class Unavailable(LetheError):
    status_of_class = 503
    title_of_class = "Not now"

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} does not answer.", code="unavailable", headers={"Retry-After": "5"})


class Busy(LetheError):
    status_of_class = 503
    title_of_class = "Not now"

    def __init__(self) -> None:
        super().__init__(
            "The server holds as many large bodies as it may (LETHE_LARGE_BODIES): send this again after Retry-After.",
            code="too-many-bodies",
            headers={"Retry-After": "5"},
        )


class JobError(Exception):
    """Why a job ended. `code` is stable; `retriable` says whether the same job may succeed later."""

    def __init__(self, code: str, detail: str, retriable: bool = False) -> None:
        super().__init__(detail)
        self.code, self.detail, self.retriable = code, detail, retriable


class LeaseLost(JobError):
    def __init__(self) -> None:
        super().__init__("lease_lost", "Another worker holds this job now.")


class Stopped(JobError):
    """The job was asked to stop: `code` is cancelled or drained."""

    def __init__(self, code: str) -> None:
        super().__init__(code, f"The job was {code}.")
