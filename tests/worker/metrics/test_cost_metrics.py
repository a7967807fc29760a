"""What a version cost: counts as they were taken, of the unlearned side alone, and absent where nothing told them."""

import math

import pytest

from tests.worker.metrics.test_generator_metrics import answers_of
from worker import evaluate
from worker.metrics import (
    Cost,
    Evidence,
    energy,
    peak_device_memory,
    peak_memory,
    run_time_efficiency,
    storage_added,
)

COSTS = (peak_memory, peak_device_memory, energy, storage_added)
TAKEN = Cost(host_bytes=2_500_000, device_bytes=40_000_000, joules=12.5, bytes_added=30, bytes_full=1200)


def evidence(cost: Cost) -> Evidence:
    return Evidence(answers_of([0, 1], [0, 1]), answers_of([0, 1], [0, 0]), None, 3.5, 1, 2, cost)


def test_costs_are_told_in_megabytes_joules_and_shares_of_a_full_copy() -> None:
    given = evidence(TAKEN)
    found = [metric.measure(given.after, given) for metric in COSTS]
    assert found == [(2.5, 1), (40.0, 1), (12.5, 1), (2.5, 1200)]
    assert run_time_efficiency.measure(given.after, given) == (3.5, 1)


def test_a_version_that_changed_nothing_adds_nothing() -> None:
    given = evidence(Cost(bytes_added=0, bytes_full=1200))
    assert storage_added.measure(given.after, given) == (0.0, 1200)


@pytest.mark.parametrize("metric", COSTS)
def test_the_base_has_no_cost_and_what_is_not_told_is_not_measured(metric: object) -> None:
    told, untold = evidence(TAKEN), evidence(Cost())
    for side, given in ((told.before, told), (untold.after, untold)):
        value, n = metric.measure(side, given)  # type: ignore[attr-defined]
        assert math.isnan(value) and n == 0


def test_only_a_device_s_figures_are_left_out_of_a_report_without_one() -> None:
    def names(cost: Cost) -> set[str]:
        return {
            row["metric"] for row in evaluate.figures(evidence(cost), "class_diffusion", "class_label", [], 0, None)
        }

    assert names(TAKEN) - names(Cost()) == {"peak_device_memory", "energy"}
    assert {"peak_memory", "storage_added"} <= names(Cost())
