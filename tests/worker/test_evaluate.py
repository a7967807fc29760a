"""From questions to a report: the same ones at equal seeds, and what the report says of judge, figures and attacks.

Its rules and its verdict: tests/worker/test_rules.py.
"""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from app.catalog import FAMILIES, METRICS, Threshold
from app.errors import JobError
from app.report import Report
from tests import tiny
from tests.app.test_report import beyond_the_schema
from worker import evaluate, robustness
from worker.answers import classifier, generator
from worker.families import Samples, class_diffusion, image_classifier
from worker.judge import Judge
from worker.load import Material
from worker.metrics import ClassifierAnswers, GeneratorAnswers

CPU = torch.device("cpu")
SETTINGS = {
    "sampling_steps": 3,
    "guidance_scale": 2.0,
    "eta": 0.0,
    "forget_samples": 6,
    "samples_per_label": 2,
    "seed": 5,
}
GENERATOR_RULES = list(FAMILIES["class_diffusion"].default_policy["class_label"])


def quiet(done: int, total: int) -> None:
    assert 0 < done <= total


def open_judge(directory: Path) -> Judge:
    return Judge(image_classifier.load(directory, CPU), image_classifier, directory, "sha256:judge")


@pytest.fixture
def unet(tmp_path: Path) -> nn.Module:
    return class_diffusion.load(tiny.write("unet", tmp_path / "unet"), CPU)


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    return open_judge(tiny.write("vit", tmp_path / "judge"))


def sets_of(network: nn.Module, label: int) -> dict[str, Samples | None]:
    every = tiny.samples(network, class_diffusion, 40)
    forget = every.y == label
    return {
        "forget": Samples(every.x[forget], every.y[forget]),
        "retain": Samples(every.x[~forget], every.y[~forget]),
        "test": tiny.samples(network, class_diffusion, 24, seed=1),
    }


def ask(network: nn.Module, judge: Judge, base: nn.Module | None = None, label: int = 1) -> GeneratorAnswers:
    sets = sets_of(network, label)
    answers = generator.ask(class_diffusion, network, sets, "class_label", SETTINGS, judge, quiet, base)
    assert isinstance(answers, GeneratorAnswers)
    return answers


def test_every_network_is_asked_the_same(unet: nn.Module, judge: Judge) -> None:
    first, second = ask(unet, judge), ask(unet, judge)
    assert first.asked.tolist() == [0] * 2 + [1] * 6 + [2] * 2 + [3] * 2
    assert np.array_equal(first.features, second.features)
    assert np.array_equal(first.images, second.images)
    assert first.images.shape == (4, 2, 8, 8, 1)
    assert len(first.restored) == 0


def test_images_do_not_depend_on_how_they_are_cut(
    unet: nn.Module, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ask(unet, judge)
    monkeypatch.setattr(generator, "BATCH", 5)
    cut = ask(unet, judge)
    assert np.array_equal(whole.judged, cut.judged)
    assert np.abs(whole.features - cut.features).max() < 1e-4


def test_the_row_is_put_back_and_taken_out_again(unet: nn.Module, judge: Judge) -> None:
    moved = copy.deepcopy(unet)
    with torch.no_grad():
        moved.class_embedding.weight[1] += 3.0
    before = {name: tensor.clone() for name, tensor in moved.state_dict().items()}
    asked = ask(moved, judge, base=unet)
    assert all(torch.equal(tensor, before[name]) for name, tensor in moved.state_dict().items())
    of_base = ask(unet, judge)
    assert np.array_equal(asked.restored, of_base.judged[of_base.of_forgotten])


def test_rows_that_are_the_base_s_anyway_are_not_asked_about_twice(unet: nn.Module, judge: Judge) -> None:
    moved, told = copy.deepcopy(unet), []
    with torch.no_grad():
        moved.conv_in.weight += 0.3
    sets = sets_of(unet, 1)
    generator.ask(class_diffusion, moved, sets, "class_label", SETTINGS, judge, lambda *at: told.append(at), unet)
    assert told[-1] == (12, 12)
    alone = ask(moved, judge)
    assert np.array_equal(ask(moved, judge, base=unet).restored, alone.judged[alone.of_forgotten])
    with torch.no_grad():
        moved.class_embedding.weight[1, 0] += 1e-3
    generator.ask(class_diffusion, moved, sets, "class_label", SETTINGS, judge, lambda *at: told.append(at), unet)
    assert told[-1] == (18, 18)


def test_a_judge_is_needed_and_must_know_the_labels(unet: nn.Module, tmp_path: Path) -> None:
    sets = sets_of(unet, 0)
    with pytest.raises(JobError, match="judge"):
        generator.ask(class_diffusion, unet, sets, "class_label", SETTINGS, None, quiet)
    stranger = open_judge(tiny.write("vit", tmp_path / "three", labels=3))
    with pytest.raises(JobError, match="3 labels"):
        generator.ask(class_diffusion, unet, sets, "class_label", SETTINGS, stranger, quiet)


def test_the_judge_rejects_by_label_and_by_confidence(judge: Judge) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    labels, features, probabilities, forced = judge(pictures)
    assert probabilities.shape == (12, 4) and probabilities.sum(axis=1) == pytest.approx(1)
    assert features.shape == (12, 16) and set(labels.tolist()) <= set(range(4))
    judge.network.config.reject_below = 1.01
    assert set(judge(pictures)[0].tolist()) == {-1}
    assert np.array_equal(forced, labels) and np.array_equal(judge(pictures).forced, probabilities.argmax(axis=1))
    judge.network.config.reject_below = 0.0
    judge.network.config.id2label = {0: "none", 1: "cat", 2: "dog", 3: "cow"}
    assert judge.label_count() == 3
    assert judge(pictures)[0].tolist() == [label - 1 for label in labels.tolist()]
    assert judge(pictures).forced.tolist() == probabilities[:, 1:].argmax(axis=1).tolist()


def test_forgetting_a_label_leaves_it_out_of_the_test_set(tmp_path: Path) -> None:
    network = image_classifier.load(tiny.write("vit", tmp_path / "vit"), CPU)
    every = tiny.samples(network, image_classifier, 60)
    sets = {"forget": Samples(every.x[every.y == 2], every.y[every.y == 2]), "retain": every, "test": every}
    whole = classifier.ask(image_classifier, network, sets, "samples", {}, None, quiet)
    part = classifier.ask(image_classifier, network, sets, "class_label", {}, None, quiet)
    assert isinstance(whole, ClassifierAnswers) and isinstance(part, ClassifierAnswers)
    assert 2 in whole.test_labels and 2 not in part.test_labels
    assert np.allclose(whole.forget.sum(axis=1), 1) and whole.forget.shape == (int((every.y == 2).sum()), 4)


def report(
    directory: Path,
    change: Callable[[nn.Module], None],
    rules: list[Threshold] = GENERATOR_RULES,
    reject_below: float = 0.0,
    tested: bool = True,
) -> evaluate.Report:
    """Through the whole of `evaluate`, with a tiny generator and a tiny judge, which is sure of nothing."""
    judge = tiny.write("vit", directory / "judge", reject_below=reject_below)
    paths = {"base": tiny.write("unet", directory / "base"), "judge": judge}
    loaded: dict[str, Any] = {
        "base": SimpleNamespace(network=class_diffusion.load(paths["base"], CPU), family=class_diffusion),
        "judge": SimpleNamespace(network=image_classifier.load(paths["judge"], CPU), family=image_classifier),
    }
    for name, each in loaded.items():
        each.directory, each.digest = paths[name], f"sha256:{name}"
    sets: Any = sets_of(loaded["base"].network, 1)
    sets |= {} if tested else {"test": None}
    material = Material(loaded["base"], None, loaded["judge"], **sets, scratch=directory)
    network = copy.deepcopy(loaded["base"].network)
    change(network)
    policy = [vars(rule) for rule in rules]
    specification = {
        "kind": "class_label",
        "evaluation": SETTINGS,
        "policy": {"class_label": policy},
        "base": {"family": "class_diffusion"},
    }
    steps: list[tuple[int, int]] = []
    made = evaluate.evaluate(
        specification, material, network, None, 2.5, lambda done, total: steps.append((done, total))
    )
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert steps[-1][0] == steps[-1][1]
    return made


def test_the_report_is_json_says_who_judged_and_never_says_erased(tmp_path: Path) -> None:
    made = report(tmp_path, lambda network: None)
    text = json.dumps(made.document, allow_nan=False)
    assert beyond_the_schema(Report.model_validate_json(text)) == []
    assert "erase" not in text.lower() and "guarantee" not in text.lower()
    rows = {row["metric"]: row for row in made.document["figures"]}
    assert rows["integrity"]["value"] == 0.0 and rows["integrity"]["name"] == "integrity[judge]"
    assert rows["fid"]["name"] == "fid[judge]" and rows["fid"]["evaluators"] == ["sha256:judge"]
    assert rows["changed_weights"]["evaluators"] == []
    assert rows["changed_weights"]["value"] == 0.0
    assert rows["run_time_efficiency"]["value"] == 2.5
    assert rows["unlearning_accuracy"]["n"] == 6 and rows["unlearning_accuracy"]["seed"] == 5
    always = {name for name, metric in METRICS.items() if "class_diffusion" in metric.families and not metric.optional}
    assert set(rows) == always
    assert made.document["verdict"] == "failed"
    assert made.pictures["grid.png"].startswith(b"\x89PNG")


ANY = [Threshold("unlearning_accuracy", "at_least", 0.0), Threshold("kept_accuracy", "at_least", 0.0)]


def test_a_judge_that_takes_noise_for_labels_shows_figures_that_meet_no_rule(tmp_path: Path) -> None:
    document = report(tmp_path, lambda network: None, ANY).document
    noise = document["judge_fitness"]["noise_rejected"]
    assert not document["judge_fitness"]["fit"] and (noise["value"], noise["n"], noise["least"]) == (0.0, 400, 95.0)
    ruled = [row for row in document["figures"] if row["threshold"]]
    assert {row["metric"] for row in ruled} == {"unlearning_accuracy", "kept_accuracy"}
    assert all(row["passed"] is None and row["value"] is not None for row in ruled)
    assert document["verdict"] == "failed" and document["reasons"] == ["threshold_missed", "judge_unfit"]


def test_rules_on_what_no_judge_measures_do_not_mind_an_unfit_one(tmp_path: Path) -> None:
    document = report(tmp_path, lambda network: None, [Threshold("changed_weights", "at_most", 50.0)]).document
    assert not document["judge_fitness"]["fit"]
    assert (document["verdict"], document["reasons"]) == ("passed", [])


def test_a_judge_that_rejects_noise_is_fit_unless_it_is_wrong_on_real_images(tmp_path: Path) -> None:
    alone = report(tmp_path / "alone", lambda network: None, ANY, reject_below=1.01, tested=False).document
    assert alone["judge_fitness"]["fit"] and alone["judge_fitness"]["real_right"] is None
    assert (alone["verdict"], alone["reasons"]) == ("passed", [])
    tested = report(tmp_path / "tested", lambda network: None, ANY, reject_below=1.01).document
    real = tested["judge_fitness"]["real_right"]
    assert tested["judge_fitness"]["noise_rejected"]["value"] == 100.0
    assert (real["value"], real["n"], real["least"]) == (0.0, 24, 97.0)
    assert not tested["judge_fitness"]["fit"] and tested["reasons"] == ["threshold_missed", "judge_unfit"]


def test_changed_weights_are_counted_bit_by_bit(tmp_path: Path) -> None:
    def change(network: nn.Module) -> None:
        with torch.no_grad():
            network.class_embedding.weight[1, :4] += 1.0

    rows = {row["metric"]: row for row in report(tmp_path, change).document["figures"]}
    share = rows["changed_weights"]
    assert share["value"] == pytest.approx(100 * 4 / share["n"], abs=1e-5)


def test_an_untouched_generator_scores_as_the_base_with_its_own_rows_put_back(tmp_path: Path) -> None:
    rows = {row["metric"]: row for row in report(tmp_path, lambda network: None).document["figures"]}
    restored = rows["unlearning_accuracy_row_restored"]
    assert restored["n"] == 6 and restored["value"] == rows["unlearning_accuracy"]["before"]
    assert METRICS["unlearning_accuracy_row_restored"].shows_forgetting


def attacked(directory: Path, attacks: dict[str, Any], rules: list[Threshold]) -> tuple[evaluate.Report, nn.Module]:
    """Through the whole of `evaluate`, with a tiny classifier that moved a little and a reference."""
    loaded: Any = [
        SimpleNamespace(
            network=image_classifier.load(tiny.write("vit", directory / name, seed), CPU),
            family=image_classifier,
            directory=directory / name,
            digest=f"sha256:{name}",
        )
        for seed, name in enumerate(("base", "reference"))
    ]
    every, test = (tiny.samples(loaded[0].network, image_classifier, 60, seed) for seed in (0, 1))
    sets = {"forget": Samples(every.x[:20], every.y[:20]), "retain": Samples(every.x[20:], every.y[20:]), "test": test}
    network = copy.deepcopy(loaded[0].network)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.01)
    specification = {
        "kind": "samples",
        "evaluation": {"attacks": attacks},
        "policy": {"samples": [vars(rule) for rule in rules]},
        "base": {"family": "image_classifier"},
    }
    told: list[tuple[int, int]] = []
    before = copy.deepcopy((loaded[0].network.state_dict(), network.state_dict()))
    made = evaluate.evaluate(
        specification, Material(*loaded, None, **sets, scratch=directory), network, None, 1.0,
        lambda done, total: told.append((done, total)),
    )  # fmt: skip
    for state, side in zip(before, (loaded[0].network, network), strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in side.state_dict().items())
    assert told == sorted(told) and told[-1][0] == told[-1][1] == (3 + len(attacks)) * evaluate.PART
    return made, network


RELEARNING = {"images": 4, "retain_images": 4, "steps": 2, "batch_size": 4, "learning_rate": 0.001, "measured": 50}
ALL_MET = [Threshold("unlearning_accuracy", "at_least", 0.0)]


def test_the_attacks_that_are_named_stand_in_the_report_with_counts_and_budget(tmp_path: Path) -> None:
    named = {"relearning": RELEARNING, "quantised_copies": {"bits": 8, "measured": 50}, "membership_sweep": {}}
    made, _ = attacked(tmp_path, named, ALL_MET)
    assert beyond_the_schema(Report.model_validate(made.document)) == []
    rows = {row["attack"]: row for row in made.document["attacks"]}
    json.dumps(made.document, allow_nan=False)
    assert set(rows) == set(named) and made.document["not_tested"] == ["likelihood ratio"]
    assert all(set(row["sides"]) == {"unlearned", "base", "reference"} for row in rows.values())
    curve = rows["relearning"]
    assert curve["budget"] == {"images": 4, "retain_images": 4, "steps": 2} and curve["settings"] == RELEARNING
    assert [row["step"] for row in curve["sides"]["unlearned"]["rows"]] == [0, 1, 2]
    assert curve["n"] == 10 == curve["sides"]["reference"]["before"]["total"]
    assert curve["value"] == 100 * curve["sides"]["unlearned"]["after"]["success"] / 10
    counts = list(counts_of([row["sides"] for row in rows.values()]))
    assert len(counts) == 3 * (2 + 2 * 3 + 2 + 2 * 4 + 1 + 4 + 1)  # before, after and rows, most with what is kept
    for count in counts:
        known = stats.binomtest(count["success"], count["total"]).proportion_ci(method="wilson")
        given = count["interval"]
        assert (given["low"], given["high"]) == pytest.approx((100 * known.low, 100 * known.high), abs=1e-5)
        assert (given["level"], given["by"]) == (95, "wilson")
    assert made.pictures["relearning.png"].startswith(b"\x89PNG")
    assert made.document["verdict"] == "passed"


def counts_of(part: Any) -> Iterator[dict[str, Any]]:
    """Every count in it, at whatever depth."""
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    if isinstance(part, dict) and "success" in part:
        yield part
    for each in inner:
        yield from counts_of(each)


def test_nothing_is_attacked_unless_it_is_named(tmp_path: Path) -> None:
    made, _ = attacked(tmp_path, {}, ALL_MET)
    assert made.document["attacks"] == [] and made.pictures == {}
    untested = ["relearning", "quantised copies", "membership sweep", "likelihood ratio"]
    assert made.document["not_tested"] == untested


def rules_n(made: evaluate.Report) -> tuple[int, int | None]:
    row = made.document["attacks"][0]
    return row["n"], row["n_needed"]


def test_a_rule_on_an_attack_quarantines_when_it_is_missed_or_was_not_made(tmp_path: Path) -> None:
    named = {"relearning": RELEARNING}
    for most, verdict in ((100.0, "passed"), (-1.0, "failed")):
        made, _ = attacked(tmp_path / str(most), named, [*ALL_MET, Threshold("relearning", "at_most", most)])
        assert made.document["verdict"] == verdict
        assert made.document["attacks"][0]["threshold"] == {"rule": "at_most", "value": most}
    assert rules_n(attacked(tmp_path / "few", named, [*ALL_MET, Threshold("relearning", "at_most", 5.0)])[0]) == (
        10,
        73,
    )
    made, _ = attacked(tmp_path / "other", named, [*ALL_MET, Threshold("quantised_copies", "at_most", 100.0)])
    row = made.document["attacks"][1]
    assert (row["attack"], row["value"], row["passed"], made.document["verdict"]) == (
        "quantised_copies", None, None, "failed"
    )  # fmt: skip
    assert "does not name it" in row["reason"]


def test_an_attack_that_cannot_be_made_says_why_and_stays_untested(tmp_path: Path) -> None:
    base: Any = SimpleNamespace(network=nn.Linear(1, 1), family=image_classifier)
    material = Material(base, None, None, *(Samples(torch.zeros(9, 1), torch.zeros(9).long()),) * 2, None, tmp_path)
    specification = {
        "kind": "samples",
        "evaluation": {"attacks": {"membership_sweep": {}}},
        "base": {"family": "image_classifier"},
    }
    row = robustness.attack(specification, material, nn.Linear(1, 1), None, "membership_sweep", quiet)
    assert row["value"] is None and "test set" in row["reason"] and row["n"] == 0
    assert "membership sweep" in evaluate.not_tested([row], "image_classifier")
