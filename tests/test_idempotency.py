"""The same POST a hundred times at once, with one Idempotency-Key, against a running server: one request."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from sqlalchemy import func, select

from app.client import Lethe
from app.records.history import HistoryEntry
from app.records.idempotency import IdempotencyKey
from app.records.job import Job
from app.records.request import Request
from tests.conftest import key_for
from tests.running import open_deployment

HUNDRED = 100


@pytest.mark.parametrize("kind", ["embedded", "production"])
def test_a_post_sent_a_hundred_times_at_once_makes_one_request(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    running = open_deployment(request, kind, tmp_path / "data")
    try:
        running.start("server")
        running.add_classifier(tmp_path)
        body = {"model": "digits", "forget": {"samples": ["0/0", "1/1"]}, "concept": "anna"}
        headers = {**running.client.http.headers, "Idempotency-Key": "one"}
        keys_before = len(list((running.settings.key_root / "data").iterdir()))

        def post(_: int) -> httpx.Response:
            return httpx.post(f"{running.client.http.base_url}/v1/requests", json=body, headers=headers, timeout=120)

        with ThreadPoolExecutor(HUNDRED) as pool:
            answers = list(pool.map(post, range(HUNDRED)))
        assert {answer.status_code for answer in answers} == {202}, {answer.text for answer in answers}
        assert len({answer.json()["id"] for answer in answers}) == 1
        assert sum("idempotent-replayed" in answer.headers for answer in answers) == HUNDRED - 1
        with running.lethe.store.read() as session:
            counts = [
                session.scalar(select(func.count()).select_from(table)) for table in (Request, Job, IdempotencyKey)
            ]
            received = select(func.count()).where(HistoryEntry.action == "request.received")
            assert (counts, session.scalar(received)) == ([1, 1, 1], 1)
        keys = len(list((running.settings.key_root / "data").iterdir()))
        assert keys == keys_before + 1  # the request's; its job's is made by the worker that claims it
    finally:
        running.stop()


class Cut(httpx.BaseTransport):
    """A network on which the answers to the first `times` POSTs of requests are lost."""

    def __init__(self, times: int) -> None:
        self.real, self.times, self.posts = httpx.HTTPTransport(), times, 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self.real.handle_request(request)
        if request.method == "POST" and request.url.path == "/v1/requests":
            self.posts += 1
            if self.posts <= self.times:
                response.read()
                raise httpx.ReadError("cut", request=request)
        return response


def test_the_client_s_request_is_one_however_often_the_network_fails(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    running = open_deployment(request, "embedded", tmp_path / "data")
    try:
        running.start("server")
        running.add_classifier(tmp_path)
        lethe, network = Lethe(str(running.client.http.base_url), key_for(running.lethe)), Cut(times=2)
        lethe.http._transport = network
        made = lethe.request("digits", {"samples": ["0/0"]})
        assert network.posts == 3
        assert [each["id"] for each in lethe.pages("/v1/requests")] == [made["id"]]
        second = lethe.request("digits", {"samples": ["0/0"]})  # asked again on purpose: another request
        assert second["id"] != made["id"]
        network.times = 100
        with pytest.raises(httpx.ReadError):
            lethe.request("digits", {"samples": ["0/0"]})
        assert len(list(running.client.pages("/v1/requests"))) == 3
        lethe.close()
    finally:
        running.stop()
