"""The life of a request before and beside the queue: verified, approved, denied, expired, extended."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import select

from app import submission, sweeper
from app.api import waiting
from app.records import job as jobs
from app.records import model as models
from app.records import request as requests
from app.records.job import Job
from app.records.request import Request
from tests.app.api.deployed import World, ask, asked, audited, forget_set, refused, stored
from tests.app.api.test_requests import run
from tests.conftest import client_for

BOTH = {"verification": "required", "approval": "required"}
NONE = {"verification": "none", "approval": "none"}
CHECKED = {"outcome": "verified", "method": "email_loop", "reference": "check/4711"}


@pytest.fixture(scope="module")
def verifier(world: World) -> TestClient:
    return client_for(world.lethe, "verifier")


@pytest.fixture(scope="module")
def approver(world: World) -> TestClient:
    return client_for(world.lethe, "approver")


@pytest.fixture(autouse=True)
def both_steps(world: World) -> Iterator[None]:
    steps(world, **BOTH)
    yield
    steps(world, **NONE)


def steps(world: World, **process: str) -> None:
    answer = world.admin.patch("/v1/models/digits", json={"process": process}, headers={"If-Match": "*"})
    assert answer.status_code == 200 and answer.json()["process"] == {**NONE, **process}


def post(
    client: TestClient, request: dict[str, Any], what: str, body: dict[str, Any] | None = None, **options: Any
) -> Any:
    return client.post(f"/v1/requests/{request['id']}/{what}", json=body, **options)


def read(world: World, request: dict[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = world.admin.get(f"/v1/requests/{request['id']}").json()
    return document


def change(world: World, request: dict[str, Any], **columns: Any) -> None:
    with world.lethe.store.write() as session:
        found = session.get_one(Request, request["id"])
        for name, value in columns.items():
            setattr(found, name, value)


def job_count(world: World, request: dict[str, Any]) -> int:
    with world.lethe.store.read() as session:
        return len(jobs.of_request(session, request["id"]))


def test_a_request_is_verified_then_approved_then_queued(
    world: World, verifier: TestClient, approver: TestClient
) -> None:
    answer = ask(world.requester, forget={"dataset": forget_set(world.requester)}, concept="anna")
    made = answer.json()
    assert (answer.headers["retry-after"], made["status"], made["jobs"]) == ("60", "awaiting_verification", [])
    assert made["needs"] == ["verification", "approval"]
    refused(post(approver, made, "approve"), 409, "illegal-transition")
    answer = post(verifier, made, "verification", CHECKED)
    assert answer.status_code == 200 and "anna" not in answer.text
    assert answer.json() == {**CHECKED, "request": made["id"], "status": "awaiting_approval",
                             "at": answer.json()["at"], "by": answer.json()["by"]}  # fmt: skip
    assert (read(world, made)["needs"], job_count(world, made)) == (["approval"], 0)
    refused(post(verifier, made, "verification", CHECKED), 409, "illegal-transition")
    queued = post(approver, made, "approve")
    document = queued.json()
    assert (queued.status_code, document["status"], document["needs"]) == (202, "queued", [])
    assert [job["deadline"] if "deadline" in job else job["status"] for job in document["jobs"]] == ["queued"]
    assert document["verification_method"] == "email_loop" and document["verification_reference"] == "check/4711"
    assert document["verified_by"] != document["approved_by"] and document["denied_by"] is None
    refused(post(approver, made, "deny", {"code": "excessive"}), 409, "illegal-transition")
    entries = audited(world, request=made["id"])
    assert [entry["action"] for entry in entries] == [
        "request.received", "request.checked", "request.awaiting_approval", "request.approved", "request.queued", "job.queued",
    ]  # fmt: skip
    assert "4711" not in str(entries) and "anna" not in str(entries)


@pytest.mark.parametrize(
    ("step", "status"), [("verification", "awaiting_verification"), ("approval", "awaiting_approval")]
)
def test_one_step_alone_leads_to_the_queue(
    world: World, verifier: TestClient, approver: TestClient, step: str, status: str
) -> None:
    steps(world, **{step: "required"})
    made = asked(world.requester)
    assert made["status"] == status
    if step == "verification":
        assert post(verifier, made, "verification", CHECKED).json()["status"] == "queued"
    else:
        assert post(approver, made, "approve").json()["status"] == "queued"
    assert job_count(world, made) == 1


def test_a_later_change_of_the_process_neither_skips_nor_adds_a_step(world: World, verifier: TestClient) -> None:
    strict = asked(world.requester)
    steps(world)
    free = asked(world.requester)
    assert free["status"] == "queued"
    assert post(verifier, strict, "verification", CHECKED).json()["status"] == "awaiting_approval"
    answer = world.admin.patch("/v1/models/digits", json={"process": None}, headers={"If-Match": "*"})
    assert answer.json()["process"] == NONE and read(world, strict)["needs"] == ["approval"]
    wrong = {"process": {"approval": "maybe"}}
    refused(world.admin.patch("/v1/models/digits", json=wrong, headers={"If-Match": "*"}), 422, "invalid-input")


def test_a_rejected_identity_ends_the_request_and_its_set(world: World, verifier: TestClient) -> None:
    set_id = forget_set(world.requester)
    made = asked(world.requester, forget={"dataset": set_id})
    answer = post(verifier, made, "verification", {"outcome": "rejected", "method": "in_person"})
    assert (answer.status_code, answer.json()["status"]) == (200, "denied")
    document = read(world, made)
    assert (document["reason"], document["denied_by"]) == ("identity_not_verified", answer.json()["by"])
    assert document["forget_set_purged_at"] and document["finished_at"] and document["days_left"] is None
    assert not world.lethe.keyring.exists(set_id) and job_count(world, made) == 0
    for verb in ("cancel", "retry"):
        refused(world.requester.post(f"/v1/requests/{made['id']}/{verb}"), 409, "illegal-transition")
    assert asked(world.requester)["status"] == "awaiting_verification"  # the next one skips nothing


@pytest.mark.parametrize("verified", [False, True])
def test_a_denial_has_a_code_and_purges(
    world: World, verifier: TestClient, approver: TestClient, verified: bool
) -> None:
    set_id = forget_set(world.requester)
    made = asked(world.requester, forget={"dataset": set_id})
    if verified:
        post(verifier, made, "verification", CHECKED)
    before = stored(world.lethe)
    refused(post(approver, made, "deny", {"code": "bored"}), 422, "invalid-input", "body.code")
    refused(post(approver, made, "deny", {"code": "other", "why": "Anna"}), 422, "invalid-input")
    refused(post(verifier, made, "deny", {"code": "other"}), 403, "missing-scope")
    assert stored(world.lethe) == before
    answer = post(approver, made, "deny", {"code": "legal_obligation"})
    assert (answer.json()["status"], answer.json()["reason"]) == ("denied", "legal_obligation")
    assert answer.json()["forget_set_purged_at"] and not world.lethe.keyring.exists(set_id)
    (entry,) = audited(world, request=made["id"], action="request.denied")
    assert entry["details"] == {"reason": "legal_obligation"} and entry["actor"] == answer.json()["denied_by"]


def test_the_key_that_asked_decides_nothing_of_it_whatever_its_scopes(world: World, approver: TestClient) -> None:
    made = asked(world.admin)
    refused(post(world.admin, made, "verification", CHECKED), 403, "separation-of-duties")
    refused(post(world.admin, made, "deny", {"code": "other"}), 403, "separation-of-duties")
    change(world, made, status="awaiting_approval", needs=["approval"])
    before = stored(world.lethe)
    refused(post(world.admin, made, "approve"), 403, "separation-of-duties")
    assert stored(world.lethe) == before and read(world, made)["status"] == "awaiting_approval"
    assert post(approver, made, "approve").status_code == 202


def test_a_verifier_reads_nothing_and_an_approver_posts_nothing(
    world: World, verifier: TestClient, approver: TestClient
) -> None:
    made = asked(world.requester, concept="anna")
    for path in ("/v1/requests", f"/v1/requests/{made['id']}", f"/v1/requests/{made['id']}/preview.png", "/v1/models"):
        refused(verifier.get(path), 403, "missing-scope")
    refused(post(world.stranger, made, "verification", CHECKED), 403, "missing-scope")
    refused(post(verifier, {"id": "req_absent"}, "verification", CHECKED), 404, "not-found")
    refused(ask(approver), 403, "missing-scope")
    assert read(world, made)["concept"] == "anna"
    assert approver.get(f"/v1/requests/{made['id']}").json()["concept"] == "anna"  # has requests:concept
    assert post(approver, made, "deny", {"code": "other"}).json()["concept"] is None  # its key went with the purge
    blind = world.admin.post("/v1/keys", json={"name": "x", "scopes": ["requests:approve", "requests:admin"]}).json()[
        "key"
    ]
    other = asked(world.requester, concept="anna")
    assert post(verifier, other, "verification", CHECKED).status_code == 200
    answer = post(world.admin, other, "approve", headers={"Authorization": f"Bearer {blind}"})
    assert answer.json()["status"] == "queued" and "anna" not in answer.text
    assert read(world, other)["concept"] == "anna"


def test_a_request_that_waits_is_cancelled_at_once_and_purged(world: World) -> None:
    set_id = forget_set(world.requester)
    made = asked(world.requester, forget={"dataset": set_id})
    refused(world.requester.delete(f"/v1/datasets/{set_id}"), 409)
    answer = post(world.requester, made, "cancel")
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    assert answer.json()["forget_set_purged_at"] and not world.lethe.keyring.exists(set_id)
    refused(post(world.requester, made, "cancel"), 409, "illegal-transition")


def test_no_worker_sees_a_request_that_waits(world: World, approver: TestClient) -> None:
    steps(world, approval="required")
    made = asked(world.requester, due_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat())  # nearest of all
    seen = []
    with world.lethe.store.write() as session:
        while job := jobs.claim(session, "worker:test", 60.0):
            seen.append(job.request_id)
            jobs.ask_to_cancel(session, job.id, "test")
            jobs.cancel(session, job.id, job.lease_token, "worker:test")
    assert made["id"] not in seen and read(world, made)["status"] == "awaiting_approval"
    assert post(approver, made, "approve").status_code == 202
    with world.lethe.store.write() as session:
        job = jobs.claim(session, "worker:test", 60.0)
        assert job is not None and job.request_id == made["id"]
        jobs.cancel(session, job.id, job.lease_token, "worker:test")


def test_a_retry_asks_for_no_approval_again(world: World, approver: TestClient) -> None:
    steps(world, approval="required")
    made = asked(world.requester)
    run(world, post(approver, made, "approve").json(), "failed")
    again = post(world.requester, made, "retry").json()
    assert (again["status"], [job["retry"] for job in again["jobs"]]) == ("queued", [0, 1])


def test_approving_twice_with_one_key_queues_one_job(world: World, approver: TestClient) -> None:
    steps(world, approval="required")
    made = asked(world.requester)
    answers = [post(approver, made, "approve", headers={"Idempotency-Key": "a-1"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[1].headers["idempotent-replayed"] == "true" and answers[0].json() == answers[1].json()
    assert job_count(world, made) == 1
    refused(post(approver, made, "approve"), 409, "illegal-transition")


@pytest.mark.parametrize(
    "others", [("approve", "approve"), ("approve", "cancel"), ("deny", "approve"), ("deny", "cancel")]
)
def test_of_decisions_at_once_each_finds_what_the_other_left(
    world: World, approver: TestClient, others: tuple[str, str]
) -> None:
    steps(world, approval="required")
    for _ in range(4):
        made, answers, barrier = asked(world.requester), {}, threading.Barrier(2)

        def decide(place: int, what: str, made: Any = made, answers: Any = answers, barrier: Any = barrier) -> None:
            client = world.requester if what == "cancel" else approver
            barrier.wait()
            answers[place] = post(client, made, what, {"code": "other"} if what == "deny" else None).status_code

        threads = [threading.Thread(target=decide, args=each) for each in enumerate(others)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        statuses, end = [answers[place] for place in range(2)], read(world, made)["status"]
        if others == ("approve", "cancel"):  # a cancel that comes second ends the job, too
            assert end == "cancelled" and statuses in ([202, 202], [409, 202])
            assert job_count(world, made) == (1 if statuses[0] == 202 else 0)
            with world.lethe.store.read() as session:
                assert {job.status for job in jobs.of_request(session, made["id"])} <= {"cancelled"}
        else:
            assert statuses.count(409) == 1, statuses
            assert (job_count(world, made) == 1) == (end == "queued")


def test_waiting_past_the_due_date_expires_and_purges_also_after_a_crash(world: World, approver: TestClient) -> None:
    late, dead, soon = forget_set(world.requester), forget_set(world.requester), asked(world.requester)
    made, crashed = (asked(world.requester, forget={"dataset": each}) for each in (late, dead))
    change(world, made, due_at=1.0)
    sweeper.expire_waiting(world.lethe, "sweeper:test")
    document = read(world, made)
    assert (document["status"], document["reason"], document["overdue"]) == ("expired", "no_verification", True)
    assert document["forget_set_purged_at"] and not world.lethe.keyring.exists(late)
    assert read(world, soon)["status"] == "awaiting_verification"
    change(world, crashed, due_at=1.0)
    with world.lethe.store.write() as session:  # and the sweeper dies before the purge
        assert requests.expire_waiting(session, "sweeper:test") == [crashed["id"]]
    assert world.lethe.keyring.exists(dead)
    sweeper.purge_old_data(world.lethe)
    assert not world.lethe.keyring.exists(dead) and read(world, crashed)["forget_set_purged_at"]
    (entry,) = audited(world, request=made["id"], action="request.expired")
    assert (entry["actor"], entry["details"]) == ("sweeper:test", {"reason": "no_verification"})
    refused(post(approver, made, "deny", {"code": "other"}), 409, "illegal-transition")


def test_a_queued_request_does_not_expire(world: World) -> None:
    steps(world)
    made = asked(world.requester)
    change(world, made, due_at=1.0)
    sweeper.expire_waiting(world.lethe, "sweeper:test")
    assert (read(world, made)["status"], read(world, made)["overdue"]) == ("queued", True)


def test_what_is_overdue_already_is_not_received_to_wait(world: World) -> None:
    before = stored(world.lethe)
    long_ago = (datetime.now(UTC) - timedelta(days=40)).isoformat()
    refused(ask(world.requester, requested_at=long_ago), 422, "out-of-bounds", "due_at")
    assert stored(world.lethe) == before


def test_prefer_wait_waits_for_the_end_and_no_longer_than_asked(world: World, approver: TestClient) -> None:
    assert waiting.LONGEST == 60
    answer = ask(world.requester)
    held = world.requester.get(f"/v1/requests/{answer.json()['id']}", headers={"Prefer": "wait=1"})
    assert held.json()["status"] == "awaiting_verification" and held.headers["preference-applied"] == "wait=1"
    assert held.elapsed >= timedelta(seconds=0.9)
    post(approver, answer.json(), "deny", {"code": "duplicate"})
    ended = world.requester.get(f"/v1/requests/{answer.json()['id']}", headers={"Prefer": "wait=30"})
    assert ended.json()["status"] == "denied" and ended.elapsed < timedelta(seconds=10)


def days(first: str, then: str) -> float:
    return (datetime.fromisoformat(then) - datetime.fromisoformat(first)) / timedelta(days=1)


def told(ago: timedelta = timedelta(), **more: Any) -> dict[str, Any]:
    return {"code": "complexity", "notified_at": (datetime.now(UTC) - ago).isoformat(), **more}


def test_regimes_give_the_due_date_and_a_caller_only_an_earlier_one(world: World) -> None:
    now = datetime.now(UTC)
    made = {regime: asked(world.requester, regime=regime) for regime in ("gdpr", "ccpa", "other")}
    assert days(made["ccpa"]["requested_at"], made["ccpa"]["due_at"]) == 45
    assert 28 <= days(made["gdpr"]["requested_at"], made["gdpr"]["due_at"]) <= 31
    assert days(made["other"]["requested_at"], made["other"]["due_at"]) == 30
    assert made["ccpa"]["days_left"] == 44 and made["ccpa"]["overdue"] is False
    before = stored(world.lethe)
    for regime, much in (("gdpr", 32), ("ccpa", 46)):
        late = (now + timedelta(days=much)).isoformat()
        refused(ask(world.requester, regime=regime, due_at=late), 422, "out-of-bounds", "due_at")
    refused(ask(world.requester, regime="lgpd"), 422, "invalid-input", "body.regime")
    assert stored(world.lethe) == before
    early = (now + timedelta(days=5)).isoformat()
    assert asked(world.requester, regime="gdpr", due_at=early)["days_left"] == 4


def test_an_extension_moves_the_due_date_and_the_place_in_the_queue_once(world: World, approver: TestClient) -> None:
    steps(world)
    made = asked(world.requester, regime="ccpa")
    answer = post(approver, made, "extend", told())
    document = answer.json()
    assert answer.status_code == 200 and days(made["requested_at"], document["due_at"]) == 90
    assert (document["extension_code"], document["days_left"]) == ("complexity", 89)
    assert document["extended_at"] and document["notified_at"]
    with world.lethe.store.read() as session:
        (job,) = session.scalars(select(Job).where(Job.request_id == made["id"]))
        assert job.deadline == session.get_one(Request, made["id"]).due_at
    (entry,) = audited(world, request=made["id"], action="request.extended")
    assert entry["details"] == {"code": "complexity", "days": 45}
    refused(post(approver, made, "extend", told()), 409, "already-extended")
    run(world, made, "failed")
    again = post(world.requester, made, "retry").json()
    assert world.admin.get(f"/v1/jobs/{again['jobs'][1]['id']}").json()["deadline"] == document["due_at"]


@pytest.mark.parametrize("regime", ["gdpr", "ccpa"])
def test_an_extension_stays_within_its_regime_and_the_first_period(
    world: World, approver: TestClient, regime: str
) -> None:
    now = datetime.now(UTC)
    made = asked(world.requester, regime=regime, requested_at=(now - timedelta(days=3)).isoformat())
    before = stored(world.lethe)
    for body, field in (
        (told(due_at=(now + timedelta(days=93)).isoformat()), "due_at"),
        (told(due_at=(now + timedelta(days=2)).isoformat()), "due_at"),
        (told(-timedelta(days=1)), "notified_at"),
        (told(timedelta(days=4)), "notified_at"),
    ):
        refused(post(approver, made, "extend", body), 422, "out-of-bounds", field)
    refused(post(approver, made, "extend", {**told(), "code": "holidays"}), 422, "invalid-input", "body.code")
    refused(post(world.requester, made, "extend", told()), 403, "missing-scope")
    assert stored(world.lethe) == before
    change(world, made, due_at=now.timestamp() - 60)
    refused(post(approver, made, "extend", told(timedelta(hours=1))), 409, "deadline-passed")
    post(world.requester, made, "cancel")
    refused(post(approver, made, "extend", told()), 409, "illegal-transition")


def test_another_regime_is_extended_to_a_named_date(world: World, approver: TestClient) -> None:
    made = asked(world.requester)
    refused(post(approver, made, "extend", told()), 422, "due-date-missing", "due_at")
    until = (datetime.now(UTC) + timedelta(days=50)).replace(microsecond=0)
    document = post(approver, made, "extend", told(due_at=until.isoformat())).json()
    assert datetime.fromisoformat(document["due_at"]) == until and document["status"] == "awaiting_verification"


def test_requests_at_risk_come_nearest_deadline_first_page_by_page(world: World) -> None:
    client = client_for(world.lethe, "requester")
    steps(world)
    now = datetime.now(UTC)
    far, *near = (asked(client, due_at=(now + timedelta(days=each)).isoformat())["id"] for each in (9, 5, 1, 3, 3))
    ended, failed = (asked(client, due_at=(now + timedelta(days=2)).isoformat()) for _ in range(2))
    post(client, ended, "cancel")
    run(world, failed, "failed")
    expected = [near[1], failed["id"], *sorted(near[2:]), near[0]]
    with world.lethe.store.write() as session:  # two that are due at one moment
        for each in near[2:]:
            session.get_one(Request, each).due_at = (now + timedelta(days=3)).timestamp()
    seen: list[str] = []
    url: str | None = "/v1/requests?at_risk=7&limit=2"
    while url is not None:
        answer = client.get(url)
        assert answer.status_code == 200, answer.text
        seen += [each["id"] for each in answer.json()["data"]]
        url = answer.links["next"]["url"] if answer.links else None
    assert seen == expected and far not in seen
    assert [each["id"] for each in client.get("/v1/requests?at_risk=7&status=failed").json()["data"]] == [failed["id"]]
    assert client.get("/v1/requests?at_risk=0").json()["data"] == []
    for wrong in (near[0], "x~y", f"nan~{near[0]}", f"1e9999~{near[0]}"):
        refused(client.get(f"/v1/requests?at_risk=7&after={wrong}"), 422, "bad-cursor", "after")
    refused(client.get(f"/v1/requests?after=1.0~{near[0]}"), 422, "bad-cursor", "after")
    refused(client.get("/v1/requests?at_risk=-1"), 422, "invalid-input", "query.at_risk")


def test_what_ended_late_counts_as_breached(world: World) -> None:
    steps(world)
    made = asked(world.requester)
    run(world, made, "completed")
    assert (read(world, made)["overdue"], read(world, made)["days_left"]) == (False, None)
    change(world, made, due_at=1.0)
    assert (read(world, made)["overdue"], read(world, made)["days_left"]) == (True, None)


def test_a_process_that_is_asked_for_while_a_post_is_checked_binds_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model changes once the sets were read: the request waits all the same, or is refused where it would expire at once."""
    past = {"requested_at": "2020-01-01T00:00:00Z", "due_at": "2020-02-01T00:00:00Z"}
    for body, status in (({}, "awaiting_verification"), (past, 422)):
        steps(world)
        checked = submission.check

        def check(*told: Any, checked: Any = checked) -> submission.Checked:
            found: submission.Checked = checked(*told)
            steps(world, verification="required", approval="required")
            return found

        with monkeypatch.context() as patched:
            patched.setattr(submission, "check", check)
            answer = ask(world.requester, **body)
        if status == 422:
            refused(answer, 422, "out-of-bounds", "due_at")
        else:
            assert (answer.json()["status"], job_count(world, answer.json())) == (status, 0)


def test_a_process_changes_before_or_after_a_post_never_within(world: World) -> None:
    """Who stores a request holds the model with others who do, and a change waits for them."""
    steps(world)
    changing = threading.Thread(target=steps, args=(world,), kwargs={"approval": "required"})
    with world.lethe.store.write() as session:
        model = models.find(session, "digits")
        assert model is not None and models.steps(models.share(session, model.id)) == []
        changing.start()
        changing.join(0.7)
        assert changing.is_alive()
    changing.join(30)
    assert asked(world.requester)["status"] == "awaiting_approval"
