"""The statuses of a request: every move that there is, and none beside."""

import itertools

import pytest
from sqlalchemy import select

from app import migration
from app.deployment import Deployment, deploy
from app.errors import Conflict
from app.records import request as requests
from app.records.job import Job
from app.records.request import AT_ONCE, LIVE, MOVES, RETRIABLE, TERMINAL, WAITING, Request, Status
from app.settings import Settings
from tests.app.records.test_job import add_job, add_model
from tests.history import written

LEGAL = {
    "awaiting_verification": "awaiting_approval queued denied expired cancelled",
    "awaiting_approval": "queued denied expired cancelled",
    "queued": "running cancelled failed",
    "running": "queued completed evaluation_failed failed cancelled",
    "failed": "queued",
    "evaluation_failed": "queued completed",
    "completed": "reopened",
    "reopened": "completed",
    "cancelled": "",
    "denied": "",
    "expired": "",
}


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """SQLite alone: the table does not depend on the database."""
    from_empty = deploy(Settings(data=tmp_path_factory.mktemp("moves")))
    migration.upgrade(from_empty.store)
    add_job(from_empty, add_model(from_empty))
    return from_empty


@pytest.mark.parametrize(("source", "to"), list(itertools.product(Status, Status)))
def test_a_move_is_in_the_table_or_impossible(one: Deployment, source: Status, to: Status) -> None:
    with one.store.write() as session:
        (request,) = session.scalars(select(Request))
        request.status, request.finished_at = source, None
    if to in LEGAL[source].split():
        with one.store.write() as session:
            requests.move(session, request.id, to, "test", "why")
    else:
        with pytest.raises(Conflict), one.store.write() as session:
            requests.move(session, request.id, to, "test", "why")
    with one.store.read() as session:
        after = session.get_one(Request, request.id)
        (*_, last) = written(session, request_id=request.id)
    moved = to in LEGAL[source].split()
    assert after.status == (to if moved else source)
    assert (after.finished_at is not None) == (moved and to in TERMINAL)
    assert not moved or (last.action, last.details) == (f"request.{to}", {"reason": "why"})


def test_every_status_is_of_one_kind() -> None:
    assert set(LEGAL) == set(MOVES) == set(Status)
    assert set(LIVE) | set(TERMINAL) | {Status.REOPENED} == set(Status) and not set(LIVE) & set(TERMINAL)
    assert set(TERMINAL) | {Status.REOPENED} == {*AT_ONCE, Status.COMPLETED, *RETRIABLE} and set(WAITING) < set(LIVE)


def test_what_is_reopened_and_completed_again_ended_when_it_did_first(lethe: Deployment) -> None:
    """Its deadline runs only while it is reopened; what is released against its verdict ends then."""
    request_id = request_with(lethe, status=Status.COMPLETED, finished_at=90.0, due_at=100.0)
    seen = []
    for to in (Status.REOPENED, Status.COMPLETED):
        with lethe.store.write() as session:
            requests.move(session, request_id, to, "test")
        with lethe.store.read() as session:
            request = session.get_one(Request, request_id)
            listed = requests.at_risk(session, requests.Filters(), seconds=0.0, after=None, limit=10)
        seen.append((request.finished_at, request.unanswered, len(listed)))
    assert seen == [(90.0, True, 1), (90.0, False, 0)]
    overruled = request_with(lethe, status=Status.EVALUATION_FAILED, finished_at=90.0)
    with lethe.store.write() as session:
        requests.move(session, overruled, Status.COMPLETED, "test")
    with lethe.store.read() as session:
        assert (session.get_one(Request, overruled).finished_at or 0.0) > 90.0


def request_with(lethe: Deployment, **columns: object) -> str:
    """Another request, with these columns: its id."""
    job_id = add_job(lethe, add_model(lethe))
    with lethe.store.write() as session:
        request = session.get_one(Request, session.get_one(Job, job_id).request_id)
        for name, value in columns.items():
            setattr(request, name, value)
    return request.id
