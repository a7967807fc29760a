"""Earlier promises in the runner: the same questions of a network that forgot, of one that remembers, and what nobody can ask."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from app import figures
from app.report import Report
from tests import tiny
from tests.app.test_report import beyond_the_schema
from worker import evaluate, promises, robustness
from worker.attacks import Shadow
from worker.families import Captions, Samples, class_diffusion, clip, image_classifier, text_to_image
from worker.judge import Judge
from worker.load import Material, Probe
from worker.metrics import ClassifierAnswers, GeneratorAnswers, fid, integrity, kept_accuracy, per_class_accuracy

CPU = torch.device("cpu")
UA = {"metric": "unlearning_accuracy", "value": 100.0, "before": 2.0, "threshold": {"rule": "at_least", "value": 95.0}}
AUC = {"metric": "mia_auc", "value": 52.0, "before": 90.0, "threshold": {"rule": "share_of_before", "value": 0.5}}
GAP = {"metric": "gap_to_retrain", "value": 3.0, "before": 9.0, "threshold": {"rule": "share_of_before", "value": 0.5}}
ROW = {**UA, "metric": "unlearning_accuracy_row_restored", "value": 99.0}
TOP1 = {"metric": "forget_top1", "value": 0.0, "before": 98.0, "threshold": {"rule": "at_most", "value": 5.0}}
NOTHING = Captions((), (), ())


def quiet(done: int, total: int) -> None:
    assert 0 < done <= total


def told(*rules: dict[str, Any], kind: str = "class_label", **others: Any) -> dict[str, Any]:
    return {"request": "req_1", "kind": kind, "rules": list(rules), "reason": None, "probe": "samples", **others}


def answering(network: nn.Module, label: int) -> nn.Module:
    """The same network, answering `label` to every image."""
    changed: Any = copy.deepcopy(network)
    with torch.no_grad():
        changed.classifier.weight.zero_()
        changed.classifier.bias.copy_(torch.eye(tiny.LABELS)[label])
    return changed  # type: ignore[no-any-return]


@pytest.fixture
def vit(tmp_path: Path) -> nn.Module:
    return image_classifier.load(tiny.write("vit", tmp_path / "vit"), CPU)


def of_a_classifier(vit: nn.Module, *probes: Probe) -> tuple[dict[str, Any], Material]:
    """A job that forgets label 1 where label 0 was forgotten before."""
    base: Any = SimpleNamespace(network=answering(vit, 3), family=image_classifier, directory=Path(), digest="sha256:b")
    every, test = (tiny.samples(vit, image_classifier, 60, seed) for seed in (0, 1))
    forget = every.y == 1
    specification = {
        "kind": "class_label",
        "evaluation": {},
        "policy": {"class_label": [{"metric": "unlearning_accuracy", "rule": "at_least", "value": 95.0}]},
        "base": {"family": "image_classifier"},
        "forgotten_before": [0],
    }
    sets = Samples(every.x[forget], every.y[forget]), Samples(every.x[~forget], every.y[~forget]), test
    return specification, Material(base, None, None, *sets, scratch=Path(), probes=probes)


def probe_of(vit: nn.Module, *rules: dict[str, Any], kind: str = "class_label") -> Probe:
    x = tiny.samples(vit, image_classifier, 7, seed=2).x
    return Probe(told(*rules, kind=kind), Samples(x, torch.zeros(7, dtype=torch.int64)), NOTHING)


def test_a_concept_that_comes_back_blocks_release(vit: nn.Module) -> None:
    specification, material = of_a_classifier(vit, probe_of(vit, UA))
    for label, kept, verdict in ((3, True, "passed"), (0, False, "failed")):
        made = evaluate.evaluate(specification, material, answering(vit, label), None, 1.0, quiet).document
        assert beyond_the_schema(Report.model_validate(json.loads(json.dumps(made)))) == []
        (row,) = made["promises"]
        (figure,) = row["figures"]
        assert (row["kept"], made["verdict"]) == (kept, verdict)
        assert (figure["value"], figure["then"], figure["before"], figure["n"]) == (100.0 * kept, 100.0, 2.0, 7)
        assert figure["interval"]["by"] == "wilson" and figure["passed"] is kept
        assert made["reasons"] == ([] if kept else ["broken_promise"])


@pytest.mark.parametrize("label", [0, 3])
def test_what_met_no_rule_is_shown_and_blocks_nothing(vit: nn.Module, label: int) -> None:
    """Label 0 was asked to be forgotten, and its version released against its verdict: whether it is there says the report."""
    specification, material = of_a_classifier(vit, probe_of(vit, {**UA, "value": 60.0, "threshold": None}))
    made = evaluate.evaluate(specification, material, answering(vit, label), None, 1.0, quiet).document
    assert beyond_the_schema(Report.model_validate(json.loads(json.dumps(made)))) == []
    (row,) = made["promises"]
    (figure,) = row["figures"]
    assert (row["kept"], row["reason"], made["verdict"]) == (None, "nothing_promised", "passed")
    assert (figure["value"], figure["then"], figure["before"], figure["n"]) == (
        0.0 if label == 0 else 100.0,
        60.0,
        2.0,
        7,
    )
    assert (figure["threshold"], figure["passed"], figure["reason"]) == (None, None, None)
    assert figure["interval"]["by"] == "wilson" and figures.kept(row, figure) == "not binding"


def test_a_share_of_a_distance_to_an_unknown_ideal_says_nothing_later_either(vit: nn.Module) -> None:
    specification, material = of_a_classifier(vit)
    row = promises.promise(specification, material, answering(vit, 3), None, probe_of(vit, AUC), material.test, quiet)
    (figure,) = row["figures"]
    assert (row["kept"], row["reason"], figure["passed"]) == (None, "ideal_unknown", None)
    assert figure["value"] is not None


def test_a_rule_that_was_met_binds_beside_one_that_was_not(vit: nn.Module) -> None:
    probe = probe_of(vit, UA, {**AUC, "threshold": None})
    specification, material = of_a_classifier(vit)
    for label, kept in ((3, True), (0, False)):
        row = promises.promise(specification, material, answering(vit, label), None, probe, material.test, quiet)
        assert row["kept"] is kept and [each["passed"] for each in row["figures"]] == [kept, None]
        said = [figures.kept(row, each) for each in row["figures"]]
        assert said == ["kept" if kept else "BROKEN", "not binding"]


def test_both_reasons_stand_where_both_hold(vit: nn.Module) -> None:
    specification, material = of_a_classifier(vit, probe_of(vit, UA))
    specification["policy"]["class_label"][0]["value"] = 101.0
    made = evaluate.evaluate(specification, material, answering(vit, 0), None, 1.0, quiet).document
    assert made["reasons"] == ["threshold_missed", "broken_promise"]


def test_a_label_forgotten_before_is_nothing_to_keep(vit: nn.Module) -> None:
    """The network answers 3 always: of what it may keep, the images of label 3 are right; label 0's do not count."""
    specification, material = of_a_classifier(vit)
    made = evaluate.evaluate(specification, material, answering(vit, 3), None, 1.0, quiet).document
    rows = {row["metric"]: row for row in made["figures"]}
    for name, samples, gone in (("retain_accuracy", material.retain, [0]), ("test_accuracy", material.test, [0, 1])):
        assert samples is not None
        kept = samples.y[~torch.isin(samples.y, torch.tensor(gone))]
        assert rows[name]["n"] == len(kept) < len(samples.y)
        assert rows[name]["value"] == pytest.approx(100 * float((kept == 3).float().mean()), abs=1e-4)
    assert rows["unlearning_accuracy"]["n"] == len(material.forget.y)


def test_a_label_forgotten_before_is_neither_unseen_nor_retained_to_an_attacker(vit: nn.Module) -> None:
    specification, material = of_a_classifier(vit)
    specification["evaluation"] = {"attacks": {"membership_sweep": {}, "quantised_copies": {"measured": 100}}}
    made = evaluate.evaluate(specification, material, copy.deepcopy(vit), None, 1.0, quiet).document
    attacks = {row["attack"]: row for row in made["attacks"]}
    retain, test, gone = material.retain, material.test, torch.tensor([0, 1])
    assert test is not None
    unseen = ~torch.isin(test.y, gone)
    assert attacks["membership_sweep"]["budget"]["unseen"] == int(unseen.sum()) < int((test.y != 1).sum())
    (auc,) = [row["value"] for row in made["figures"] if row["metric"] == "mia_auc"]
    assert 100 * attacks["membership_sweep"]["sides"]["unlearned"]["rows"][0]["value"] == pytest.approx(auc, abs=1e-5)
    copied = attacks["quantised_copies"]["sides"]["unlearned"]["rows"][0]["kept"]["total"]
    assert copied == int((retain.y != 0).sum()) < len(retain.y)


def test_a_label_forgotten_before_is_not_among_a_shadow_s_unseen(vit: nn.Module) -> None:
    specification, material = of_a_classifier(vit)
    test = material.test
    assert test is not None
    knows = torch.arange(len(test.y)) % 2 == 0
    shadow = Shadow(lambda: vit, torch.ones(len(material.forget.y), dtype=torch.bool), knows)
    for kind, gone in (("class_label", [0, 1]), ("samples", [0])):
        told = {**specification, "kind": kind}
        (seen,) = robustness.shadows_of(replace(material, shadows=(shadow,)), told)
        unseen = robustness.unseen_images(material, told)
        kept = ~torch.isin(test.y, torch.tensor(gone))
        assert torch.equal(seen.knows_unseen, knows[kept])
        assert unseen is not None and torch.equal(unseen.y, test.y[kept]) and torch.equal(unseen.x, test.x[kept])


@pytest.mark.parametrize(("surer", "kept"), [(70, True), (71, False), (30, True), (29, False)])
def test_a_relative_rule_is_held_against_the_before_of_the_earlier_report(surer: int, kept: bool) -> None:
    """90 before is 40 from its ideal of 50, so half of it allows 30 to 70, whatever the present base scores. One forgotten
    image that is surer than so many of 100 unseen ones has that AUC."""
    unseen = np.arange(100) / 1000
    test, forget = (np.stack([each, 1 - each], axis=1) for each in (unseen, np.array([(surer - 0.5) / 1000])))
    none = np.zeros(0, int)
    answers = ClassifierAnswers(forget, np.zeros(1, int), forget[:0], none, test, np.zeros(100, int))
    figure = promises.figure(answers, AUC, "samples", 0)
    assert (figure["value"], figure["passed"]) == (float(surer), kept)


def test_the_auc_of_earlier_samples_is_measured_against_the_test_set(vit: nn.Module) -> None:
    specification, material = of_a_classifier(vit)
    probe = probe_of(vit, AUC, GAP, kind="samples")
    row = promises.promise(specification, material, answering(vit, 3), None, probe, material.test, quiet)
    figure, gap = row["figures"]
    assert figure["metric"] == "mia_auc" and row["kept"] is figure["passed"] and figure["value"] is not None
    assert (gap["value"], gap["n"], gap["passed"], gap["reason"]) == (None, 0, None, "needs_reference")
    assert figures.kept(row, gap) == "not measured: needs reference"
    without_test = promises.promise(specification, material, answering(vit, 3), None, probe, None, quiet)
    assert (without_test["kept"], without_test["reason"]) == (None, "not_measured")


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (told(UA, reason="forget_set_purged"), "forget_set_purged"),
        (told(GAP), "needs_reference"),
        (told(ROW), "needs_base"),
        (told(), "nothing_promised"),
    ],
)
def test_what_nobody_can_ask_blocks_nothing_and_says_why(vit: nn.Module, part: dict[str, Any], reason: str) -> None:
    specification, material = of_a_classifier(vit, Probe(part, None, NOTHING))
    made = evaluate.evaluate(specification, material, answering(vit, 3), None, 1.0, quiet).document
    assert made["verdict"] == "passed" and made["promises"][0]["kept"] is None
    assert made["promises"][0]["reason"] == reason and reason.replace("_", " ") in figures.kept(made["promises"][0])


def drawing_job(folder: Path, labels: int = tiny.LABELS) -> tuple[dict[str, Any], Material, Judge]:
    """A tiny generator whose judge says label 2 to every image, and a job that forgets label 1."""
    network = class_diffusion.load(tiny.write("unet", folder / "unet"), CPU)
    network_of_judge = image_classifier.load(tiny.write("vit", folder / "judge", labels=labels), CPU)
    judge = Judge(network_of_judge, image_classifier, folder / "judge", "sha256:judge")
    if labels == tiny.LABELS:
        judge = Judge(answering(network_of_judge, 2), image_classifier, folder / "judge", "sha256:judge")
    base: Any = SimpleNamespace(network=network, family=class_diffusion, directory=folder / "unet", digest="sha256:b")
    settings = {"sampling_steps": 2, "guidance_scale": 1.0, "eta": 0.0, "forget_samples": 5, "samples_per_label": 2}
    specification = {"evaluation": {**settings, "seed": 0}, "base": {"family": "class_diffusion"}}
    empty = Samples(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64))
    return specification, Material(base, None, None, empty, empty, None, scratch=folder), judge


def drawn(label: int) -> Probe:
    return Probe(told(UA, probe="generated", label=label), Samples(torch.zeros(1), torch.tensor([label])), NOTHING)


def test_a_generator_is_asked_to_draw_the_earlier_label_and_no_other(tmp_path: Path) -> None:
    specification, material, judge = drawing_job(tmp_path)
    told_of: list[tuple[int, int]] = []
    for label, kept in ((0, True), (2, False)):
        row = promises.promise(
            specification, material, material.base.network, judge, drawn(label), None,
            lambda done, total: told_of.append((done, total)),
        )  # fmt: skip
        (figure,) = row["figures"]
        assert row["kept"] is kept and (figure["value"], figure["n"]) == (100.0 * kept, 5)
    assert told_of == [(5, 5)] * 2  # forget_samples of it, none of another label


def test_the_label_row_of_a_base_that_remembers_is_not_put_back_and_the_report_says_so(tmp_path: Path) -> None:
    specification, material, judge = drawing_job(tmp_path)
    probe = Probe(told(UA, ROW, probe="generated", label=0), Samples(torch.zeros(1), torch.tensor([0])), NOTHING)
    row = promises.promise(specification, material, material.base.network, judge, probe, None, quiet)
    held, restored = row["figures"]
    assert row["kept"] is held["passed"] is True
    assert (restored["metric"], restored["value"], restored["then"]) == (ROW["metric"], None, 99.0)
    assert (restored["passed"], restored["reason"]) == (None, "needs_base")


def test_another_judge_by_now_leaves_a_promise_unasked(tmp_path: Path) -> None:
    specification, material, judge = drawing_job(tmp_path, labels=3)
    row = promises.promise(specification, material, material.base.network, judge, drawn(0), None, quiet)
    assert (row["kept"], row["reason"], row["figures"]) == (None, "judge_mismatch", [])


def test_an_earlier_label_is_kept_out_of_every_figure_of_kept_labels() -> None:
    """Labels 0 to 3, two images each; 1 is forgotten now, 2 was before: its images are wrong, far off and in no figure."""
    asked = np.repeat(np.arange(4), 2)
    judged = np.array([0, 0, 3, 3, 3, 3, 3, 0])
    chance = np.random.default_rng(0)
    before, after = (chance.random((8, 3)) for _ in range(2))
    after[asked == 0] = before[asked == 0]
    after[asked == 3] = before[asked == 3]
    shared: dict[str, Any] = {
        "forget_labels": (1,), "asked": asked, "judged": judged, "restored": judged[:0],
        "real_features": before[asked != 1], "real_labels": asked[asked != 1], "images": np.zeros((4, 1, 1, 1, 1)),
    }  # fmt: skip
    sides = [GeneratorAnswers(features=each, forgotten_before=(2,), **shared) for each in (before, after)]
    evidence: Any = SimpleNamespace(before=sides[0])
    assert kept_accuracy.measure(sides[1], evidence) == (75.0, 4)
    assert per_class_accuracy.measure(sides[1], evidence) == (50.0, 2)
    assert integrity.measure(sides[1], evidence) == (0.0, 4)
    assert fid.measure(sides[1], evidence) == (pytest.approx(0.0, abs=1e-9), 4)
    assert set(per_class_accuracy.by_label(sides[1])) == {0, 1, 2, 3}
    plain = GeneratorAnswers(features=after, **shared)
    assert kept_accuracy.measure(plain, evidence) == (pytest.approx(50.0), 6)


def test_a_network_of_words_is_asked_under_the_earlier_request_s_names(tmp_path: Path) -> None:
    """The concept was a label of that job only; the present job's texts are as they were afterwards."""
    network = tiny.opened("clip", tmp_path / "clip")
    present = network.__dict__["captions"]
    names = (*present.names, "anna")
    own = Captions(names, tuple(f"a photo of {name}" for name in names), tuple(range(len(names))), "a photo of {}")
    samples = tiny.samples(network, clip, 6)
    base: Any = SimpleNamespace(network=network, family=clip, directory=tmp_path / "clip", digest="sha256:b")
    material = Material(base, None, None, samples, samples, None, scratch=tmp_path)
    probe = Probe(told(UA, TOP1), Samples(samples.x, torch.full((6,), len(names) - 1)), own)
    specification = {"evaluation": {"prompt": "a photo of {}"}, "base": {"family": "clip"}}
    row = promises.promise(specification, material, network, None, probe, None, quiet)
    accuracy, top1 = row["figures"]
    assert accuracy["n"] == 6 and row["kept"] is not None
    assert top1["value"] == pytest.approx(100 - accuracy["value"], abs=1e-5) and top1["passed"] is (top1["value"] <= 5)
    assert network.__dict__["captions"] is present


def test_a_pipeline_is_asked_to_draw_a_concept_that_only_the_earlier_request_knew(tmp_path: Path) -> None:
    network = tiny.opened("sd", tmp_path / "sd")
    present = network.__dict__["captions"]
    judge_network: Any = image_classifier.load(tiny.write("vit", tmp_path / "judge"), CPU)
    judge_network.config.id2label = {0: present.names[0], 1: present.names[1], 2: present.names[2], 3: "dog"}
    judge = Judge(answering(judge_network, 3), image_classifier, tmp_path / "judge", "sha256:j", present.names)
    names = (*present.names[:3], "dog")
    own = Captions(names, tuple(f"a photo of {name}" for name in names), tuple(range(4)), "a photo of {}")
    base: Any = SimpleNamespace(network=network, family=text_to_image, directory=tmp_path / "sd", digest="sha256:b")
    empty = Samples(torch.zeros(0, 1), torch.zeros(0, dtype=torch.int64))
    material = Material(base, None, None, empty, empty, None, scratch=tmp_path)
    settings = {"sampling_steps": 2, "guidance_scale": 1.0, "eta": 0.0, "forget_samples": 3, "samples_per_label": 2}
    specification = {"evaluation": {**settings, "seed": 0}, "base": {"family": "text_to_image"}}
    probe = Probe(told(UA, probe="generated", label=3), Samples(torch.zeros(1), torch.tensor([3])), own)
    row = promises.promise(specification, material, network, judge, probe, None, quiet)
    assert (row["kept"], row["figures"][0]["value"], row["figures"][0]["n"]) == (False, 0.0, 3)
    assert network.__dict__["captions"] is present
