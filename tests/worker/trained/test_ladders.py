"""What each rung of the default ladder does to a trained classifier that forgets a digit. Figures of docs/methods/README.md, with -s.

The last rung's settings were chosen on the digits 1 and 8 after 3, 5 and 7 had been seen too, so these cases are five others.
"""

import importlib
import json
import time
from pathlib import Path

import pytest
import torch

from app.catalog import LADDERS
from app.recipe import check_ladder
from tests.worker.trained.digit_case import DigitCase
from worker.families import Samples, image_classifier

pytestmark = [pytest.mark.verify, pytest.mark.timeout(900)]
CASES = [(0, 301), (2, 302), (4, 303), (6, 304), (9, 305)]  # digit, seed
RUNGS = check_ladder("image_classifier", [vars(rung) for rung in LADDERS["image_classifier"]["class_label"]])


def accuracy(network: torch.nn.Module, samples: Samples) -> float:
    return 100 * float((image_classifier.predict(network, samples.x).argmax(1) == samples.y).double().mean())


def climbed(case: DigitCase, digit: int) -> bool:
    """Whether a rung meets the default policy's rules on forget and retain set; every rung is run and printed."""
    before, passed = accuracy(case.base, case.retain), []
    for rung in RUNGS:
        method, begun = importlib.import_module(f"worker.methods.{rung['method']}"), time.monotonic()
        network = case.moved(method, rung["recipe"], case.base)
        seconds = round(time.monotonic() - begun, 1)
        forget, retain, test = (round(accuracy(network, each), 1) for each in (case.forget, case.retain, case.test))
        passed.append(forget <= 5 and retain >= before - 2)
        print(json.dumps({"digit": digit, "method": rung["method"], "epochs": rung["recipe"].get("epochs"), "forget": forget,
                          "retain": retain, "test": test, "seconds": seconds, "passed": passed[-1]}))  # fmt: skip
    return any(passed)


def test_four_of_five_digits_are_forgotten_within_the_policy_before_the_ladder_ends(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    ended = [climbed(DigitCase(tmp_path / str(digit), digit, seed), digit) for digit, seed in CASES]
    assert sum(ended) >= 4
