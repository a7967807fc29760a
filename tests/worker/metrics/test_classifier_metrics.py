"""The classifiers' figures on answers small enough to count by hand, or against numpy, scipy and scikit-learn."""

import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score, top_k_accuracy_score
from sklearn.svm import SVC

from worker.metrics import (
    ClassifierAnswers,
    Evidence,
    NamingAnswers,
    changed_weights,
    forget_top1,
    forget_top5,
    gap_to_retrain,
    mia_auc,
    mia_efficacy,
    retain_accuracy,
    run_time_efficiency,
    test_accuracy,
    unlearning_accuracy,
)

LABELS = 4


def sure(labels: list[int], given: list[int], confidence: float = 0.97) -> tuple[np.ndarray, np.ndarray]:
    """Rows that give `confidence` to `given`, and the true labels."""
    rows = np.full((len(given), LABELS), (1 - confidence) / (LABELS - 1))
    rows[np.arange(len(given)), given] = confidence
    return rows, np.array(labels)


def by_confidence(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose true label, always 0, has the given probability."""
    rest = np.repeat(((1 - values) / (LABELS - 1))[:, None], LABELS - 1, axis=1)
    return np.concatenate([values[:, None], rest], axis=1), np.zeros(len(values), dtype=int)


def answers_of(*sets: tuple[np.ndarray, np.ndarray]) -> ClassifierAnswers:
    return ClassifierAnswers(*(array for pair in sets for array in pair))


def evidence(
    before: ClassifierAnswers, after: ClassifierAnswers, reference: ClassifierAnswers | None = None
) -> Evidence:
    return Evidence(before, after, reference, seconds=3.5, changed=30, weights=120)


def hand_made() -> ClassifierAnswers:
    return answers_of(
        sure([0, 1, 2, 3], [0, 1, 2, 0]),  # 3 of 4 right
        sure([0, 1, 2, 3, 0], [0, 1, 2, 3, 1]),  # 4 of 5
        sure([0, 1, 2], [0, 0, 0]),  # 1 of 3
    )


def test_accuracies_count_what_is_right() -> None:
    answers = hand_made()
    given = evidence(answers, answers)
    assert unlearning_accuracy.measure(answers, given) == (25.0, 4)
    assert retain_accuracy.measure(answers, given) == (80.0, 5)
    value, n = test_accuracy.measure(answers, given)
    assert value == pytest.approx(100 / 3) and n == 3


def test_forget_top_1_and_5_are_scikit_learns() -> None:
    random = np.random.default_rng(2)
    rows, labels = random.dirichlet(np.ones(9), 80), random.integers(0, 9, 80)
    answers = answers_of((rows, labels), sure([0], [0]), sure([0], [0]))
    for metric, k in ((forget_top1, 1), (forget_top5, 5)):
        expected = 100 * top_k_accuracy_score(labels, rows, k=k, labels=np.arange(9))
        assert metric.measure(answers, evidence(answers, answers)) == (pytest.approx(expected), 80)
        assert 0 < expected < 100


def test_a_naming_network_is_counted_by_the_names_it_says() -> None:
    said = NamingAnswers(np.array([True, False, False, False]), np.array([True, False]), np.zeros(0, dtype=bool))
    given = Evidence(said, said, None, 1.0, 1, 2)
    assert unlearning_accuracy.measure(said, given) == (75.0, 4)
    assert retain_accuracy.measure(said, given) == (50.0, 2)
    assert test_accuracy.measure(said, given)[1] == 0


def test_mia_efficacy_is_an_svc_on_the_true_labels_confidence() -> None:
    random = np.random.default_rng(0)
    forget, retain, test = (random.beta(a, 2, size=n) for a, n in ((4, 40), (20, 120), (2, 90)))
    answers = answers_of(by_confidence(forget), by_confidence(retain), by_confidence(test))
    oracle = SVC(C=3.0, kernel="rbf", gamma=1.0)  # auto is 1 / features
    drawn = retain[np.random.default_rng(0).permutation(120)[:90]]
    oracle.fit(np.concatenate([drawn, test]).reshape(-1, 1), np.array([1] * 90 + [0] * 90))
    expected = 100 * (1 - oracle.predict(forget.reshape(-1, 1)).mean())
    assert mia_efficacy.measure(answers, evidence(answers, answers)) == (pytest.approx(expected), 40)
    assert 0 < expected < 100


def test_mia_efficacy_of_what_looks_like_members_is_0_and_like_strangers_100() -> None:
    retain, test = by_confidence(np.full(50, 0.99)), by_confidence(np.full(50, 0.4))
    for confidence, expected in ((0.99, 0.0), (0.4, 100.0)):
        answers = answers_of(by_confidence(np.full(20, confidence)), retain, test)
        assert mia_efficacy.measure(answers, evidence(answers, answers)) == (expected, 20)


def test_mia_efficacy_feeds_the_attacker_equal_sides() -> None:
    """Ten retained items against a thousand test items: an unequal attacker would call everybody a stranger."""
    retain, test = by_confidence(np.full(10, 0.99)), by_confidence(np.full(1000, 0.5))
    answers = answers_of(by_confidence(np.full(20, 0.99)), retain, test)
    assert mia_efficacy.measure(answers, evidence(answers, answers))[0] == 0.0


@pytest.mark.parametrize(
    ("retained", "tested", "first"), [(900, 300, "easy"), (300, 900, "hard")], ids=["more-retained", "more-tested"]
)
def test_mia_efficacy_does_not_depend_on_the_order_of_the_sets(retained: int, tested: int, first: str) -> None:
    """One half of each set is of an easy label, the other of a hard one, in folders' order: by label. An attacker who is fed the
    begin of the larger set takes what is easy and new for known, or what is hard and known for new."""
    random = np.random.default_rng(7)

    def side(easy: float, hard: float, n: int) -> np.ndarray:
        means = np.repeat((easy, hard) if first == "easy" else (hard, easy), n // 2)
        return (means + random.normal(0, 0.02, n)).clip(0, 1)

    members, strangers = side(0.95, 0.6, retained), side(0.45, 0.2, tested)
    forget = by_confidence(np.concatenate([side(0.95, 0.6, 100), side(0.45, 0.2, 100)]))  # half of it is known still
    values = []
    for order in (np.arange, random.permutation):
        answers = answers_of(forget, by_confidence(members[order(retained)]), by_confidence(strangers[order(tested)]))
        values.append(mia_efficacy.measure(answers, evidence(answers, answers))[0])
    assert values == [pytest.approx(50, abs=2)] * 2


def test_mia_auc_is_the_area_under_the_curve() -> None:
    random = np.random.default_rng(1)
    forget = np.round(random.beta(6, 2, size=70), 2)  # rounded: ties count half
    test = np.round(random.beta(3, 2, size=110), 2)
    answers = answers_of(by_confidence(forget), by_confidence(forget), by_confidence(test))
    value, n = mia_auc.measure(answers, evidence(answers, answers))
    truth = np.array([1] * 70 + [0] * 110)
    assert n == 70
    assert value == pytest.approx(100 * roc_auc_score(truth, np.concatenate([forget, test])))
    assert value == pytest.approx(100 * mannwhitneyu(forget, test).statistic / (70 * 110))


@pytest.mark.parametrize(("confidence", "expected"), [(0.9, 100.0), (0.5, 50.0), (0.1, 0.0)])
def test_mia_auc_is_50_where_nothing_tells_them_apart(confidence: float, expected: float) -> None:
    answers = answers_of(*(by_confidence(np.full(30, value)) for value in (confidence, 0.5, 0.5)))
    assert mia_auc.measure(answers, evidence(answers, answers))[0] == expected


def test_gap_is_the_mean_distance_of_the_four() -> None:
    answers, reference = hand_made(), hand_made()
    answers.measured.update(unlearning_accuracy=4.0, retain_accuracy=99.0, test_accuracy=90.0, mia_efficacy=20.0)
    reference.measured.update(unlearning_accuracy=10.0, retain_accuracy=100.0, test_accuracy=89.0, mia_efficacy=32.0)
    value, n = gap_to_retrain.measure(answers, evidence(hand_made(), answers, reference))
    assert value == pytest.approx((6 + 1 + 1 + 12) / 4) and n == 4
    assert gap_to_retrain.measure(reference, evidence(hand_made(), answers, reference))[0] == 0.0
    assert gap_to_retrain.measure(answers, evidence(hand_made(), answers))[1] == 0


def test_without_a_test_set_nothing_is_made_up() -> None:
    answers = answers_of(sure([0], [0]), sure([1], [1]), (np.zeros((0, LABELS)), np.zeros(0, dtype=int)))
    for metric in (test_accuracy, mia_efficacy, mia_auc):
        value, n = metric.measure(answers, evidence(answers, answers))
        assert math.isnan(value) and n == 0


def test_cost_and_changes_belong_to_the_unlearned_side_only() -> None:
    before, after = hand_made(), hand_made()
    given = evidence(before, after)
    assert run_time_efficiency.measure(after, given) == (3.5, 1)
    assert changed_weights.measure(after, given) == (25.0, 120)
    assert run_time_efficiency.measure(before, given)[1] == changed_weights.measure(before, given)[1] == 0
