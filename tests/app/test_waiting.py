"""Prefer: wait=N and the stream of events, against a server over HTTP: many callers wait, and others are served meanwhile."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from app.api import jobs as job_routes
from app.api.waiting import preferred
from app.records import job as jobs
from app.records import job_event
from tests.app.api.deployed import World, asked
from tests.app.serving import key_of, served


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, str]]:
    with served(tmp_path_factory.mktemp("waiting")) as running:
        yield running


@pytest.fixture
def world(server: tuple[World, str]) -> World:
    return server[0]


@pytest.fixture
def http(server: tuple[World, str]) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {key_of(server[0])}"}
    with httpx.Client(
        base_url=server[1], headers=headers, timeout=30, limits=httpx.Limits(max_connections=200)
    ) as client:
        yield client


def cancel_soon(world: World, request_id: str, seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, lambda: world.admin.post(f"/v1/requests/{request_id}/cancel"))
    timer.start()
    return timer


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, None), ("", None), ("respond-async", None), ("wait", None), ("wait=x", None), ("wait=-1", None),
        ("wait=1.5", None), ("wait=" + "9" * 50, None), ("wait=0", 0), ("wait=7", 7), ('WAIT = "7"', 7), ("wait=3600", 60),
        ("respond-async, wait=5", 5),
    ],
)  # fmt: skip
def test_the_preference_is_read_or_ignored(prefer: str | None, seconds: int | None) -> None:
    assert preferred(prefer) == seconds


def test_a_call_waits_until_the_request_ends_and_no_longer(world: World, http: httpx.Client) -> None:
    made = asked(world.admin)
    job = made["jobs"][0]["id"]
    timer, start = cancel_soon(world, made["id"], 1.0), time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        paths = (f"/v1/requests/{made['id']}", f"/v1/jobs/{job}")
        answers = list(pool.map(lambda path: http.get(path, headers={"Prefer": "wait=20"}), paths))
    timer.join()
    assert [answer.json()["status"] for answer in answers] == ["cancelled", "cancelled"]
    assert {answer.headers["preference-applied"] for answer in answers} == {"wait=20"}
    assert 0.9 < time.monotonic() - start < 10


def test_when_the_time_is_over_the_answer_is_what_there_is(world: World, http: httpx.Client) -> None:
    start = time.monotonic()
    body = {"model": "digits", "forget": {"samples": ["0/0"]}}
    answer = http.post("/v1/requests", json=body, headers={"Prefer": "wait=1"})
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert answer.headers["preference-applied"] == "wait=1" and 0.9 < time.monotonic() - start < 10
    plain = http.get(f"/v1/requests/{answer.json()['id']}")
    assert "preference-applied" not in plain.headers
    assert http.get("/v1/requests/absent", headers={"Prefer": "wait=20"}).status_code == 404


def test_a_hundred_that_wait_hold_no_thread_and_no_connection(world: World, http: httpx.Client) -> None:
    made = asked(world.admin)
    with ThreadPoolExecutor(100) as pool:
        path = f"/v1/requests/{made['id']}"
        waiting = [pool.submit(http.get, path, headers={"Prefer": "wait=15"}) for _ in range(100)]
        time.sleep(4)  # all are there: more than the server's 40 threads, and than its 40 connections
        assert not [each for each in waiting if each.done()]
        took = []
        for _ in range(5):
            start = time.monotonic()
            assert http.get("/v1/models").status_code == 200
            took.append(time.monotonic() - start)
        assert sorted(took)[2] < 3
        world.admin.post(f"{path}/cancel")
        assert {each.result().json()["status"] for each in waiting} == {"cancelled"}


def events(lines: Iterator[str]) -> list[dict[str, Any]]:
    """Each as its fields; comments (pings) are left out."""
    found: list[dict[str, Any]] = [{}]
    for line in lines:
        name, _, value = line.partition(":")
        if not line:
            found.append({})
        elif name:
            found[-1][name] = json.loads(value) if name == "data" else value.strip()
    return [each for each in found if each]


def running_job(world: World, stages: tuple[str, ...]) -> tuple[str, int]:
    job_id = asked(world.admin)["jobs"][0]["id"]
    with world.lethe.store.write() as session:
        session.get_one(jobs.Job, job_id).deadline = 0.0
    with world.lethe.store.write() as session:
        job = jobs.claim(session, "test", 600)
        assert job is not None and job.id == job_id
    for stage in stages:
        with world.lethe.store.write() as session:
            job_event.write(session, job_id, job.lease_token, "stage", {"stage": stage})
    return job_id, job.lease_token


def end(world: World, job_id: str, token: int) -> None:
    with world.lethe.store.write() as session:
        job_event.write(session, job_id, token, "note", {"text": "late"})
    with world.lethe.store.write() as session:
        jobs.fail(session, job_id, token, "test", {"code": "test", "detail": "test"})


def test_events_are_streamed_as_they_happen_and_the_last_one_is_end(world: World, http: httpx.Client) -> None:
    job_id, token = running_job(world, ("loading", "unlearning"))
    timer = threading.Timer(1.0, end, (world, job_id, token))
    timer.start()
    with http.stream("GET", f"/v1/jobs/{job_id}/events/stream") as response:
        assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
        found = events(response.iter_lines())
    timer.join()
    assert [(each.get("id"), each["event"]) for each in found] == [
        ("1", "stage"), ("2", "stage"), ("3", "note"), (None, "end"),
    ]  # fmt: skip
    listed = http.get(f"/v1/jobs/{job_id}/events").json()["data"]
    assert [each["data"] for each in found[:-1]] == listed and found[-1]["data"] == {"status": "failed"}
    for headers, query in (({"Last-Event-ID": "2"}, ""), ({}, "?after=2"), ({"Last-Event-ID": "2"}, "?after=0")):
        later = http.get(f"/v1/jobs/{job_id}/events/stream{query}", headers=headers)
        assert [each["event"] for each in events(iter(later.text.splitlines()))] == ["note", "end"]


def test_a_stream_is_refused_as_any_other_call(world: World, http: httpx.Client) -> None:
    job_id = asked(world.requester)["jobs"][0]["id"]
    path = f"/v1/jobs/{job_id}/events/stream"
    assert http.get("/v1/jobs/absent/events/stream").status_code == 404
    assert http.get(path, headers={"Authorization": world.stranger.headers["Authorization"]}).status_code == 404
    assert http.get(path, headers={"Authorization": "Bearer x"}).status_code == 401
    answer = http.get(path, headers={"Last-Event-ID": "x"})
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:lethe:problem:bad-cursor")


def test_a_quiet_stream_pings_and_closes_in_time(
    world: World, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_routes, "STREAM_SECONDS", 17.0)
    job_id = asked(world.admin)["jobs"][0]["id"]
    start = time.monotonic()
    text = http.get(f"/v1/jobs/{job_id}/events/stream", timeout=60).text
    assert ": ping" in text and "event:" not in text and 16 < time.monotonic() - start < 30
