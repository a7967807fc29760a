"""POST .../retire: what goes, what stays byte for byte, every refusal, and a crash at each step."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app import retirement, sweeper, weights
from app.api import holds
from app.api.checkpoints import find_checkpoint, manifest_of
from app.api.downloads import _stream
from app.errors import Refused
from app.records import checkpoint as checkpoints
from app.records import intent as intents
from app.records import job as jobs
from app.records import model as models
from app.records import request as requests
from app.records.base import new_id
from app.records.checkpoint import Checkpoint, Status
from app.retirement import Code, Order
from tests import reports
from tests.app.api.deployed import (
    Response,
    World,
    add_version,
    asked,
    attackable,
    audited,
    forgotten,
    refused,
    register,
)

BODY = {"code": "erasure"}
PATH = "/v1/models/digits/checkpoints"


@pytest.fixture(autouse=True)
def tidy(world: World) -> Iterator[None]:
    """Each test finds jobs that nobody runs, and leaves none."""
    yield
    with world.lethe.store.write() as session:
        for job in session.query(jobs.Job).filter(jobs.Job.status.in_(["queued", "running"])):
            job.status = jobs.Status.CANCELLED


def send(world: World, number: int, model: str = "digits", **body: Any) -> Response:
    path = f"/v1/models/{model}/checkpoints/{number}"
    headers = {"If-Match": world.admin.get(path).headers["etag"]}
    return world.admin.post(f"{path}/retire", json=BODY | body, headers=headers)


def contents(world: World, number: int) -> dict[str, bytes]:
    """Every file of a version, as it is downloaded."""
    files = world.admin.get(f"{PATH}/{number}").json()["files"]
    answers = {f["path"]: world.admin.get(f"{PATH}/{number}/files/{f['path']}?reason=x") for f in files}
    assert {path: answer.status_code for path, answer in answers.items()} == dict.fromkeys(answers, 200)
    return {path: answer.content for path, answer in answers.items()}


def packs(world: World) -> set[str]:
    return set(world.lethe.blobs.list("packs/"))


def past(world: World, folder: Path) -> tuple[int, int]:
    """A superseded version, and the head that superseded it: it changed some values, the rest is in the old pack."""
    old, directory = add_version(world, folder, supersede=True)
    path = directory / "model.safetensors"
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(byte ^ 1 for byte in whole[middle : middle + 64]) + whole[middle + 64 :])
    number, lethe = old + 1, world.lethe
    names = {kind: f"{kind}s/partly-{new_id('x')}" for kind in ("pack", "manifest")}
    with lethe.store.write() as session:
        model = models.find(session, "digits")
        assert model is not None
        parent = checkpoints.head(session, model.id)
        before = manifest_of(lethe, parent)
        manifest = weights.pack_delta(before, lethe.blobs, directory, folder / "pack", names["pack"])
        lethe.blobs.put(names["pack"], folder / "pack")
        lethe.blobs.put(names["manifest"], weights.encode(manifest))
        version = Checkpoint(
            id=new_id("ckpt"), model_id=model.id, parent_id=parent.id, status=Status.RELEASED, **names,
            digest=weights.digest(manifest), changes={}, report=reports.report(),
        )  # fmt: skip
        checkpoints.add(session, version, "worker:test")
        checkpoints.supersede_before(session, version, "worker:test")
    assert version.number == number
    return old, number


def test_a_superseded_version_is_erased_and_the_head_keeps_every_byte(world: World, tmp_path: Path) -> None:
    old, head = past(world, tmp_path)
    before, record = contents(world, head), world.admin.get(f"{PATH}/{old}").json()
    report = world.admin.get(f"{PATH}/{old}/report").json()
    archive = world.admin.get(f"{PATH}/{head}/archive").content
    answer = send(world, old)
    assert answer.status_code == 200, answer.text
    gone = answer.json()
    assert (gone["status"], gone["digest"], gone["files"]) == ("retired", record["digest"], record["files"])
    assert gone["retired"]["code"] == "erasure" and gone["retired"]["was"] == "superseded" and gone["retired"]["erased"]
    assert gone["retired"]["bytes_erased"] > 0 and 0 < gone["retired"]["tensors_erased"] <= gone["retired"]["tensors"]
    assert contents(world, head) == before and world.admin.get(f"{PATH}/{head}/archive").content == archive
    assert world.admin.get(f"{PATH}/{old}/report").json() == report
    refused(world.admin.get(f"{PATH}/{old}/pictures/grid.png"), 410, "picture-erased")
    for path in ("files/config.json", "archive"):
        refused(world.admin.get(f"{PATH}/{old}/{path}", params={"reason": "x"}), 410, "version-retired")


def test_the_audit_holds_the_proof(world: World, tmp_path: Path) -> None:
    old, head = past(world, tmp_path)
    there = packs(world)
    gone = send(world, old).json()
    (retired,) = audited(world, action="checkpoint.retired", resource=gone["id"])
    assert retired["details"]["number"] == old and retired["details"]["digest"] == gone["digest"]
    assert retired["details"]["kept"].keys() <= {str(n) for n in range(head + 1)}
    erased = [e["details"] for e in audited(world, action="weights.erased")]
    mine = [each for each in erased if each["retirement"] == gone["retired"]["retirement"]]
    assert {each["kind"] for each in mine} == {"packs", "manifests"}
    assert len([each for each in mine if each["kind"] == "packs"]) == len(there - packs(world))
    assert sum(each["bytes"] for each in mine if each["kind"] == "packs") == gone["retired"]["bytes_erased"]
    assert all(len(each["blob"]) == len(each["sha256"]) == 64 for each in mine)


def test_a_whole_model_is_retired_at_once_and_again_does_nothing(world: World, tmp_path: Path) -> None:
    old, head = past(world, tmp_path)
    missed, _ = add_version(world, tmp_path, Status.QUARANTINED)
    before = contents(world, head)
    first = world.admin.post("/v1/models/digits/retire", json=BODY).json()
    assert old in {each["number"] for each in first["versions"]} and first["erased"]
    assert {"number": missed, "code": "not-asked"} in first["skipped"]
    second = world.admin.post("/v1/models/digits/retire", json=BODY | {"quarantined": True}).json()
    assert [each["number"] for each in second["versions"]] == [missed] and second["skipped"] == []
    third = world.admin.post("/v1/models/digits/retire", json=BODY).json()
    assert (third["id"], third["versions"], third["bytes_erased"]) == (None, [], 0)
    assert contents(world, head) == before
    refused(world.admin.post("/v1/models/none/retire", json=BODY), 404)


def test_a_retirement_sent_again_under_its_key_is_done_once(world: World, tmp_path: Path) -> None:
    old, _ = past(world, tmp_path)
    path = f"{PATH}/{old}"
    headers = {"If-Match": world.admin.get(path).headers["etag"], "Idempotency-Key": f"retire-{old}"}
    first, second = (world.admin.post(f"{path}/retire", json=BODY, headers=headers) for _ in range(2))
    assert first.status_code == 200 and first.json() == second.json()
    assert second.headers["idempotent-replayed"] == "true"


def test_what_may_not_go_is_refused(world: World, tmp_path: Path) -> None:
    old, head = past(world, tmp_path)
    refused(send(world, head), 409, "version-released", "version")
    refused(world.admin.post(f"{PATH}/{old}/retire", json=BODY), 428, "precondition-required", "If-Match")
    held = {"If-Match": f'"{old}-released"'}
    refused(world.admin.post(f"{PATH}/{old}/retire", json=BODY, headers=held), 412, "precondition-failed")
    held = {"If-Match": "*"}
    refused(world.requester.post(f"{PATH}/{old}/retire", json=BODY, headers=held), 403, "missing-scope")
    refused(world.admin.post(f"{PATH}/{old}/retire", json={"code": "whim"}, headers=held), 422)
    alias = "/v1/models/digits/aliases/old"
    world.admin.put(alias, json={"version": head, "reason": "x"}, headers={"If-None-Match": "*"})
    newer, _ = add_version(world, tmp_path, supersede=True)
    refused(send(world, head), 409, "version-aliased", "version")
    world.admin.put(alias, json={"version": newer, "reason": "x"}, headers=held)
    assert send(world, head).status_code == 200
    refused(send(world, head), 409, "version-retired", "version")
    refused(
        world.admin.put(alias, json={"version": head, "reason": "x"}, headers=held), 409, "version-retired", "version"
    )
    back = world.admin.post(f"{alias}/rollback", json={"reason": "x"}, headers=held)
    refused(back, 409, "version-retired", "to_version")
    assert world.admin.delete(alias, params={"reason": "x"}, headers=held).status_code == 204


def test_a_legal_hold_on_a_request_keeps_every_version_of_its_model(world: World, tmp_path: Path) -> None:
    old, _ = past(world, tmp_path)
    request_id = asked(world.admin)["id"]
    assert world.admin.put(f"/v1/requests/{request_id}/hold", json={"code": "authority_order"}).status_code == 200
    refused(send(world, old), 409, "version-held", "version")
    assert world.admin.delete(f"/v1/requests/{request_id}/hold").status_code == 204
    assert send(world, old).status_code == 200


def test_a_hold_waits_for_a_retirement_that_is_being_recorded(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _ = past(world, tmp_path)
    path = f"/v1/requests/{asked(world.admin)['id']}/hold"
    answers: list[Response] = []
    holding = threading.Thread(target=lambda: answers.append(world.admin.put(path, json={"code": "legal_claims"})))
    record = retirement._record

    def held_meanwhile(*arguments: Any) -> None:
        holding.start()
        holding.join(0.5)
        assert holding.is_alive()  # or a version would go under a hold that its holder was told of
        record(*arguments)

    monkeypatch.setattr(retirement, "_record", held_meanwhile)
    assert send(world, old).status_code == 200
    holding.join(30)
    assert [each.status_code for each in answers] == [200]
    assert world.admin.delete(path).status_code == 204


def test_a_retirement_waits_for_a_hold_that_is_being_put_and_sees_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _ = past(world, tmp_path)
    path = f"/v1/requests/{asked(world.admin)['id']}/hold"
    answers: list[Response] = []
    retiring = threading.Thread(target=lambda: answers.append(send(world, old)))
    put = holds.legal_holds.put

    def retired_meanwhile(*arguments: Any) -> Any:
        held = put(*arguments)
        retiring.start()
        retiring.join(0.5)
        assert retiring.is_alive()
        return held

    monkeypatch.setattr(holds.legal_holds, "put", retired_meanwhile)
    assert world.admin.put(path, json={"code": "legal_claims"}).status_code == 200
    retiring.join(30)
    (answer,) = answers
    refused(answer, 409, "version-held", "version")
    assert world.admin.delete(path).status_code == 204


def test_a_quarantined_version_that_can_be_retried_goes_only_when_asked(world: World) -> None:
    assert register(world, "missed", world.directory).status_code == 201
    number, request_id = forgotten(world, "missed", Status.QUARANTINED)
    refused(send(world, number, "missed"), 409, "version-retriable", "version")
    assert send(world, number, "missed", quarantined=True).status_code == 200
    with world.lethe.store.read() as session:
        model = models.find(session, "missed")
        assert model is not None
        assert request_id not in checkpoints.lacking(session, checkpoints.head(session, model.id))


def test_what_a_queued_attack_needs_stays_and_what_is_retired_is_not_attacked(world: World, tmp_path: Path) -> None:
    request_id = attackable(world)
    version = world.admin.get(f"/v1/requests/{request_id}").json()["checkpoint"]
    asked = {"attacks": {"quantised_copies": {}}}
    job = world.admin.post(f"/v1/requests/{request_id}/attacks", json=asked).json()
    refused(send(world, version, quarantined=True), 409, "version-in-use", "version")
    assert world.admin.post(f"/v1/jobs/{job['id']}/cancel").status_code == 202
    assert send(world, version, quarantined=True).status_code == 200
    refused(world.admin.post(f"/v1/requests/{request_id}/attacks", json=asked), 409, "version-retired")


def running(world: World, model: str) -> jobs.Job:
    """A claimed job of the model."""
    _, request_id = forgotten(world, model, Status.QUARANTINED)
    with world.lethe.store.write() as session:
        request = session.get_one(requests.Request, request_id)
        requests.move(session, request_id, requests.Status.QUEUED, "test", "retried")
        request.due_at = -1.0
        jobs.add(session, jobs.of_rung(request, 0, 1))
        claimed = jobs.claim(session, "worker:test", 60.0)
        assert claimed is not None and claimed.model_id == request.model_id
        return claimed


def test_while_a_job_runs_that_reads_the_model_nothing_goes(world: World, tmp_path: Path) -> None:
    """Its own, whose manifest will point into the packs; or one that is judged by it."""
    old, _ = past(world, tmp_path)
    assert register(world, "judged", world.directory).status_code == 201
    running(world, "judged")
    with world.lethe.store.write() as session:
        judged, judge = models.find(session, "judged"), models.find(session, "digits")
        assert judged is not None and judge is not None
        judged.judge_id = judge.id
    refused(send(world, old), 409, "model-busy", "version")
    with world.lethe.store.write() as session:
        models.find(session, "judged").judge_id = None  # type: ignore[union-attr]
    running(world, "digits")
    refused(send(world, old), 409, "model-busy", "version")


def test_blobs_that_a_running_job_was_told_of_stay_until_it_ends(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that it was judged by when it started; or claimed while the retirement commits."""
    assert register(world, "told", world.directory).status_code == 201
    started: list[jobs.Job] = []
    record = retirement._record
    for when in ("before", "meanwhile"):
        old, _ = past(world, tmp_path)
        there = packs(world)
        started.clear()
        if when == "before":
            started.append(running(world, "told"))
        elif world.lethe.store.engine.dialect.name == "postgresql":

            def and_claimed(*args: Any) -> None:
                record(*args)
                started.append(running(world, "told"))

            monkeypatch.setattr(retirement, "_record", and_claimed)
        else:  # SQLite has one writer at a time
            continue
        gone = send(world, old).json()
        monkeypatch.undo()
        assert gone["status"] == "retired" and gone["retired"]["erased"] is False and there <= packs(world)
        sweeper.sweep(world.lethe)
        assert there <= packs(world)
        with world.lethe.store.write() as session:
            jobs.fail(session, started[0].id, started[0].lease_token, "worker:test", {"code": "test", "detail": ""})
        sweeper.sweep(world.lethe)
        assert world.admin.get(f"{PATH}/{old}").json()["retired"]["erased"] is True and not there <= packs(world)


def order(world: World, number: int | None) -> Order:
    return Order("digits", number, Code.ERASURE, False, "test")


def test_a_version_that_is_registered_meanwhile_makes_it_start_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its manifest points into packs that were to go."""
    old, head = past(world, tmp_path)
    there, stored = packs(world), retirement._store

    def and_another(*args: Any) -> Any:
        made = stored(*args)
        add_version(world, tmp_path, Status.QUARANTINED)
        return made

    monkeypatch.setattr(retirement, "_store", and_another)
    with pytest.raises(Refused) as error:
        retirement.retire(world.lethe, order(world, old))
    assert error.value.code == "model-changed" and there < packs(world) and len(packs(world)) == len(there) + 1
    monkeypatch.undo()
    assert contents(world, old) and contents(world, world.admin.get("/v1/models/digits").json()["head"])
    assert send(world, old).status_code == 200


def test_one_that_outlives_its_intents_starts_again_and_the_head_keeps_its_packs(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweeper takes what it stored for a dead upload's."""
    old, head = past(world, tmp_path)
    before, there, stored = contents(world, head), packs(world), retirement._store

    def and_swept(*args: Any) -> Any:
        made = stored(*args)
        with world.lethe.store.write() as session:
            session.query(intents.Intent).update({"created_at": 0.0})
        sweeper.delete_dead_blobs(world.lethe)
        return made

    monkeypatch.setattr(retirement, "_store", and_swept)
    with pytest.raises(Refused) as error:
        retirement.retire(world.lethe, order(world, old))
    assert error.value.code == "model-changed" and packs(world) == there and contents(world, head) == before
    monkeypatch.undo()
    assert send(world, old).status_code == 200 and contents(world, head) == before


def test_the_sweeper_leaves_packs_that_a_transaction_is_about_to_refer_to(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, head = past(world, tmp_path)
    before, fulfil = contents(world, head), intents.fulfil
    sweeping = threading.Thread(target=sweeper.delete_dead_blobs, args=(world.lethe,))

    def and_swept(*args: Any) -> bool:
        done = fulfil(*args)
        sweeping.start()
        sweeping.join(1.0)  # it waits for the transaction's end
        return done

    stored = retirement._store

    def and_old(*args: Any) -> Any:
        made = stored(*args)
        with world.lethe.store.write() as session:
            session.query(intents.Intent).update({"created_at": 0.0})
        return made

    monkeypatch.setattr(retirement, "_store", and_old)
    monkeypatch.setattr(intents, "fulfil", and_swept)
    retirement.retire(world.lethe, order(world, old))
    sweeping.join()
    assert contents(world, head) == before


class Killed(BaseException):
    """As if the process had died: nothing that tidies up runs after it."""


@pytest.mark.parametrize("step", ["declared", "packed", "stored", "recorded", "committed", "one erased"])
def test_a_crash_at_any_step_leaves_the_old_state_or_the_new_and_a_repeat_finishes(
    step: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, head = past(world, tmp_path)
    before, lethe = contents(world, head), world.lethe
    blobs = type(lethe.blobs)

    def killed(place: Any, name: str, when: Callable[..., bool] = lambda *_: True, after: bool = False) -> None:
        real = getattr(place, name)

        def dies(*args: Any, **options: Any) -> Any:
            made = real(*args, **options) if after else None
            if when(*args):
                monkeypatch.setattr(blobs, "delete", lambda *_: None)  # the dead delete nothing
                monkeypatch.setattr(intents, "fulfil", lambda *_: None)
                raise Killed
            return made if after else real(*args, **options)

        monkeypatch.setattr(place, name, dies)

    seen: list[str] = []
    match step:
        case "declared":
            killed(retirement, "_store")
        case "packed":
            killed(blobs, "put", lambda _, name, __: name.startswith("packs/"), after=True)
        case "stored":
            killed(retirement, "_store", after=True)
        case "recorded":
            killed(retirement, "_record", after=True)
        case "committed":
            real = retirement.erase_condemned
            killed(retirement, "erase_condemned", lambda *_: bool(seen.append("") or len(seen) > 1))
            assert real is not retirement.erase_condemned
        case "one erased":
            killed(blobs, "delete", after=True)
    with pytest.raises(Killed):
        retirement.retire(lethe, order(world, old))
    monkeypatch.undo()
    done = step in ("committed", "one erased")
    assert world.admin.get(f"{PATH}/{old}").json()["status"] == ("retired" if done else "superseded")
    assert contents(world, head) == before
    if done:
        assert world.admin.get(f"{PATH}/{old}").json()["retired"]["erased"] is False
        sweeper.sweep(lethe)
    else:
        assert contents(world, old) and send(world, old).status_code == 200
    assert world.admin.get(f"{PATH}/{old}").json()["retired"]["erased"] is True
    assert contents(world, head) == before
    with lethe.store.write() as session:
        session.query(intents.Intent).update({"created_at": 0.0})
    sweeper.delete_dead_blobs(lethe)
    assert contents(world, head) == before and packs(world) == named(world)


def named(world: World) -> set[str]:
    """Packs that a version of any model names as its own."""
    with world.lethe.store.read() as session:
        return {each.pack for each in session.query(Checkpoint) if each.pack}


def test_a_download_in_flight_goes_on_from_where_the_bytes_are_now(world: World, tmp_path: Path) -> None:
    old, head = past(world, tmp_path)
    before = contents(world, head)["model.safetensors"]
    streams = []
    for number in (head, old):
        checkpoint = find_checkpoint(world.lethe, "digits", str(number))[1]
        manifest = manifest_of(world.lethe, checkpoint)
        streams.append(_stream(world.lethe, checkpoint, manifest, "model.safetensors", 0, len(before)))
    first = [next(stream) for stream in streams]
    assert send(world, old).status_code == 200
    assert first[0] + b"".join(streams[0]) == before
    with pytest.raises(Exception, match="packs/|retired"):
        b"".join(streams[1])


def test_two_at_once_retire_once(world: World, tmp_path: Path) -> None:
    old, head = past(world, tmp_path)
    before, found = contents(world, head), []
    threads = [threading.Thread(target=lambda: found.append(send(world, old).status_code)) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert sorted(found)[0] == 200 and sorted(found)[1] in (409, 412) and contents(world, head) == before


def test_a_list_that_was_read_just_before_a_retirement_shows_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _ = past(world, tmp_path)
    with world.lethe.store.read() as session:
        model = models.find(session, "digits")
        assert model is not None
        read_before = checkpoints.of_model(session, model.id)
    gone = send(world, old).json()
    monkeypatch.setattr(checkpoints, "of_model", lambda session, model_id: read_before)
    answer = world.admin.get(PATH, params={"limit": 200})
    assert answer.status_code == 200 and gone in answer.json()["data"]
