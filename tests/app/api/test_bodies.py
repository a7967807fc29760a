"""What bodies on their way may take of the server's memory: how many large ones, and for how long. A real server: the test
client has read a body before it calls."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection

import httpx
import pytest

from app.errors import Busy
from tests import pictures
from tests.app.api.deployed import ZIP, World, ask, refused, stored, upload_set
from tests.app.serving import key_of, served

JSON = {"Content-Type": "application/json"}
SETS, REQUESTS = "/v1/datasets?role=forget", "/v1/requests"
REQUEST = json.dumps({"model": "digits", "forget": {"samples": ["0/0"]}, "method": "salun"}).encode()
LONG = REQUEST + b" " * (1 << 20)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, httpx.Client]]:
    """With one place for large bodies. SQLite alone: none of this depends on the database."""
    with served(tmp_path_factory.mktemp("bodies"), large_bodies=1, body_seconds=5.0) as (world, address):
        headers = {"Authorization": f"Bearer {key_of(world)}"}
        with httpx.Client(base_url=address, headers=headers, timeout=30) as client:
            yield world, client


def begun(client: httpx.Client, path: str, body: bytes, length: int) -> HTTPConnection:
    """A POST of whose `length` bytes these have come."""
    connection = HTTPConnection(client.base_url.host, client.base_url.port or 0, timeout=30)
    connection.putrequest("POST", path)
    kind = ZIP if path == SETS else JSON
    for name, value in {
        "Authorization": client.headers["authorization"],
        "Content-Length": str(length),
        **kind,
    }.items():
        connection.putheader(name, value)
    connection.endheaders(body)
    return connection


def soon(found: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not found():
        assert time.monotonic() < until
        time.sleep(0.02)


def kept(world: World) -> list[int]:
    rows = stored(world.lethe)[0]
    return [rows["datasets"], rows["requests"]]


def free(world: World) -> bool:
    try:
        with world.lethe.bodies.slot():
            return True
    except Busy:
        return False


@pytest.mark.parametrize(
    ("path", "body"), [(SETS, pictures.imagefolder(seed=1)), (REQUESTS, LONG)], ids=["set", "json"]
)
def test_a_large_body_on_its_way_takes_a_place_until_it_is_answered(
    server: tuple[World, httpx.Client], path: str, body: bytes
) -> None:
    world, client = server
    for round_ in range(2):
        connection = begun(client, path, body[:-1], len(body))
        soon(lambda: not free(world))
        before = kept(world)
        for headers in (JSON, JSON | {"Idempotency-Key": "x"}):
            answer = client.post(REQUESTS, content=LONG, headers=headers)
            refused(answer, 503, "too-many-bodies")
            assert answer.headers["retry-after"] == "5"
        refused_early = begun(client, SETS, b"", 1000).getresponse()  # none of its bytes was awaited
        assert refused_early.status == 503 and b"too-many-bodies" in refused_early.read()
        assert kept(world) == before
        assert upload_set(client, "train", f"{path[4:6]}-{round_}").status_code == 201  # goes to a file
        assert ask(client).status_code == 202  # is short
        connection.send(body[-1:])
        assert connection.getresponse().status == (201 if path == SETS else 202)
        soon(lambda: free(world))


def test_a_refusal_and_a_client_that_goes_leave_their_place(server: tuple[World, httpx.Client]) -> None:
    _, client = server
    refused(upload_set(client, "forget", body=b"no archive"), 422)
    begun(client, SETS, b"x", 1000).close()
    soon(lambda: upload_set(client, "forget").status_code == 201)


@pytest.mark.parametrize("path", [SETS, REQUESTS])
def test_a_body_that_drips_is_refused_in_time(server: tuple[World, httpx.Client], path: str) -> None:
    world, client = server
    before = kept(world)
    connection = begun(client, path, b"", 1000)
    connection.sock.settimeout(0.1)
    for _ in range(100):  # a byte every tenth of a second
        connection.send(b" ")
        try:
            connection.sock.recv(1, socket.MSG_PEEK)
            break
        except TimeoutError:
            continue
    answer = connection.getresponse()
    problem = json.loads(answer.read())
    assert answer.status == 408 and answer.getheader("content-type") == "application/problem+json"
    assert problem["type"] == "urn:lethe:problem:body-time" and "5 seconds" in problem["errors"][0]["rule"]
    assert kept(world) == before
    assert upload_set(client, "forget").status_code == 201
