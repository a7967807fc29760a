"""Every verdict of a line of requests, through server and worker: pass, a promise kept, one that nobody can ask, one broken
and its version quarantined, then released by a person.

Override by HTTP, with each refusal and on both databases: tests/app/api/test_override.py. Which cheats miss the default
policies: tests/worker/trained/test_class_diffusion_cheats.py.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from tests import pictures, tiny
from tests.running import Running

FORGOTTEN = {"metric": "unlearning_accuracy", "rule": "at_least"}
POLICY = {"class_label": [{**FORGOTTEN, "value": 95.0}], "samples": [{**FORGOTTEN, "value": 0.0}]}
TEACH = {"epochs": 30, "batch_size": 8, "learning_rate": 0.3}  # until it answers what the retain set is called


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Embedded: what is held lies behind the database."""
    folder = tmp_path_factory.mktemp("promises")
    deployment = Running(folder / "lethe")
    try:
        deployment.start("server", "gpu")
        for role, seed in (("train", 1), ("test", 2)):
            deployment.client.upload_dataset(pictures.imagefolder(seed=seed), role, f"digits-{role}")
        deployment.client.register_model(
            tiny.write("vit", folder / "digits"), "digits", "image_classifier",
            train="digits-train", retain="digits-train", test="digits-test", policy=POLICY,
        )  # fmt: skip
        yield deployment
    finally:
        deployment.stop()


def forget(running: Running, what: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The request as it ended, and its version's report."""
    client = running.client
    done = client.wait(client.request("digits", what, method="finetune", recipe=TEACH)["id"])
    return done, client.report("digits", done["checkpoint"])


def test_a_promise_holds_until_a_retain_set_teaches_the_label_again(running: Running) -> None:
    client = running.client
    uploaded = client.upload_dataset(pictures.imagefolder([3], 3, seed=9), "forget")
    first, report = forget(running, {"dataset": uploaded["id"]})
    assert (first["status"], report["promises"], report["reasons"]) == ("completed", [], [])
    second, report = forget(running, {"class_label": "0"})
    assert second["status"] == "completed"
    purged = {"request": first["id"], "kind": "samples", "probe": None, "figures": [], "kept": None}
    assert report["promises"] == [{**purged, "reason": "forget_set_purged"}]
    kept_then = {row["metric"]: row["n"] for row in report["figures"]}
    assert kept_then["test_accuracy"] == 18  # 24 images without those of label 0

    third, report = forget(running, {"class_label": "1"})
    assert third["status"] == "completed"
    (unasked, held) = report["promises"]
    assert unasked["reason"] == "forget_set_purged"
    assert (held["request"], held["probe"], held["kept"], held["reason"]) == (second["id"], "samples", True, None)
    (figure,) = held["figures"]
    assert (figure["value"], figure["n"], figure["passed"]) == (100.0, 6, True)
    assert figure["threshold"] == {"rule": "at_least", "value": 95.0}
    assert {row["metric"]: row["n"] for row in report["figures"]}["test_accuracy"] == 12  # nor those of label 0

    client.upload_dataset(pictures.imagefolder([0], 12, seed=20), "retain", "digits-new")
    patch = {"retain": "digits-new"}
    client.call("PATCH", "/v1/models/digits", json=patch, headers={"If-Match": "*"})
    refused = client.wait(client.request("digits", {"class_label": "2"}, method="finetune", recipe=TEACH)["id"])
    assert (refused["status"], refused["reason"]) == ("failed", "nothing_retained")  # it holds nothing else

    client.upload_dataset(two_labels(), "retain", "digits-newer")
    client.call("PATCH", "/v1/models/digits", json={"retain": "digits-newer"}, headers={"If-Match": "*"})
    fourth, report = forget(running, {"class_label": "2"})
    assert (fourth["status"], fourth["reason"]) == ("evaluation_failed", "broken_promise")
    assert (report["verdict"], report["reasons"]) == ("failed", ["broken_promise"])
    assert [each["kept"] for each in report["promises"]] == [None, False, True]
    (figure,) = report["promises"][1]["figures"]
    assert figure["value"] < 95 and figure["then"] == 100.0 and figure["passed"] is False
    assert client.call("GET", "/v1/models/digits")["head"] == third["checkpoint"]
    version = client.call("GET", f"/v1/models/digits/checkpoints/{fourth['checkpoint']}")
    assert version["status"] == "quarantined"

    why = "the label is wanted again"
    assert client.override("digits", fourth["checkpoint"], "risk_accepted", why)["status"] == "released"
    ended = client.call("GET", f"/v1/requests/{fourth['id']}")
    assert (ended["status"], ended["reason"]) == ("completed", "overridden")
    overruled = client.report("digits", fourth["checkpoint"])
    assert overruled["verdict"] == "failed" and overruled["override"]["reason"] == why
    client.call("PATCH", "/v1/models/digits", json={"retain": "digits-train"}, headers={"If-Match": "*"})
    fifth, report = forget(running, {"samples": ["3/0"]})
    assert fifth["status"] == "completed" and report["base"] == version["digest"]
    assert report["left_out"] == 18  # labels 0, 1 and, by the override's tombstones, 2
    assert [each["request"] for each in report["promises"]] == [each["id"] for each in (first, second, third, fourth)]
    assert [each["kept"] for each in report["promises"]] == [None, True, True, True]


def two_labels() -> bytes:
    """Many new images of label 0, one of label 3."""
    return pictures.archive({**pictures.folder([0], 12, seed=20), **pictures.folder([3], 1, seed=21)})
