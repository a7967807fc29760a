"""/v1/audit: who did what when, in one order; its head and its export."""

import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from app.audit import canonical, chain, sequencer
from app.audit.verify import Broken, read_head, verify
from app.deployment import Deployment
from app.records import history
from tests.app.api.deployed import World, asked, audited, refused, register, stored, upload_set
from tests.conftest import client_for


def exported(world: World, **query: int) -> bytes:
    answer = world.admin.get("/v1/audit/export", params=query)
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/jsonl"
    return bytes(answer.content)


def head(world: World) -> dict[str, Any]:
    answer = world.admin.get("/v1/audit/head")
    assert answer.status_code == 200
    document: dict[str, Any] = answer.json()
    return document


def test_the_audit_is_filtered_by_request_actor_action_resource_and_time(world: World) -> None:
    start = datetime.now(UTC) - timedelta(seconds=2)
    first, second = asked(world.requester), asked(world.stranger)
    world.admin.post(f"/v1/requests/{first['id']}/cancel")

    def found(**filters: str) -> list[tuple[str, str]]:
        return [(entry["action"], entry["resource"]) for entry in audited(world, **filters)]

    job = first["jobs"][0]["id"]
    assert found(request=first["id"]) == [
        ("request.received", first["id"]), ("job.queued", job), ("job.cancelled", job), ("request.cancelled", first["id"]),
        ("request.purged", first["id"]),
    ]  # fmt: skip
    assert found(resource=second["id"]) == [("request.received", second["id"])]
    (entry,) = audited(world, request=first["id"], action="request.cancelled")
    assert entry["request"] == first["id"] and entry["actor"].startswith("key:")
    assert found(actor=entry["actor"], request=first["id"]) == [
        ("job.cancelled", job),
        ("request.cancelled", first["id"]),
    ]
    assert found(action="request.received", actor=entry["actor"], request=first["id"]) == []
    everything = found(since=start.isoformat())
    assert set(found(request=first["id"])) <= set(everything)
    assert found(since=start.isoformat(), until=start.isoformat()) == []
    assert found(until="1990-01-01T00:00:00Z") == [] and found(since=(start + timedelta(days=1)).isoformat()) == []


def test_the_audit_is_paged_by_numbers_without_gaps(world: World) -> None:
    for _ in range(3):
        asked(world.requester)
    audited(world)
    seen, after = [], None
    while True:
        page = world.admin.get("/v1/audit", params={"limit": 3} | ({"after": after} if after else {})).json()
        seen += [entry["seq"] for entry in page["data"]]
        if not page["has_more"]:
            break
        after = page["next"]
    assert seen == list(range(1, stored(world.lethe)[0]["history"] + 1)) and len(seen) > 6
    for cursor in ("x", "99999999999", "-1"):
        refused(world.admin.get("/v1/audit", params={"after": cursor}), 422, "bad-cursor", "after")
    refused(world.admin.get("/v1/audit?since=yesterday"), 422, "invalid-input", "query.since")


def test_what_was_just_committed_waits_for_its_number(world: World) -> None:
    audited(world)
    made = asked(world.requester)
    assert world.admin.get("/v1/audit", params={"request": made["id"]}).json()["data"] == []
    assert [entry["action"] for entry in audited(world, request=made["id"])] == ["request.received", "job.queued"]


def test_the_audit_tells_of_uploads_and_keys_without_their_content(world: World) -> None:
    uploads = audited(world, action="dataset.uploaded")
    assert {tuple(sorted(entry["details"])) for entry in uploads} == {("count", "role")}
    issued = audited(world, action="key.issued")
    assert {entry["details"]["role"] for entry in issued} == {"admin", "requester"} and issued[0]["actor"] == "test"


def test_an_export_names_no_concept_label_sample_set_model_key_or_case(world: World) -> None:
    names = ("anna-smith", "case-1984", "named-set", "named-model", "named-key")
    assert upload_set(world.admin, "retain", "named-set").status_code == 201
    assert register(world, "named-model", world.directory, train="train-set", retain="named-set").status_code == 201
    assert world.admin.post("/v1/keys", json={"name": "named-key", "role": "requester"}).status_code == 201
    made = asked(world.requester, concept="anna-smith", external_id="case-1984", forget={"samples": ["2/4"]})
    labelled = asked(world.requester, forget={"class_label": "3"})
    said = {entry["seq"]: entry["details"] for each in (made, labelled) for entry in audited(world, request=each["id"])}
    assert len(said) == 4 and not {"3", "2/4"} & {value for details in said.values() for value in details.values()}
    told = exported(world).decode()
    assert [name for name in (*names, "2/4", "train-set", "digits") if name in told] == [] and made["id"] in told


def test_an_entry_of_a_page_has_all_that_its_hashes_need(world: World) -> None:
    first, second = audited(world)[:2]
    link = bytes.fromhex(first["link"])
    leaf, linked = second.pop("leaf"), second.pop("link")
    assert chain.leaf_of(second).hex() == leaf and chain.link_of(link, bytes.fromhex(leaf)).hex() == linked


def test_an_export_of_everything_ends_with_the_head_and_holds_what_the_pages_hold(world: World) -> None:
    for _ in range(2):
        asked(world.requester)
    audited(world)
    document, whole = head(world), exported(world)
    kept = read_head(canonical.encode(document) + b"\n")
    assert verify(io.BytesIO(whole), since=[kept], against=kept).head == kept
    assert document["size"] == len(whole.splitlines()) - 1 and document["time"].endswith("Z")
    lines = [json.loads(line) for line in whole.splitlines()[1:]]
    after = str(document["size"] - 5)
    assert [{**line["entry"], "leaf": line["leaf"], "link": line["link"]} for line in lines[-5:]] == audited(
        world, after=after
    )


def test_parts_of_the_log_join_at_their_heads(world: World) -> None:
    asked(world.requester)
    audited(world)
    size = head(world)["size"]
    for cut in (0, 1, size - 1, size):
        earlier = verify(io.BytesIO(exported(world, to=cut))).head
        later = io.BytesIO(exported(world, **{"from": cut + 1}))
        assert earlier.size == cut and verify(later, since=[earlier]).head.size == size
    middle = verify(io.BytesIO(exported(world, **{"from": 3, "to": 5})))
    assert (middle.first, middle.head.size) == (3, 5)
    with pytest.raises(Broken, match="begins after"):
        verify(io.BytesIO(exported(world, **{"from": 4})), since=[chain.Head(2, b"")])


@pytest.mark.parametrize(("query", "code", "field"), [
    ({"from": 0}, "invalid-input", "query.from"), ({"to": -1}, "invalid-input", "query.to"),
    ({"from": "x"}, "invalid-input", "query.from"), ({"to": 10**7}, "out-of-bounds", "to"),
    ({"from": 10**7}, "out-of-bounds", "from"), ({"from": 4, "to": 2}, "out-of-bounds", "from"),
    ({"to": 10**30}, "out-of-bounds", "to"),
])  # fmt: skip
def test_an_export_beyond_the_log_is_refused(world: World, query: dict[str, Any], code: str, field: str) -> None:
    audited(world)
    refused(world.admin.get("/v1/audit/export", params=query), 422, code, field)


TAMPERING = {
    "an entry's row is changed": ["UPDATE history SET actor = 'key:nobody' WHERE resource = 'thing-3'"],
    "an entry is removed": [
        "DELETE FROM audit WHERE history_id = (SELECT id FROM history WHERE resource = 'thing-3')",
        "DELETE FROM history WHERE resource = 'thing-3'",
    ],
}


@pytest.mark.parametrize("statements", TAMPERING.values(), ids=TAMPERING)
def test_what_was_done_behind_the_triggers_shows_in_the_export(lethe: Deployment, statements: list[str]) -> None:
    admin = client_for(lethe)  # the first entry is its key's
    with lethe.store.write() as session:
        for number in range(2, 6):
            history.write(session, "test", "thing.done", f"thing-{number}")
    assert sequencer.integrate(lethe.store) == 5
    assert verify(io.BytesIO(admin.get("/v1/audit/export").content)).head.size == 5
    drop = (
        ["DROP TRIGGER audit_no_delete", "DROP TRIGGER history_no_delete", "DROP TRIGGER history_no_update"]
        if lethe.store.engine.dialect.name == "sqlite"
        else ["ALTER TABLE audit DISABLE TRIGGER USER", "ALTER TABLE history DISABLE TRIGGER USER"]
    )
    with lethe.store.write() as session:
        for statement in drop + statements:
            session.execute(text(statement))
    with pytest.raises(Broken, match=r"line 4 \(seq 3\): (changed|removed)"):
        verify(io.BytesIO(admin.get("/v1/audit/export").content))
