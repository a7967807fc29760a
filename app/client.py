"""The Python client: what the CLI, the demo and the tests use to talk to a server.

lethe = Lethe("http://127.0.0.1:8765", key="lethe_...")
request = lethe.request("digits", forget={"class_label": "3"}, concept="three")
done = lethe.wait(request["id"])
lethe.pull("digits", done["checkpoint"], Path("digits-2"))
"""

import hashlib
import io
import os
import tempfile
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import httpx

from app.comparison import compare

ARCHIVE = {"Content-Type": "application/octet-stream"}
PATIENT = httpx.Timeout(60.0, read=3600.0)  # the server unpacks, checks and stores before it answers
DEFAULT_URL = "http://127.0.0.1:8765"
TRIES = 4  # of what may be sent again: GET, and a POST with an Idempotency-Key
ENDED = ("completed", "evaluation_failed", "failed", "cancelled", "denied", "expired", "reopened")


class Problem(Exception):
    """The server refused: the problem document's parts."""

    def __init__(self, document: dict[str, Any]) -> None:
        super().__init__(document.get("detail") or document.get("title") or "the server refused")
        self.document = document
        self.status = int(document.get("status", 0))
        self.type = str(document.get("type", ""))


class Damaged(Exception):
    """What arrived is not what the server said it would be."""


class Lethe:
    """A connection to one server. Use it as a context manager, or call `close`."""

    def __init__(self, url: str | None = None, key: str | None = None, timeout: float = 60.0) -> None:
        address = url or os.environ.get("LETHE_URL", DEFAULT_URL)
        token = key or os.environ.get("LETHE_KEY", "")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.http = httpx.Client(base_url=address, headers=headers, timeout=timeout)

    def __enter__(self) -> "Lethe":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.http.close()

    def call(self, method: str, path: str, **options: Any) -> Any:
        """One request; the answer's JSON. Raises Problem for every refusal. What may be sent again is, when no answer
        came or the server asked to wait."""
        response = self._send(method, path, **options)
        _raise_for(response)
        return response.json() if response.content else None

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        repeatable = method == "GET" or "Idempotency-Key" in options.get("headers", {})
        pause = 0.25
        for _ in range(TRIES - 1 if repeatable else 0):
            try:
                response = self.http.request(method, path, **options)
            except httpx.TransportError:
                time.sleep(pause)
            else:
                if response.status_code not in (429, 503):
                    return response
                time.sleep(_asked_to_wait(response, pause))
            pause *= 2
        return self.http.request(method, path, **options)

    def pages(self, path: str, after: str | None = None, **filters: Any) -> Iterator[dict[str, Any]]:
        """Every item of a list, page by page, from the cursor `after` on."""
        while True:
            given = {name: value for name, value in {**filters, "after": after}.items() if value is not None}
            page = self.call("GET", path, params=given)
            yield from page["data"]
            if not page["has_more"]:
                return
            after = page["next"]

    def upload_dataset(self, source: Path | bytes, role: str, name: str | None = None) -> dict[str, Any]:
        """A folder (packed on the way), an archive, or an archive's bytes."""
        params = {"role": role} | ({"name": name} if name else {})
        with _archive(source) as body:
            answer: dict[str, Any] = self.call(
                "POST", "/v1/datasets", params=params, content=_pieces(body), headers=ARCHIVE, timeout=PATIENT
            )
        return answer

    def register_model(self, source: Path, name: str, family: str, **options: Any) -> dict[str, Any]:
        """Upload a model directory and register it. Options: train, retain, test, judge, evaluators, policy,
        evaluation, retention, ladder, process."""
        with _archive(source) as body:
            upload = self.call("POST", "/v1/uploads", content=_pieces(body), headers=ARCHIVE, timeout=PATIENT)
        given = {key: value for key, value in options.items() if value is not None}
        document = {"name": name, "family": family, "source": {"upload": upload["id"]}, **given}
        answer: dict[str, Any] = self.call("POST", "/v1/models", json=document, timeout=PATIENT)
        return answer

    def request(self, model: str, forget: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        """Post a deletion request; without `forget`, the option concept alone says what to forget. Further options:
        method (auto), recipe, generate, seed, reference, external_id, regime, due_at, ... However often the network fails, it is one
        request."""
        body = _wished(model, forget, options)
        answer: dict[str, Any] = self.call(
            "POST", "/v1/requests", json=body, headers={"Idempotency-Key": str(uuid.uuid4())}
        )
        return answer

    def estimate(self, model: str, forget: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
        """What the same call of `request` would select, change and cost; nothing is stored."""
        answer: dict[str, Any] = self.call("POST", "/v1/requests/estimate", json=_wished(model, forget, options))
        return answer

    def request_bulk(self, bodies: list[Any], idempotency_key: str | None = None) -> list[dict[str, Any]]:
        """Post up to 100 deletion requests, each a body as POST /v1/requests takes it. One result for each, in order: its
        `status`, and the `request` that was stored or the `problem` for which it was refused. Sent again under the same key, what
        was stored is answered again and the rest is done."""
        named = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        answer = self.call("POST", "/v1/requests/bulk", json={"requests": bodies}, headers=named, timeout=PATIENT)
        results: list[dict[str, Any]] = answer["results"]
        return results

    def preview(self, request_id: str) -> bytes:
        """A PNG of a few samples that a request selects; needs the scope requests:concept."""
        response = self.http.get(f"/v1/requests/{request_id}/preview.png")
        _raise_for(response)
        return response.content

    def wait(
        self, request_id: str, on_event: Callable[[dict[str, Any]], None] = lambda event: None, poll: float = 0.3
    ) -> dict[str, Any]:
        """Follow a request to its end, handing each event of its jobs to `on_event`, one job after the other."""
        told, seen = 0, 0  # jobs whose events were all handed over; of the next one, the number of the last event
        while True:
            request: dict[str, Any] = self.call("GET", f"/v1/requests/{request_id}")
            for number, job in enumerate(request["jobs"][told:], start=told):
                told, seen = number, seen if number == told else 0
                for event in self.pages(f"/v1/jobs/{job['id']}/events", after=str(seen)):
                    seen = event["seq"]
                    on_event(event)
            if request["status"] in ENDED:
                return request
            time.sleep(poll)

    def verify(self, request_id: str, outcome: str, method: str, reference: str | None = None) -> dict[str, Any]:
        """Say whether who asked is who they say (outcome verified or rejected), and how it was found out."""
        return self._decide(request_id, "verification", outcome=outcome, method=method, reference=reference)

    def approve(self, request_id: str) -> dict[str, Any]:
        """Let a request be queued that waits for it. Problem 403 with the key that made it."""
        return self._decide(request_id, "approve")

    def deny(self, request_id: str, code: str) -> dict[str, Any]:
        """End a request that waits for a person. Problem 403 with the key that made it."""
        return self._decide(request_id, "deny", code=code)

    def extend(self, request_id: str, code: str, notified_at: str, due_at: str | None = None) -> dict[str, Any]:
        """Take more time, once: why, when the person was told, and until when (default: what the regime allows)."""
        return self._decide(request_id, "extend", code=code, notified_at=notified_at, due_at=due_at)

    def _decide(self, request_id: str, what: str, **said: str | None) -> dict[str, Any]:
        given = {name: value for name, value in said.items() if value is not None}
        options = {"json": given} if given else {}
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        answer: dict[str, Any] = self.call("POST", f"/v1/requests/{request_id}/{what}", headers=headers, **options)
        return answer

    def attack(self, request_id: str, attacks: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Attack the newest version that a request made, without unlearning again: attacks by name, each with its
        parameters. The queued job; see `wait_for_job` and `attacks`."""
        answer: dict[str, Any] = self.call(
            "POST",
            f"/v1/requests/{request_id}/attacks",
            json={"attacks": attacks},
            headers={"Idempotency-Key": str(uuid.uuid4())},
        )
        return answer

    def attacks(self, request_id: str) -> Iterator[dict[str, Any]]:
        """What was asked of a request's versions after the fact, newest first, and what was found."""
        return self.pages(f"/v1/requests/{request_id}/attacks")

    def wait_for_job(
        self, job_id: str, on_event: Callable[[dict[str, Any]], None] = lambda event: None, poll: float = 0.3
    ) -> dict[str, Any]:
        """Follow one job to its end, handing each of its events to `on_event`."""
        seen = 0
        while True:
            job: dict[str, Any] = self.call("GET", f"/v1/jobs/{job_id}")
            for event in self.pages(f"/v1/jobs/{job_id}/events", after=str(seen)):
                seen = event["seq"]
                on_event(event)
            if job["status"] not in ("queued", "running"):
                return job
            time.sleep(poll)

    def override(self, model: str, number: int, code: str, reason: str) -> dict[str, Any]:
        """Release a quarantined version against its verdict. Problem 409 when it cannot be, 412 when it changed meanwhile."""
        path = f"/v1/models/{model}/checkpoints/{number}"
        held = {"If-Match": self._etag(path) or "*"}
        answer: dict[str, Any] = self.call(
            "POST", f"{path}/override", json={"code": code, "reason": reason}, headers=held
        )
        return answer

    def hold(self, request_id: str, code: str) -> dict[str, Any]:
        """Put a request under legal hold: nothing of it is purged until `lift`. Problem 409 when it was purged already,
        or is held by another key or for another reason."""
        held: dict[str, Any] = self.call("PUT", f"/v1/requests/{request_id}/hold", json={"code": code})
        return held

    def lift(self, request_id: str) -> None:
        self.call("DELETE", f"/v1/requests/{request_id}/hold")

    def purge_proof(self, request_id: str) -> dict[str, Any]:
        """What proves that a request's forget set was purged, with a fresh look; Problem 404 until it was."""
        proof: dict[str, Any] = self.call("GET", f"/v1/requests/{request_id}/purge")
        return proof

    def retire(self, model: str, number: int | None, code: str, quarantined: bool = False) -> dict[str, Any]:
        """Erase what a version, or (None) every superseded version of the model, alone holds."""
        path = f"/v1/models/{model}" + (f"/checkpoints/{number}" if number is not None else "")
        held = {"If-Match": self._etag(path) or "*"} if number is not None else {}
        body = {"code": code, "quarantined": quarantined}
        made: dict[str, Any] = self.call("POST", f"{path}/retire", json=body, headers=held)
        return made

    def aliases(self, model: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.call("GET", f"/v1/models/{model}/aliases")
        return found

    def set_alias(self, model: str, name: str, version: int, reason: str) -> dict[str, Any]:
        """Point an alias at a released version, a new one or one that moves. Problem 412 when somebody was quicker."""
        path = f"/v1/models/{model}/aliases/{name}"
        etag = self._etag(path)
        held = {"If-Match": etag} if etag else {"If-None-Match": "*"}
        answer: dict[str, Any] = self.call("PUT", path, json={"version": version, "reason": reason}, headers=held)
        return answer

    def remove_alias(self, model: str, name: str, reason: str) -> None:
        path = f"/v1/models/{model}/aliases/{name}"
        self.call("DELETE", path, params={"reason": reason}, headers={"If-Match": self._etag(path) or "*"})

    def roll_back(self, model: str, alias: str, reason: str, to_version: int | None = None) -> dict[str, Any]:
        """Move an alias back; `reopened` names the requests that this un-forgets. Of two at once, one is Problem 412."""
        path = f"/v1/models/{model}/aliases/{alias}"
        body = {"reason": reason} | ({"to_version": to_version} if to_version is not None else {})
        held = {"If-Match": self._etag(path) or "*"}
        answer: dict[str, Any] = self.call("POST", f"{path}/rollback", json=body, headers=held)
        return answer

    def alias_history(self, model: str, name: str) -> Iterator[dict[str, Any]]:
        return self.pages(f"/v1/models/{model}/aliases/{name}/history")

    def _etag(self, path: str) -> str | None:
        """None where there is nothing."""
        response = self.http.get(path)
        if response.status_code == 404:
            return None
        _raise_for(response)
        return response.headers["ETag"]

    def report(self, model: str, number: int | str) -> dict[str, Any]:
        """Of a version by its number, `head` or an alias."""
        answer: dict[str, Any] = self.call("GET", f"/v1/models/{model}/checkpoints/{number}/report")
        return answer

    def compare(self, one: tuple[str, int | str], other: tuple[str, int | str]) -> dict[str, Any]:
        """The reports of two versions, each (model, number), side by side. `unlike` holds `forgotten` unless the key may see
        that one request made both, or two requests that ask the same of the same model."""
        first, second = (self.report(*version) for version in (one, other))
        requests = [
            self.call("GET", f"/v1/models/{model}/checkpoints/{number}")["request"] for model, number in (one, other)
        ]
        found = compare(first, second, same_forgotten=self._ask_the_same(*requests))
        return {"versions": [f"{model}:{number}" for model, number in (one, other)], **found}

    def _ask_the_same(self, one: str | None, other: str | None) -> bool:
        """Whether two requests are known to: not where the key may not see them."""
        if one is None or other is None or one == other:
            return one is not None and one == other
        try:
            return any(each["id"] == other for each in self.pages("/v1/requests", duplicate_of=one, limit=200))
        except Problem as problem:
            if problem.status not in (403, 404):
                raise
            return False

    def report_page(self, model: str, number: int | str) -> bytes:
        """The report as one HTML page that needs nothing else."""
        response = self.http.get(f"/v1/models/{model}/checkpoints/{number}/report.html")
        _raise_for(response)
        return response.content

    def picture(self, model: str, number: int, picture: str) -> bytes:
        response = self.http.get(f"/v1/models/{model}/checkpoints/{number}/pictures/{picture}")
        _raise_for(response)
        return response.content

    def audit_export(self, first: int = 1, last: int | None = None) -> Iterator[bytes]:
        """The audit as JSON lines, in pieces; needs the scope audit:read."""
        asked = {"from": first} | ({"to": last} if last is not None else {})
        with self.http.stream("GET", "/v1/audit/export", params=asked) as response:
            if response.is_error:
                response.read()
                _raise_for(response)
            yield from response.iter_bytes()

    def pull(
        self,
        model: str,
        number: int | str,
        target: Path,
        reason: str | None = None,
        on_bytes: Callable[[int, int], None] = lambda done, total: None,
    ) -> Path:
        """Download a version (a number, `head` or an alias) into the folder `target`, each file checked by its SHA-256; Damaged
        when it is another. A partial file is resumed, a whole one is not fetched again."""
        checkpoint = self.call("GET", f"/v1/models/{model}/checkpoints/{number}")
        base = f"/v1/models/{model}/checkpoints/{checkpoint['number']}/files"
        total, done = sum(file["size"] for file in checkpoint["files"]), 0
        for file in checkpoint["files"]:
            path = target / file["path"]
            if not path.resolve().is_relative_to(target.resolve()):
                raise Damaged("the server named a file outside the target folder")
            path.parent.mkdir(parents=True, exist_ok=True)
            for size in self._fetch(f"{base}/{file['path']}", path, file, reason):
                on_bytes(done + size, total)
            done += file["size"]
        return target

    def _fetch(self, url: str, path: Path, file: dict[str, Any], reason: str | None) -> Iterator[int]:
        """Complete `path.part` and give it its name; yields how many bytes are there. A whole file is left alone."""
        if path.is_file() and _sha256(path) == file["sha256"]:
            yield file["size"]
            return
        partial = path.with_name(path.name + ".part")
        have = partial.stat().st_size if partial.exists() else 0
        if have != file["size"] or not partial.exists():
            resumed = 0 < have < file["size"]
            headers = {"Range": f"bytes={have}-", "If-Range": f'"{file["sha256"]}"'} if resumed else {}
            yield from self._append(url, partial, headers, {"reason": reason} if reason else {})
        if _sha256(partial) != file["sha256"]:
            partial.unlink()
            raise Damaged(f"{path.name}: the bytes that arrived do not have the server's SHA-256; pull again")
        partial.replace(path)
        yield file["size"]

    def _append(self, url: str, partial: Path, headers: dict[str, str], params: dict[str, str]) -> Iterator[int]:
        with self.http.stream("GET", url, params=params, headers=headers) as response:
            if response.is_error:
                response.read()
                _raise_for(response)
            with partial.open("ab" if response.status_code == 206 else "wb") as opened:
                for piece in response.iter_bytes(1 << 20):
                    opened.write(piece)
                    yield opened.tell()


def _wished(model: str, forget: dict[str, Any] | None, options: dict[str, Any]) -> dict[str, Any]:
    return {"model": model} | {key: value for key, value in {**options, "forget": forget}.items() if value is not None}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _raise_for(response: httpx.Response) -> None:
    if not response.is_error:
        return
    kind = response.headers.get("content-type", "")
    document = response.json() if "json" in kind else {"status": response.status_code, "detail": response.reason_phrase}
    raise Problem(document)


def _asked_to_wait(response: httpx.Response, otherwise: float) -> float:
    asked = response.headers.get("retry-after", "")
    return min(float(asked), 30.0) if asked.isascii() and asked.isdigit() else otherwise


def _archive(source: Path | bytes) -> BinaryIO:
    """An open zip: of a folder, packed now; an archive file as it is; or bytes."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if source.is_file():
        return source.open("rb")
    packed = tempfile.TemporaryFile()  # noqa: SIM115  (the caller closes it)
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(path for path in source.rglob("*") if path.is_file()):
            archive.write(path, path.relative_to(source).as_posix())
    packed.seek(0)
    return packed


def _pieces(body: BinaryIO) -> Iterator[bytes]:
    while piece := body.read(1 << 20):
        yield piece
