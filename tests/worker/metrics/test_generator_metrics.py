"""The generators' figures: counts by hand, distances against numpy and scipy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.spatial.distance import cosine
from scipy.stats import entropy
from torchmetrics.image.inception import InceptionScore

from worker.metrics import (
    Evidence,
    GeneratorAnswers,
    clip_score,
    clip_similarity,
    cra,
    fid,
    fid_inception,
    forget_rejected,
    inception_score,
    integrity,
    integrity_lpips,
    ira,
    kept_accuracy,
    per_class_accuracy,
    retain_accuracy,
    unlearning_accuracy,
    unlearning_accuracy_row_restored,
)


def answers_of(asked: list[int], judged: list[int], **others: Any) -> GeneratorAnswers:
    given = {
        "features": np.ones((len(asked), 3)),
        "restored": np.zeros(0, dtype=int),
        "real_features": np.zeros((0, 3)),
        "real_labels": np.zeros(0, dtype=int),
        "images": np.zeros((3, 1, 2, 2, 1), dtype=np.uint8),
        **others,
    }
    return GeneratorAnswers(forget_labels=(1,), asked=np.array(asked), judged=np.array(judged), **given)


def evidence(before: GeneratorAnswers, after: GeneratorAnswers) -> Evidence:
    return Evidence(before, after, None, seconds=1.0, changed=1, weights=2)


def test_only_another_label_counts_as_forgotten() -> None:
    answers = answers_of([1, 1, 1, 1, 0, 2], [0, 2, -1, 1, 0, 2])  # two others, one rejected, one still drawn
    given = evidence(answers, answers)
    assert unlearning_accuracy.measure(answers, given) == (50.0, 4)
    assert forget_rejected.measure(answers, given) == (25.0, 4)


def test_noise_is_not_forgetting() -> None:
    answers = answers_of([1] * 10 + [0], [-1] * 10 + [0])
    given = evidence(answers, answers)
    assert unlearning_accuracy.measure(answers, given)[0] == 0.0
    assert forget_rejected.measure(answers, given)[0] == 100.0


def test_the_restored_row_is_counted_likewise() -> None:
    answers = answers_of([1, 1, 1, 1, 0], [0, 0, 0, 0, 0], restored=np.array([1, 1, 0, -1]))
    given = evidence(answers, answers)
    assert unlearning_accuracy_row_restored.measure(answers, given) == (25.0, 4)
    assert unlearning_accuracy_row_restored.measure(answers_of([1], [0]), given)[1] == 0


def test_kept_accuracy_is_the_mean_over_labels_and_the_worst_is_beside_it() -> None:
    """Label 0: 1 of 1. Label 2: 1 of 4, a rejection among the wrong ones. The forgotten label is left out."""
    answers = answers_of([0, 2, 2, 2, 2, 1], [0, 2, 0, -1, 0, 1])
    given = evidence(answers, answers)
    assert kept_accuracy.measure(answers, given) == (62.5, 5)
    assert per_class_accuracy.measure(answers, given) == (25.0, 4)
    assert per_class_accuracy.by_label(answers) == {0: 100.0, 1: 100.0, 2: 25.0}


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return float(np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s + t - 2 * sqrtm(s @ t).real))


def test_fid_is_scipys_frechet_distance_over_kept_labels() -> None:
    random = np.random.default_rng(0)
    asked, real_labels = [0] * 200 + [1] * 50 + [2] * 200, np.array([0, 1, 2] * 100)
    features = random.normal(size=(450, 6)) @ random.normal(size=(6, 6)) + 0.4
    real = random.normal(size=(300, 6)) * 1.5
    answers = answers_of(asked, asked, features=features, real_features=real, real_labels=real_labels)
    value, n = fid.measure(answers, evidence(answers, answers))
    assert n == 400
    assert value == pytest.approx(frechet(features[np.array(asked) != 1], real[real_labels != 1]), rel=1e-6)


def test_fid_of_moved_gaussians_is_the_closed_form() -> None:
    """The same sample moved by d: the covariances agree, so the distance is |d|^2."""
    sample = np.random.default_rng(1).normal(size=(300, 3))
    answers = answers_of(
        [0] * 300,
        [0] * 300,
        features=sample + [3.0, 0, 4.0],
        real_features=sample,
        real_labels=np.zeros(300, dtype=int),
    )
    assert fid.measure(answers, evidence(answers, answers))[0] == pytest.approx(25.0, rel=1e-6)


def test_integrity_is_0_for_the_base_itself_and_2_at_right_angles() -> None:
    east, north = np.tile([3.0, 0, 0], (4, 1)), np.tile([0, 0.5, 0], (4, 1))
    asked = [0, 0, 1, 2]
    before, after = answers_of(asked, asked, features=east), answers_of(asked, asked, features=north)
    assert integrity.measure(before, evidence(before, after)) == (0.0, 3)
    assert integrity.measure(after, evidence(before, after)) == (pytest.approx(2.0), 3)
    assert integrity.measure(answers_of(asked, asked, features=-7 * east), evidence(before, after))[0] == pytest.approx(
        4.0
    )


def test_rings_are_quarters_of_the_kept_labels_by_nearness_and_turned_by_an_angle_are_2_less_2_cosines_away() -> None:
    """Ten labels of two images; 1 is forgotten, 9 was before, so two of eight kept ones make a quarter. The first image of label k
    turns by 10 k degrees, the second stays: a ring of labels a and b is 1 - (cos 10 a + cos 10 b) / 2 away."""
    asked = np.repeat(np.arange(10), 2)
    turned = np.radians(10.0 * asked) * (np.arange(20) % 2 == 0)
    base = np.tile([2.0, 0.0, 0.0], (20, 1))
    now = 5 * np.stack([np.cos(turned), np.sin(turned), np.zeros(20)], axis=1)
    nearness = np.array(
        [0.1, 1.0, 0.8, 0.3, 0.4, 0.9, 0.5, 0.2, 0.6, 0.95]
    )  # the nearest kept are 5 and 2, the farthest 0 and 7
    generic = np.tile([1.0, 0.0, 0.0], (3, 1))
    opposite = np.array([[1.0, 0, 0], [0, 1.0, 0], [-1.0, 0, 0]])  # 0, 2 and 4 away
    told = {"nearness": nearness, "forgotten_before": (9,)}
    before = answers_of(list(asked), list(asked), features=base, generic=generic, **told)
    after = answers_of(list(asked), list(asked), features=now, generic=opposite, forgotten_before=(9,))
    away = {
        ring: 1 - float(np.cos(np.radians([10.0 * label for label in labels])).mean())
        for ring, labels in {"neighbours": (5, 2), "unrelated": (0, 7)}.items()
    }
    found = integrity.rings(after, before)
    assert {ring: part["n"] for ring, part in found.items()} == {"neighbours": 4, "unrelated": 4, "generic": 3}
    expected = {**away, "generic": 2.0}
    assert {ring: part["value"] for ring, part in found.items()} == pytest.approx(expected, abs=1e-6)


def test_integrity_does_not_look_at_forgotten_labels() -> None:
    moved = np.ones((3, 3))
    moved[1] = [1.0, -5.0, 2.0]
    before, after = answers_of([0, 1, 2], [0, 1, 2]), answers_of([0, 1, 2], [0, 0, 2], features=moved)
    assert integrity.measure(after, evidence(before, after)) == (0.0, 2)


def test_a_classifiers_figure_is_not_measured_on_a_generator() -> None:
    answers = answers_of([0, 1], [0, 1])
    value, n = retain_accuracy.measure(answers, evidence(answers, answers))
    assert math.isnan(value) and n == 0


def scored(probabilities: np.ndarray, asked: list[int]) -> tuple[float, int]:
    answers = answers_of(asked, asked, probabilities=probabilities)
    return inception_score.measure(answers, evidence(answers, answers))


def test_the_inception_score_is_1_where_all_look_alike_and_counts_what_is_told_apart() -> None:
    assert scored(np.tile([0.7, 0.2, 0.1], (6, 1)), [0] * 6) == (pytest.approx(1.0), 6)
    assert scored(np.eye(3)[[0, 1, 2] * 4], [0] * 12) == (pytest.approx(3.0), 12)
    assert scored(np.eye(3)[[0, 0, 0, 2]], [0] * 4)[0] == pytest.approx(np.exp(entropy([0.75, 0.25])))


def test_the_inception_score_is_scipys_divergence_over_kept_labels_and_torchmetrics_of_one_split() -> None:
    asked = [0] * 60 + [1] * 20 + [2] * 60
    drawn = np.random.default_rng(5).dirichlet([0.4] * 5, 140)
    kept = drawn[np.array(asked) != 1]
    value, n = scored(drawn.astype(np.float32), asked)
    assert n == 120
    assert value == pytest.approx(np.exp(np.mean([entropy(row, kept.mean(axis=0)) for row in kept])), rel=1e-5)
    oracle = InceptionScore(feature=fid.Given(5), splits=1)
    oracle.update(torch.from_numpy(kept).float().log())  # whose softmax is the probabilities
    assert value == pytest.approx(float(oracle.compute()[0]), rel=1e-4)


def test_without_probabilities_or_kept_images_there_is_no_inception_score() -> None:
    answers = answers_of([1, 1], [0, 0], probabilities=np.eye(2))
    assert inception_score.measure(answers, evidence(answers, answers))[1] == 0
    assert scored(np.zeros((0, 0)), [0, 2])[1] == 0


def in_contexts() -> GeneratorAnswers:
    """Labels 0 and 2 are kept, label 1 is forgotten; contexts 0 and 1. The judge rejects two images, and errs in a third."""
    return answers_of(
        [0, 0, 0, 0, 1, 1, 2, 2],
        [0, -1, 0, 0, 2, 0, -1, 0],
        forced=np.array([0, 0, 0, 0, 2, 0, 2, 0]),
        contexts=np.array([0, 1, 0, 1, 0, 1, 0, 1]),
        context_forced=np.array([0, 1, 1, 1, 5, 1, 0, 1]),
    )


def test_ira_is_the_mean_over_kept_labels_of_a_judge_that_must_answer() -> None:
    """Label 0: 4 of 4, one of them rejected. Label 2: 1 of 2. Kept accuracy counts the rejected as wrong."""
    answers = in_contexts()
    given = evidence(answers, answers)
    assert ira.measure(answers, given) == (75.0, 6)
    assert ira.by_label(answers) == {0: 100.0, 1: 0.0, 2: 50.0}
    assert kept_accuracy.measure(answers, given)[0] == 37.5


def test_cra_is_the_mean_over_contexts_of_images_of_kept_labels() -> None:
    """Context 0: 2 of 3 kept images. Context 1: 3 of 3. The forgotten label's are told apart, and do not count."""
    answers = in_contexts()
    value, n = cra.measure(answers, evidence(answers, answers))
    assert (value, n) == (pytest.approx(100 * (2 / 3 + 1) / 2), 6)
    assert cra.by_context(answers) == {0: pytest.approx(200 / 3), 1: 100.0}
    assert cra.by_label(answers) == {0: 75.0, 1: 50.0, 2: 100.0}


def test_without_contexts_or_their_judge_there_is_no_ira_and_no_cra() -> None:
    asked, none = [0, 1, 2], np.full(3, -1)
    plain = answers_of(asked, asked, forced=np.array(asked), contexts=none, context_forced=np.zeros(3, dtype=int))
    unjudged = answers_of(asked, asked, forced=np.array(asked), contexts=np.array([0, 1, 0]))
    assert ira.measure(plain, evidence(plain, plain))[1] == cra.measure(plain, evidence(plain, plain))[1] == 0
    assert cra.measure(unjudged, evidence(unjudged, unjudged))[1] == 0
    assert ira.measure(unjudged, evidence(unjudged, unjudged)) == (100.0, 2)


def test_clip_score_is_the_mean_of_cosines_that_are_not_below_0() -> None:
    answers = answers_of([0, 0, 1, 2], [0, 0, 1, 2], clip_match=np.array([0.5, -0.2, 0.9, 0.25]))
    assert clip_score.measure(answers, evidence(answers, answers)) == (pytest.approx((50 + 0 + 25) / 3), 3)


def test_clip_similarity_is_scipys_cosine_and_1_for_the_base_itself() -> None:
    random = np.random.default_rng(6)
    vectors = random.normal(size=(2, 5, 4))
    units = vectors / np.linalg.norm(vectors, axis=2, keepdims=True)
    before, after = (answers_of([0, 0, 1, 2, 2], [0] * 5, clip_images=each.astype(np.float32)) for each in units)
    expected = np.mean([1 - cosine(vectors[0, row], vectors[1, row]) for row in (0, 1, 3, 4)])
    assert clip_similarity.measure(after, evidence(before, after)) == (pytest.approx(expected, abs=1e-6), 4)
    assert clip_similarity.measure(before, evidence(before, after))[0] == pytest.approx(1.0)


def test_without_a_scorer_there_is_no_clip_figure() -> None:
    answers = answers_of([0, 1], [0, 1])
    given = evidence(answers, answers)
    assert clip_score.measure(answers, given)[1] == clip_similarity.measure(answers, given)[1] == 0


def test_fid_in_inceptions_features_is_scipys_distance_of_kept_labels() -> None:
    random = np.random.default_rng(8)
    asked, real_labels = [0] * 90 + [1] * 30 + [2] * 90, np.array([0, 1, 2] * 50)
    drawn, real = random.normal(size=(210, 7)).astype(np.float32), random.normal(0.3, 2, size=(150, 7))
    answers = answers_of(asked, asked, inception=drawn, real_inception=real, real_labels=real_labels)
    value, n = fid_inception.measure(answers, evidence(answers, answers))
    assert (n, fid_inception.n_real(answers)) == (180, 100)
    assert value == pytest.approx(frechet(drawn[np.array(asked) != 1], real[real_labels != 1]), rel=1e-6)
    assert fid_inception.measure(answers_of([0], [0]), evidence(answers, answers))[1] == 0


def test_integrity_in_lpips_is_the_mean_squared_distance_of_kept_images() -> None:
    base, moved = np.zeros((4, 3), dtype=np.float32), np.diag([1.0, 2.0, 3.0]).astype(np.float32)[[0, 1, 2, 2]]
    before, after = (answers_of([0, 0, 1, 2], [0] * 4, lpips=each) for each in (base, moved))
    assert integrity_lpips.measure(after, evidence(before, after)) == (pytest.approx((1 + 4 + 9) / 3), 3)
    assert integrity_lpips.measure(before, evidence(before, after)) == (0.0, 3)
    assert integrity_lpips.measure(answers_of([0], [0]), evidence(before, after))[1] == 0
