"""/v1/models/{name}/aliases: set, moved, removed, read as a version, and two at once."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.records import checkpoint as checkpoints
from app.records import model as models
from app.records.base import new_id
from app.records.checkpoint import Checkpoint, Status
from tests.app.api.deployed import Response, World, add_version, audited, forgotten, refused, register, stored

NEW = {"If-None-Match": "*"}


def place(world: World, model: str, versions: int = 0) -> str:
    """Register a model, let requests make further versions of it, and give the path of its aliases."""
    assert register(world, model, world.directory).status_code == 201
    for _ in range(versions):
        forgotten(world, model)
    return f"/v1/models/{model}/aliases"


def put(world: World, path: str, version: int, reason: str = "release", **headers: str) -> Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()} or NEW
    return world.admin.put(path, json={"version": version, "reason": reason}, headers=sent)


def at_once(*calls: Callable[[], Response]) -> list[int]:
    """The statuses of calls that start together, sorted."""
    barrier, statuses = threading.Barrier(len(calls)), list[int]()

    def run(call: Callable[[], Response]) -> None:
        barrier.wait()
        statuses.append(call().status_code)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(statuses)


def test_an_alias_is_made_moved_and_removed_and_every_move_is_kept(world: World) -> None:
    path = place(world, "served")
    made = put(world, f"{path}/production", 1, "first release")
    assert made.status_code == 201 and made.headers["location"] == f"{path}/production"
    assert (made.json()["version"], made.json()["status"]) == (1, "released")
    number, _ = forgotten(world, "served")
    stale, fresh = made.headers["etag"], world.requester.get(f"{path}/production")
    assert fresh.json()["status"] == "superseded" and fresh.headers["etag"] != stale
    moved = put(world, f"{path}/production", number, "second release", If_Match=fresh.headers["etag"])
    assert (
        moved.status_code == 200 and moved.json()["version"] == number == world.requester.get(path).json()[0]["version"]
    )
    gone = world.admin.delete(
        f"{path}/production", params={"reason": "retired"}, headers={"If-Match": moved.headers["etag"]}
    )
    assert gone.status_code == 204 and world.requester.get(path).json() == []
    refused(world.requester.get(f"{path}/production"), 404, "not-found")
    moves = world.admin.get(f"{path}/production/history").json()["data"]
    assert [(move["kind"], move["from_version"], move["to_version"], move["reason"]) for move in moves] == [
        ("created", None, 1, "first release"), ("moved", 1, number, "second release"), ("removed", number, None, "retired")
    ]  # fmt: skip
    assert all(move["actor"].startswith("key:") and move["at"].endswith("Z") for move in moves)
    model = world.admin.get("/v1/models/served").json()["id"]
    entries = audited(world, resource=f"{model}:production")
    assert [entry["action"] for entry in entries] == ["alias.created", "alias.moved", "alias.removed"]
    assert entries[1]["details"] == {"from": 1, "to": number, "reason": "second release", "reopened": []}


def test_moves_are_paged(world: World) -> None:
    path = place(world, "paged")
    put(world, f"{path}/production", 1)
    for version in (forgotten(world, "paged")[0] for _ in range(4)):
        put(world, f"{path}/production", version, If_Match="*")
    seen, after = [], None
    while True:
        page = world.admin.get(f"{path}/production/history", params={"limit": 2} | ({"after": after} if after else {}))
        seen += [move["to_version"] for move in page.json()["data"]]
        assert len(page.json()["data"]) <= 2 and ("link" in page.headers) == page.json()["has_more"]
        if not page.json()["has_more"]:
            break
        after = page.json()["next"]
    assert seen == [1, 2, 3, 4, 5]
    refused(world.admin.get(f"{path}/production/history?after=x"), 422, "bad-cursor", "after")
    refused(world.admin.get(f"{path}/staging/history"), 404, "not-found")
    refused(world.requester.get(f"{path}/production/history"), 403, "missing-scope")


def test_only_released_versions_are_set_and_a_refusal_stores_nothing(world: World) -> None:
    path = f"{place(world, 'strict', versions=1)}/production"
    quarantined, _ = forgotten(world, "strict", Status.QUARANTINED)
    before = stored(world.lethe)
    problem = refused(put(world, path, 1), 409, "version-superseded", "version")
    assert "rollback" in problem["errors"][0]["remedy"]
    refused(put(world, path, quarantined), 409, "version-quarantined", "version")
    refused(put(world, path, 99), 404, "not-found")
    for body in ({"version": 2}, {"version": 2, "reason": " "}, {"version": 0, "reason": "x"}, {"reason": "x"},
                 {"version": True, "reason": "x"}, {"version": 2**31, "reason": "x"}, {"version": 2, "reason": "x" * 501}):  # fmt: skip
        refused(world.admin.put(path, json=body, headers=NEW), 422, "invalid-input")
    assert stored(world.lethe) == before


@pytest.mark.parametrize("name", ["head", "3", "Production", "a_b", "-a", "a" * 51, "prod.1", "é"])
def test_names_that_are_none(world: World, name: str) -> None:
    refused(put(world, f"/v1/models/digits/aliases/{name}", 1), 422, "bad-alias-name", "alias")


def test_changes_need_the_present_etag(world: World) -> None:
    path = f"{place(world, 'etags', versions=1)}/production"
    body = {"version": 2, "reason": "x"}
    refused(world.admin.put(path, json=body), 428, "precondition-required", "If-Match")
    refused(world.admin.put(path, json=body, headers={"If-None-Match": '"1"'}), 428, "precondition-required")
    refused(put(world, path, 2, If_Match="*"), 412, "precondition-failed")
    etag = put(world, path, 2).headers["etag"]
    refused(put(world, path, 2), 412, "precondition-failed")
    for stale in ('"0-released"', f"W/{etag}", etag.strip('"')):
        refused(put(world, path, 2, If_Match=stale), 412, "precondition-failed")
        refused(world.admin.delete(path, params={"reason": "x"}, headers={"If-Match": stale}), 412)
    refused(world.admin.delete(path, params={"reason": "x"}), 428, "precondition-required", "If-Match")
    refused(world.admin.delete(path, headers={"If-Match": etag}), 422, "invalid-input", "query.reason")
    same = put(world, path, 2, If_Match=f'"other", {etag}')
    assert same.status_code == 200 and same.headers["etag"] == etag  # nothing moved, so nothing is kept
    assert len(world.admin.get(f"{path}/history").json()["data"]) == 1
    unchanged = world.requester.get(path, headers={"If-None-Match": etag})
    assert (unchanged.status_code, unchanged.content, unchanged.headers["etag"]) == (304, b"", etag)
    refused(world.requester.put(path, json=body, headers=NEW), 403, "missing-scope")
    put(world, path, 2, If_Match=etag)
    world.admin.delete(path, params={"reason": "x"}, headers={"If-Match": etag})
    assert put(world, path, 2).headers["etag"] != etag  # an alias of the same name is another one


def test_of_moves_at_once_one_wins(world: World) -> None:
    path = f"{place(world, 'raced', versions=1)}/production"
    assert at_once(*[lambda: put(world, path, 2)] * 4) == [201, 412, 412, 412]
    third, _ = forgotten(world, "raced")
    etag = world.admin.get(path).headers["etag"]
    assert at_once(*[lambda: put(world, path, third, If_Match=etag)] * 4) == [200, 412, 412, 412]
    kinds = [move["kind"] for move in world.admin.get(f"{path}/history").json()["data"]]
    assert kinds == ["created", "moved"]


def test_a_move_waits_for_the_request_that_completes_and_is_then_refused(world: World) -> None:
    path, statuses = f"{place(world, 'overtaken', versions=1)}/production", list[int]()
    thread = threading.Thread(target=lambda: statuses.append(put(world, path, 2).status_code))
    with world.lethe.store.write() as session:
        model = models.find(session, "overtaken")
        assert model is not None
        head = checkpoints.head(session, model.id)
        newer = Checkpoint(id=new_id("ckpt"), model_id=model.id, parent_id=head.id, status=Status.RELEASED,
                           manifest=head.manifest, digest=head.digest, changes={}, report={})  # fmt: skip
        checkpoints.add(session, newer, "worker:test")
        checkpoints.supersede_before(session, newer, "worker:test")
        session.flush()
        thread.start()
        thread.join(timeout=0.7)  # it has checked the ETag and waits for this transaction
        assert thread.is_alive()
    thread.join()
    assert statuses == [409] and world.admin.get(path).status_code == 404


def test_an_alias_is_read_wherever_a_version_is(world: World, tmp_path: Path) -> None:
    number, directory = add_version(world, tmp_path)
    put(world, "/v1/models/digits/aliases/production", number)
    base = "/v1/models/digits/checkpoints"
    assert world.requester.get(f"{base}/production").json()["number"] == number
    assert world.requester.get(f"{base}/production/report").json()["verdict"] == "passed"
    content = (directory / "config.json").read_bytes()
    assert world.requester.get(f"{base}/production/files/config.json").content == content
    archive = world.requester.get(f"{base}/production/archive")
    assert f"digits-{number}.zip" in archive.headers["content-disposition"]
    refused(world.requester.get(f"{base}/staging"), 404, "not-found")
    add_version(world, tmp_path, supersede=True)
    refused(world.requester.get(f"{base}/production/archive"), 403, "missing-scope")
    refused(world.admin.get(f"{base}/production/archive"), 422, "reason-missing", "reason")


@pytest.mark.parametrize("statement", ["UPDATE alias_moves SET reason = 'x'", "DELETE FROM alias_moves"])
def test_the_database_refuses_to_change_moves(world: World, statement: str) -> None:
    put(world, f"{place(world, f'kept-{statement[:6].lower()}')}/production", 1)
    with pytest.raises(DBAPIError, match="append-only"), world.lethe.store.write() as session:
        session.execute(text(statement))
