"""Retention, legal holds and the proof of a purge over HTTP, on both databases; the job ends as a worker ends it."""

import hashlib
import threading
from typing import Any

import pytest

from app import sweeper
from app.audit import tree
from app.errors import NotFound, Refused
from app.named_erasure import erase_named
from app.privacy import proof, purge
from app.privacy.fingerprints import fingerprint
from app.privacy.images import decode, digest_of
from app.records import dataset as datasets
from app.records import job as jobs
from app.records import legal_hold as legal_holds
from app.records import request as requests
from app.records.dataset import Dataset
from app.records.legal_hold import Code
from app.records.request import Request
from app.returned_keys import destroy_returned
from tests import pictures
from tests.app.api.deployed import World, asked, audited, forget_set, refused
from tests.conftest import client_for

LABEL, IMAGES = 3, 3


def end(world: World, request_id: str, status: str = "completed", days_ago: float = 0.0) -> None:
    """The request as it stands so many days after it ended; nothing was purged meanwhile."""
    with world.lethe.store.write() as session:
        request = session.get_one(Request, request_id)
        jobs.ask_newest_to_cancel(session, request_id, "test")
        request.status = status
        session.flush()
        session.refresh(request)
        request.status = status
        request.finished_at = (request.finished_at or 0.0) - days_ago * requests.DAY


def uploaded(world: World, seed: int = 7) -> tuple[str, str]:
    """A queued request for an uploaded set: their ids."""
    made = forget_set(world.admin, body=pictures.imagefolder([LABEL], IMAGES, seed=seed))
    return asked(world.admin, forget={"dataset": made})["id"], made


def sweep(world: World, request_id: str) -> bool:
    """Whether it is purged after the sweeper's next round."""
    sweeper.purge_old_data(world.lethe)
    with world.lethe.store.read() as session:
        return session.get_one(Request, request_id).purged_at is not None


def keep_for(world: World, **days: float) -> dict[str, Any]:
    answer = world.admin.patch("/v1/models/digits", json={"retention": days}, headers={"If-Match": "*"})
    assert answer.status_code == 200, answer.text
    kept: dict[str, Any] = answer.json()["retention"]
    return kept


def hold(world: World, request_id: str, code: str = "legal_claims") -> Any:
    return world.admin.put(f"/v1/requests/{request_id}/hold", json={"code": code})


def test_a_model_says_how_long_and_what_it_does_not_say_is_the_deployment_s(world: World) -> None:
    assert world.admin.get("/v1/models/digits").json()["retention"] == {"completed_days": 0, "failed_days": 30}
    assert keep_for(world, completed_days=7) == {"completed_days": 7, "failed_days": 30}
    assert keep_for(world, failed_days=0.5) == {"completed_days": 0, "failed_days": 0.5}
    assert keep_for(world) == {"completed_days": 0, "failed_days": 30}


@pytest.mark.parametrize("days", [{"completed_days": -1}, {"failed_days": 3651}, {"completed_days": "7"}, {"days": 1}])
def test_days_out_of_bounds_are_refused(world: World, days: dict[str, Any]) -> None:
    answer = world.admin.patch("/v1/models/digits", json={"retention": days}, headers={"If-Match": "*"})
    refused(answer, 422, "invalid-input", f"body.retention.{next(iter(days))}")


@pytest.mark.parametrize(
    ("status", "name"),
    [("completed", "completed_days"), ("failed", "failed_days"), ("evaluation_failed", "failed_days")],
)
def test_a_set_stays_for_its_days_and_a_shorter_retention_works_at_once(world: World, status: str, name: str) -> None:
    keep_for(world, **{name: 7})
    request_id, _ = uploaded(world)
    end(world, request_id, status, days_ago=6.9)
    assert not sweep(world, request_id)
    keep_for(world, **{name: 6})
    assert sweep(world, request_id)
    keep_for(world)


@pytest.mark.parametrize("status", ["cancelled", "reopened"])
def test_who_can_neither_be_retried_nor_kept_is_purged_at_once(world: World, status: str) -> None:
    keep_for(world, completed_days=7, failed_days=7)
    request_id, _ = uploaded(world)
    end(world, request_id, status)
    assert sweep(world, request_id)
    keep_for(world)


def test_a_hold_stops_the_purge_and_its_end_lets_it_happen(world: World) -> None:
    request_id, dataset_id = uploaded(world)
    held = hold(world, request_id)
    assert held.status_code == 200 and held.json()["code"] == "legal_claims"
    assert held.json() == world.admin.get(f"/v1/requests/{request_id}").json()["hold"]
    end(world, request_id)
    assert not sweep(world, request_id) and world.lethe.keyring.exists(dataset_id)
    refused(world.admin.delete(f"/v1/datasets/{dataset_id}"), 409, "legal-hold")
    refused(world.admin.get(f"/v1/requests/{request_id}/purge"), 404, "not-found")
    assert world.admin.delete(f"/v1/requests/{request_id}/hold").status_code == 204
    assert world.admin.get(f"/v1/requests/{request_id}").json()["hold"] is None
    refused(world.admin.delete(f"/v1/requests/{request_id}/hold"), 404, "not-found")
    assert sweep(world, request_id) and not world.lethe.keyring.exists(dataset_id)
    actions = [entry["action"] for entry in audited(world, request=request_id)]
    assert [each for each in actions if "hold" in each or "held" in each or each.endswith(".purged")] == [
        "request.held", "request.hold_lifted", "dataset.purged", "request.purged",
    ]  # fmt: skip


def test_a_second_hold_is_refused_while_one_stands_and_the_same_one_changes_nothing(world: World) -> None:
    request_id, _ = uploaded(world)
    first = hold(world, request_id).json()
    assert hold(world, request_id).json() == first
    refused(hold(world, request_id, "audit"), 409, "hold-stands", "request")
    other, path = client_for(world.lethe, "approver"), f"/v1/requests/{request_id}/hold"
    for code in ("legal_claims", "authority_order"):  # its holder would think that it stands, and it would be lifted
        refused(other.put(path, json={"code": code}), 409, "hold-stands", "request")
    assert world.admin.get(f"/v1/requests/{request_id}").json()["hold"] == first
    assert world.admin.delete(path).status_code == 204
    assert other.put(path, json={"code": "authority_order"}).json()["code"] == "authority_order"
    details = [entry["details"] for entry in audited(world, request=request_id, action="request.held")]
    assert details == [{"code": "legal_claims"}, {"code": "authority_order"}]
    refused(hold(world, request_id, "because"), 422, "invalid-input", "body.code")


def test_what_was_purged_or_is_being_deleted_cannot_be_held(world: World) -> None:
    request_id, _ = uploaded(world)
    end(world, request_id)
    assert sweep(world, request_id)
    refused(hold(world, request_id), 409, "forget-set-purged")
    request_id, dataset_id = uploaded(world)
    end(world, request_id, "failed")
    assert world.admin.delete(f"/v1/datasets/{dataset_id}").status_code == 204
    refused(hold(world, request_id), 409, "forget-set-purged")


def test_of_a_hold_and_a_purge_at_once_one_wins_and_the_other_sees_it(world: World) -> None:
    """The hold is taken while the purge waits for the request's row."""
    request_id, dataset_id = uploaded(world)
    end(world, request_id)
    lethe = world.lethe
    purging = threading.Thread(
        target=purge.purge_request, args=(lethe.store, lethe.keyring, lethe.blobs, request_id, lethe.settings)
    )
    with lethe.store.write() as session:
        requests.hold(session, request_id)
        purging.start()
        purging.join(0.5)
        assert purging.is_alive()
        legal_holds.put(session, request_id, Code.AUDIT, "test")
    purging.join(30)
    assert lethe.keyring.exists(dataset_id) and not sweep(world, request_id)


def test_a_purge_is_proven_by_what_it_destroyed_and_which_images_that_were(world: World) -> None:
    request_id, dataset_id = uploaded(world, seed=77)
    lethe = world.lethe
    with lethe.store.read() as session:
        dataset = session.get_one(Dataset, dataset_id)
    sealed = [(lethe.blobs.root / name).read_bytes() for name in (dataset.blob, dataset.index_blob)]
    end(world, request_id)
    assert sweep(world, request_id)
    found = world.admin.get(f"/v1/requests/{request_id}/purge").json()
    assert found["objects"] == [{"bytes": len(each), "sha256": hashlib.sha256(each).hexdigest()} for each in sealed]
    assert hashlib.sha256(dataset_id.encode()).hexdigest() in found["keys"]
    images = pictures.folder([LABEL], IMAGES, seed=77).values()  # who has them all, and the key
    key = lethe.keyring.named_key("fingerprint")
    marks = sorted(bytes.fromhex(fingerprint(key, digest_of(decode(each, "image")))) for each in images)
    assert found["samples"] == {"count": 3, "leaves": 3, "root": tree.root(marks).hex(), "key": "fingerprint"}
    assert (found["now"]["keys_present"], found["now"]["objects_present"]) == (0, 0)
    (entry,) = audited(world, request=request_id, action="request.purged")
    assert entry["details"] == {name: found[name] for name in ("method", "set", "objects", "keys", "samples")}
    (entry,) = audited(world, request=request_id, action="dataset.purged")
    assert entry["details"]["samples"] == found["samples"]


def test_a_proof_says_so_when_a_key_file_came_back(world: World) -> None:
    request_id, dataset_id = uploaded(world)
    end(world, request_id)
    assert sweep(world, request_id)
    world.lethe.keyring.new_key(dataset_id)
    world.lethe.blobs.put(f"datasets/{dataset_id}/images", b"x")
    found = world.admin.get(f"/v1/requests/{request_id}/purge").json()["now"]
    assert (found["keys_present"], found["objects_present"]) == (1, 1)


def test_a_registered_set_stays_and_the_proof_tells_which_samples_were_forgotten(world: World) -> None:
    request_id = asked(world.admin, forget={"samples": ["0/0", "1/1"]})["id"]
    end(world, request_id)
    assert sweep(world, request_id)
    found = world.admin.get(f"/v1/requests/{request_id}/purge").json()
    assert found["objects"] == [] and found["samples"]["count"] == 2
    assert world.admin.get("/v1/datasets/train-set").json()["purged_at"] is None


def test_a_purge_that_was_interrupted_after_the_key_still_proves_what_it_destroyed(world: World) -> None:
    request_id, dataset_id = uploaded(world)
    end(world, request_id)
    lethe = world.lethe
    proof.keep_of_request(lethe.store, lethe.keyring, lethe.blobs, request_id)
    lethe.keyring.destroy(dataset_id)
    lethe.blobs.delete(f"datasets/{dataset_id}/images")
    assert sweep(world, request_id)
    found = world.admin.get(f"/v1/requests/{request_id}/purge").json()
    assert len(found["objects"]) == 2 and found["samples"]["count"] == 3


def test_a_set_that_its_owner_deleted_is_proven_in_the_request_s_purge_too(world: World) -> None:
    request_id, dataset_id = uploaded(world)
    end(world, request_id, "failed", days_ago=31)
    assert world.admin.delete(f"/v1/datasets/{dataset_id}").status_code == 204
    (entry,) = audited(world, resource=dataset_id, action="dataset.purged")
    assert sweep(world, request_id)
    found = world.admin.get(f"/v1/requests/{request_id}/purge").json()
    assert found["objects"] == entry["details"]["objects"] and len(found["objects"]) == 2


@pytest.mark.parametrize("status", ["denied", "expired", "cancelled", "failed", "evaluation_failed"])
def test_what_a_request_named_goes_with_its_set_unless_it_completed(world: World, status: str) -> None:
    dataset_id = forget_set(world.admin)
    request_id = asked(world.admin, forget={"dataset": dataset_id}, concept="anna")["id"]
    assert hold(world, request_id).status_code == 200
    end(world, request_id, status, days_ago=31)
    assert not sweep(world, request_id)
    assert world.admin.get(f"/v1/requests/{request_id}").json()["concept"] == "anna"
    assert world.admin.delete(f"/v1/requests/{request_id}/hold").status_code == 204
    assert sweep(world, request_id) and not world.lethe.keyring.exists(request_id)
    assert world.admin.get(f"/v1/requests/{request_id}").json()["concept"] is None
    found = world.admin.get(f"/v1/requests/{request_id}/purge").json()
    assert hashlib.sha256(request_id.encode()).hexdigest() in found["keys"] and found["samples"]["count"] == 3
    world.lethe.keyring.new_key(request_id)  # an older copy of the key folder was restored
    assert world.admin.get(f"/v1/requests/{request_id}/purge").json()["now"]["keys_present"] == 1
    destroy_returned(world.lethe, "test")
    assert world.admin.get(f"/v1/requests/{request_id}/purge").json()["now"]["keys_present"] == 0


@pytest.mark.parametrize("status", ["completed", "reopened"])
def test_what_a_completed_request_named_stays_to_be_asked_again(world: World, status: str) -> None:
    request_id = asked(world.admin, concept="anna")["id"]
    end(world, request_id, status, days_ago=31)
    assert sweep(world, request_id)
    destroy_returned(world.lethe, "test")
    assert world.admin.get(f"/v1/requests/{request_id}").json()["concept"] == "anna"


def test_what_a_failed_request_named_stays_while_it_may_be_retried(world: World) -> None:
    request_id = asked(world.admin, concept="anna")["id"]
    end(world, request_id, "failed", days_ago=29)
    assert not sweep(world, request_id)
    assert world.admin.get(f"/v1/requests/{request_id}").json()["concept"] == "anna"
    assert world.admin.post(f"/v1/requests/{request_id}/retry").status_code == 202


def test_what_a_completed_request_named_is_erased_at_a_word_and_no_older_key_folder_brings_it_back(
    world: World,
) -> None:
    request_id = asked(world.admin, concept="anna")["id"]
    refused_as(world, request_id, "not-completed")
    keep_for(world, completed_days=1)
    end(world, request_id)
    refused_as(world, request_id, "not-purged")
    keep_for(world)
    assert sweep(world, request_id)
    path = world.lethe.keyring.folder / f"data/{request_id}.key"
    backup = path.read_bytes()
    assert erase_named(world.lethe, request_id, "person_asked")
    (entry,) = audited(world, request=request_id, action="request.named_erased")
    assert entry["details"] == {"code": "person_asked", "key": hashlib.sha256(request_id.encode()).hexdigest()}
    shown = world.admin.get(f"/v1/requests/{request_id}").json()
    assert not path.exists() and shown["concept"] is None
    with world.lethe.store.read() as session:
        request = session.get_one(Request, request_id)
    assert (request.sealed, request.fingerprint) == (b"", None)
    path.write_bytes(backup)
    path.chmod(0o600)
    assert world.admin.get(f"/v1/requests/{request_id}").json() == shown
    assert world.admin.get(f"/v1/requests/{request_id}/purge").json()["now"]["keys_present"] == 1
    destroy_returned(world.lethe, "test")
    assert world.admin.get(f"/v1/requests/{request_id}/purge").json()["now"]["keys_present"] == 0
    assert not erase_named(world.lethe, request_id, "other")
    assert len(audited(world, request=request_id, action="request.named_erased")) == 1
    with pytest.raises(NotFound):
        erase_named(world.lethe, "req_nobody", "other")


@pytest.mark.parametrize("status", ["completed", "denied"])
def test_the_ids_that_others_gave_a_request_are_erased_with_what_it_named(world: World, status: str) -> None:
    request_id = asked(world.admin, external_id="crm-4711")["id"]
    with world.lethe.store.write() as session:
        session.get_one(Request, request_id).verification = {"outcome": "verified", "reference": "check/4711"}
    end(world, request_id, status)
    assert sweep(world, request_id)
    (found,) = world.admin.get("/v1/requests", params={"external_id": "crm-4711"}).json()["data"]
    assert found["id"] == request_id
    assert erase_named(world.lethe, request_id, "person_asked")
    with world.lethe.store.read() as session:
        request = session.get_one(Request, request_id)
    assert (request.external_id, request.sealed) == (None, b"")
    assert request.verification == {"outcome": "verified", "reference": None}
    assert not erase_named(world.lethe, request_id, "person_asked")
    assert world.admin.get(f"/v1/requests/{request_id}").json()["external_id"] is None


def refused_as(world: World, request_id: str, code: str) -> None:
    with pytest.raises(Refused) as refusal:
        erase_named(world.lethe, request_id, "other")
    assert (refusal.value.code, refusal.value.status) == (code, 409) and world.lethe.keyring.exists(request_id)


def test_a_proof_that_was_kept_before_a_retry_names_the_retry_s_keys_too(world: World) -> None:
    request_id, dataset_id = uploaded(world)
    end(world, request_id, "failed", days_ago=31)
    lethe = world.lethe
    proof.keep_of_request(lethe.store, lethe.keyring, lethe.blobs, request_id)
    assert hold(world, request_id).status_code == 200  # just before the purge's own transaction
    purge.purge_request(lethe.store, lethe.keyring, lethe.blobs, request_id, lethe.settings)
    assert world.admin.post(f"/v1/requests/{request_id}/retry").status_code == 202
    end(world, request_id)
    with lethe.store.read() as session:
        work = [job.key_id for job in jobs.of_request(session, request_id)]
    assert world.admin.delete(f"/v1/requests/{request_id}/hold").status_code == 204
    assert sweep(world, request_id)
    found = world.admin.get(f"/v1/requests/{request_id}/purge").json()
    assert len(work) == 2
    assert found["keys"] == sorted(hashlib.sha256(each.encode()).hexdigest() for each in [*work, dataset_id])
    (entry,) = audited(world, request=request_id, action="request.purged")
    assert entry["details"]["keys"] == found["keys"] and len(found["objects"]) == 2


def test_a_request_is_purged_after_its_set_whose_deletion_was_interrupted(world: World) -> None:
    request_id, dataset_id = uploaded(world)
    end(world, request_id)
    lethe = world.lethe
    with lethe.store.write() as session:
        assert datasets.withdraw(session, dataset_id)
    purge.purge_request(lethe.store, lethe.keyring, lethe.blobs, request_id, lethe.settings)
    refused(world.admin.get(f"/v1/requests/{request_id}/purge"), 404, "not-found")
    assert not sweep(world, request_id) and not lethe.keyring.exists(dataset_id)
    assert sweep(world, request_id)
    found = world.admin.get(f"/v1/requests/{request_id}/purge").json()
    assert len(found["objects"]) == 2 and found["samples"]["count"] == 3
    assert (found["now"]["keys_present"], found["now"]["objects_present"]) == (0, 0)


def test_a_set_that_its_owner_deletes_while_it_is_digested_is_proven_by_the_deletion(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_id, dataset_id = uploaded(world)
    end(world, request_id)
    selected, deleted = proof._selected, []

    def deleted_meanwhile(*arguments: Any) -> Any:
        if not deleted:
            deleted.append(world.admin.delete(f"/v1/datasets/{dataset_id}").status_code)
        return selected(*arguments)

    monkeypatch.setattr(proof, "_selected", deleted_meanwhile)
    assert not sweep(world, request_id) and deleted == [204]
    assert sweep(world, request_id)
    found = world.admin.get(f"/v1/requests/{request_id}/purge").json()
    assert len(found["objects"]) == 2 and found["samples"]["count"] == 3
