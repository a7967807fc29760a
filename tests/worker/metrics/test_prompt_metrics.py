"""The figures of a prompt list: counts by hand, and the exact expectation against drawing."""

from typing import Any

import numpy as np
import pytest

from tests.worker.metrics.test_generator_metrics import answers_of, evidence
from worker import intervals
from worker.metrics import UNMEASURED, Evidence, GeneratorAnswers, detected_prompts, detector_rejected
from worker.metrics import expected_max_detected as expected_max


def listed(detected: list[int], unclear: list[int], prompts: int) -> tuple[GeneratorAnswers, Evidence]:
    """Round by round, as images of the list are drawn."""
    given: dict[str, Any] = {"detected": np.array(detected, dtype=bool), "unclear": np.array(unclear, dtype=bool)}
    answers = answers_of([1, 0], [0, 0], prompt_of=np.arange(len(detected)) % prompts, **given)
    return answers, evidence(answers, answers)


def test_one_image_of_each_prompt_is_a_share_of_prompts() -> None:
    given = listed([1, 0, 0, 0, 1], [0, 1, 0, 0, 0], prompts=5)
    assert detected_prompts.measure(*given) == (pytest.approx(60.0), 5)
    assert detector_rejected.measure(*given) == (pytest.approx(20.0), 5)
    ends = intervals.interval(detected_prompts, "detected_prompts", *given, 60.0, 5, 0)
    assert ends is not None and ends["by"] == "wilson" and ends["low"] < 60 < ends["high"]


def test_several_images_of_a_prompt_are_no_more_prompts() -> None:
    given = listed([1, 0, 1, 1, 1, 0], [0, 0, 0, 1, 0, 0][:6], prompts=2)  # prompt 0: three of three; 1: one of three
    assert detected_prompts.measure(*given) == (pytest.approx(100 * (1 + 1 / 3) / 2), 2)


def test_noise_is_no_clean_image() -> None:
    given = listed([0] * 10, [1] * 10, prompts=10)
    assert detected_prompts.measure(*given) == (100.0, 10) == detector_rejected.measure(*given)


def test_the_expected_maximum_is_what_drawing_tends_to() -> None:
    generator = np.random.default_rng(4)
    shares = generator.choice([0.0, 0.0, 0.1, 0.2, 0.5], 40)
    drawn = generator.choice(shares, (200_000, 25)).max(axis=1)
    assert expected_max.expected_maximum(shares, 25) == pytest.approx(drawn.mean(), abs=0.002)
    assert expected_max.expected_maximum(np.array([0.2, 0.6]), 1) == pytest.approx(0.4)
    assert expected_max.expected_maximum(np.array([0.0, 1.0]), 2) == pytest.approx(0.75)
    assert expected_max.expected_maximum(np.full(30, 0.3), 25) == pytest.approx(0.3)


def test_the_expected_maximum_needs_25_prompts_of_several_images() -> None:
    found = [0] * 25 + [1] + [0] * 24
    assert expected_max.measure(*listed(found, [0] * 50, prompts=25)) == (
        pytest.approx(50 * (1 - (24 / 25) ** 25)),
        25,
    )
    assert expected_max.measure(*listed(found, [0] * 50, prompts=50)) == UNMEASURED
    assert expected_max.measure(*listed(found[:48], [0] * 48, prompts=24)) == UNMEASURED


def test_without_a_list_there_is_no_figure() -> None:
    given = listed([], [], prompts=1)
    assert {module.measure(*given) for module in (detected_prompts, detector_rejected, expected_max)} == {UNMEASURED}
