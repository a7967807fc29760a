"""Whether a judge is fit to judge: what it does with noise and with real images, and what follows where it is not."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from app.catalog import wilson
from tests import tiny
from tests.tiny_image_to_image import NETWORKS
from worker import evaluate, fitness, promises, rules
from worker.answers import reconstruction
from worker.families import Samples, image_classifier
from worker.judge import Judge
from worker.load import Material

CPU = torch.device("cpu")
SHAPE = (8, 8, 3)


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    directory = tiny.write("vit", tmp_path / "judge")
    return Judge(image_classifier.load(directory, CPU), image_classifier, directory, "sha256:judge")


def right(count: int, n: int) -> dict[str, Any]:
    return fitness.share(np.arange(n) < count, fitness.LEAST_RIGHT)


def test_shares_have_wilson_s_interval() -> None:
    share = right(380, 400)
    assert (share["value"], share["n"]) == (95.0, 400)
    assert (share["interval"]["low"], share["interval"]["high"]) == pytest.approx(wilson(380, 400), abs=1e-6)


@pytest.mark.parametrize(
    ("noise", "real", "fit"),
    [
        ((380, 400), None, True),
        ((379, 400), None, False),
        ((400, 400), (388, 400), True),
        ((400, 400), (380, 400), False),  # 95 %, and at most 96.7
        ((400, 400), (19, 20), True),  # 95 %, and 97 lies within its interval
        ((379, 400), (400, 400), False),
    ],
)
def test_a_fit_judge_rejects_95_percent_of_noise_and_may_be_right_on_97_of_real_images(
    noise: tuple[int, int], real: tuple[int, int] | None, fit: bool
) -> None:
    assert fitness.fit(right(*noise), right(*real) if real else None) is fit


def test_noise_is_the_same_each_time_and_rejection_is_the_judge_s_own(judge: Judge) -> None:
    assert not fitness.rejected_noise(judge, SHAPE, 0, 40).any()
    settled = judge(np.random.default_rng(0).integers(0, 256, (40, *SHAPE), dtype=np.uint8)).probabilities.max(axis=1)
    judge.network.config.reject_below = float(np.median(settled))  # type: ignore[union-attr]
    first = fitness.rejected_noise(judge, SHAPE, 0, 40)
    assert first.any() and not first.all() and first.shape == (40,)
    assert np.array_equal(first, fitness.rejected_noise(judge, SHAPE, 0, 40))
    assert not np.array_equal(first, fitness.rejected_noise(judge, SHAPE, 1, 40))


def test_real_images_count_by_their_own_label_and_a_rejected_one_is_wrong(judge: Judge) -> None:
    images = np.random.default_rng(0).integers(0, 256, (37, *SHAPE), dtype=np.uint8)
    called = judge(images).labels
    assert fitness.right_on(judge, images, called).all()
    assert not fitness.right_on(judge, images, (called + 1) % 4).any()
    judge.network.config.reject_below = 1.01  # type: ignore[union-attr]
    assert not fitness.right_on(judge, images, called).any()
    assert fitness.right_on(judge, images[:0], called[:0]).shape == (0,)


def test_real_images_are_at_most_so_many_and_chosen_by_the_seed() -> None:
    candidates = np.arange(1000) % 2 == 0
    first, second = fitness.chosen(candidates, 0), fitness.chosen(candidates, 1)
    assert len(first) == fitness.REAL and candidates[first].all() and np.array_equal(first, np.unique(first))
    assert np.array_equal(first, fitness.chosen(candidates, 0)) and not np.array_equal(first, second)


@pytest.mark.parametrize("name", ["mae", "vq"])
def test_the_judge_of_a_network_that_restores_is_asked_about_labels_that_it_names_alike(
    name: str, judge: Judge, tmp_path: Path
) -> None:
    family = tiny.FAMILIES[NETWORKS[name]]
    network = family.load(tiny.write(name, tmp_path / "base"), CPU)
    images = tiny.samples(network, family, 12)
    sets = {"forget": images, "retain": images, "test": None}
    settings = {"seed": 0, "images_per_set": 4, "pattern": "centre_8", "hidden_share": 0.5}
    answers = reconstruction.ask(family, network, sets, "samples", settings, judge, lambda done, total: None)
    material = Material(SimpleNamespace(network=network, family=family), None, None, images, images, images, tmp_path)  # type: ignore[arg-type]
    judge.network.config.id2label = {0: "cat", 1: "Dog", 2: "cow", 3: "none"}  # type: ignore[union-attr]
    for names, asked in ((["dog", "bird", "cat", "mouse"], (0, 2)), (["bird", "mouse", "hen", "ant"], ())):
        specification = {"evaluation": settings, "names": names}
        told: list[tuple[int, int]] = []
        found = evaluate.fitness_of(
            specification, material, judge, answers, images, lambda *done, told=told: told.append(done)
        )
        assert found is not None and found["noise_rejected"]["n"] == fitness.NOISE
        count = int(np.isin(images.y.numpy(), asked).sum())
        assert told == sorted(told) and told[-1] == (fitness.NOISE + count, fitness.NOISE + count)
        assert max(np.diff([done for done, _ in told])) <= fitness.BATCH  # a cancel waits for one batch
        assert (found["real_right"] or {"n": 0})["n"] == count and (count > 0) is bool(asked)
    bare = evaluate.fitness_of(
        {"evaluation": settings}, material, judge, answers, Samples(images.x, images.y), lambda done, total: None
    )
    assert bare is not None and bare["real_right"] is None


def test_what_an_unfit_judge_measured_meets_no_rule_and_misses_none() -> None:
    held = {"threshold": {"rule": "at_least", "value": 1.0}, "passed": True}
    by_judge, by_none = {**held, "evaluators": ["sha256:judge"]}, {**held, "evaluators": []}
    rows = rules.by_unfit({"sha256:judge"}, [by_judge, by_none])
    assert [row["passed"] for row in rows] == [None, True] and rules.verdict(rows) == "failed"
    assert rules.why_failed(rows, [], {"sha256:judge"}) == ["threshold_missed", "judge_unfit"]
    assert rules.why_failed([by_none], [], {"sha256:judge"}) == []


def test_an_unfit_judge_cannot_say_that_a_promise_holds_but_one_that_it_finds_broken_stays_so() -> None:
    figure = {"metric": "unlearning_accuracy", "passed": True}
    kept = {"request": "req_1", "figures": [figure], "kept": True, "reason": None}
    unsure = promises.by_unfit(kept)
    assert (unsure["kept"], unsure["reason"], unsure["figures"][0]["passed"]) == (None, "judge_unfit", None)
    for other in ({**kept, "kept": False}, {**kept, "kept": None, "reason": "samples_gone"}):
        assert promises.by_unfit(other) == other
