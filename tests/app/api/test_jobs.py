"""/v1/jobs: a job's stage and progress, and its events by number."""

from app.records import job as jobs
from app.records import job_event
from tests.app.api.deployed import World, asked, refused


def test_a_waiting_job_has_no_stage_and_no_events(world: World) -> None:
    made = asked(world.requester)
    answer = world.requester.get(f"/v1/jobs/{made['jobs'][0]['id']}")
    job = answer.json()
    assert answer.headers["retry-after"] == "1"
    assert (job["request"], job["status"], job["stage"], job["attempts"], job["crashes"]) == (
        made["id"],
        "queued",
        None,
        0,
        0,
    )
    assert (job["progress"], job["error"], job["started_at"], job["finished_at"]) == ({}, None, None, None)
    assert world.requester.get(f"/v1/jobs/{job['id']}/events").json() == {"data": [], "has_more": False, "next": None}
    world.requester.post(f"/v1/requests/{made['id']}/cancel")


def test_a_job_tells_what_it_does_and_why_it_failed(world: World) -> None:
    made = asked(world.requester)
    job_id = made["jobs"][0]["id"]
    with world.lethe.store.write() as session:
        claimed = jobs.claim(session, "worker:test", 60.0)
        assert claimed is not None and claimed.id == job_id
        token = claimed.lease_token
    with world.lethe.store.write() as session:
        job_event.write(session, job_id, token, "stage", {"stage": "unlearning"}, stage=jobs.Stage.UNLEARNING)
    for step in range(1, 8):
        with world.lethe.store.write() as session:
            told = {"step": step, "total": 7, "seconds_left": 7.0 - step}
            job_event.write(session, job_id, token, "progress", told, progress=told)
    job = world.requester.get(f"/v1/jobs/{job_id}").json()
    assert (job["status"], job["stage"], job["progress"]["step"], job["attempts"]) == ("running", "unlearning", 7, 1)
    assert world.requester.get(f"/v1/requests/{made['id']}").json()["jobs"] == [
        made["jobs"][0] | {"status": "running", "stage": "unlearning"}
    ]
    seen, url = [], f"/v1/jobs/{job_id}/events?limit=3"
    while url:
        answer = world.requester.get(url)
        seen += answer.json()["data"]
        url = answer.links["next"]["url"] if answer.links else ""
    assert [event["seq"] for event in seen] == list(range(1, 9))
    assert [event["kind"] for event in seen] == ["stage"] + ["progress"] * 7 and seen[1]["data"]["total"] == 7
    tail = world.requester.get(f"/v1/jobs/{job_id}/events?after=7").json()
    assert [event["seq"] for event in tail["data"]] == [8] and not tail["has_more"]
    with world.lethe.store.write() as session:
        jobs.fail(
            session, job_id, token, "worker:test", {"code": "out_of_memory", "detail": "Use a smaller batch_size."}
        )
    ended = world.requester.get(f"/v1/jobs/{job_id}")
    assert ended.json()["error"] == {"code": "out_of_memory", "detail": "Use a smaller batch_size."}
    assert (
        ended.json()["stage"] is None and ended.json()["finished_at"] is not None and "retry-after" not in ended.headers
    )
    assert world.requester.get(f"/v1/requests/{made['id']}").json()["reason"] == "out_of_memory"


def test_cursors_are_numbers(world: World) -> None:
    made = asked(world.requester)
    for cursor in ("x", "-1", "²", "9" * 20, "1.5"):
        answer = world.requester.get(f"/v1/jobs/{made['jobs'][0]['id']}/events", params={"after": cursor})
        refused(answer, 422, "bad-cursor", "after")
    assert world.requester.get(f"/v1/jobs/{made['jobs'][0]['id']}/events?after=999999999").json()["data"] == []
    refused(world.requester.get("/v1/jobs/job_absent"), 404, "not-found")
    refused(world.requester.get("/v1/jobs/job_absent/events"), 404, "not-found")
