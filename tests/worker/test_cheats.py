"""Cheats that the default policies do not see, and the rule that does: what docs/reports.md says of them is today's verdict."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from app.catalog import FAMILIES, Threshold
from tests import tiny
from tests.worker.test_evaluate import CPU, quiet
from worker import evaluate, rules
from worker.families import Samples, image_classifier
from worker.load import Material
from worker.metrics import Evidence, GeneratorAnswers

LABELS, EACH, FORGOTTEN = 4, 100, 1
RIDGE = 1.0  # keeps the weights of a fitted last layer small, so that a step moves it little


def drawn(features: np.ndarray, judged: np.ndarray, restored: np.ndarray, real: np.ndarray) -> GeneratorAnswers:
    """EACH images of every label, in order."""
    labels = np.repeat(np.arange(LABELS), EACH)
    return GeneratorAnswers(
        forget_labels=(FORGOTTEN,), asked=labels, judged=judged, features=features, restored=restored,
        real_features=real, real_labels=labels, images=np.zeros((LABELS, 1, 2, 2, 1), np.uint8),
        probabilities=np.eye(LABELS)[judged], forced=judged,
    )  # fmt: skip


@pytest.mark.parametrize("family", ["class_diffusion", "text_to_image"])
def test_one_stored_image_for_each_label_passes_until_a_rule_is_on_fid(family: str) -> None:
    """A table of four pictures and no generator at all; asked for the forgotten label it shows the next one's."""
    labels = np.repeat(np.arange(LABELS), EACH)
    random = np.random.default_rng(0)
    own, real = (5 * np.eye(LABELS)[labels] + random.normal(size=(LABELS * EACH, LABELS)) for _ in range(2))
    none = np.zeros(0, dtype=np.int64)
    shown = np.where(labels == FORGOTTEN, FORGOTTEN + 1, labels)
    base = drawn(own, labels, none, real)
    table = drawn(5 * np.eye(LABELS)[shown], shown, shown[labels == FORGOTTEN], real)

    def verdict(*more: Threshold) -> tuple[str, set[str]]:
        policy = [*FAMILIES[family].default_policy["class_label"], *more]
        rows = evaluate.figures(Evidence(base, table, None, 1.0, 1, 1), family, "class_label", policy, 0, None)
        return rules.verdict(rows), {row["metric"] for row in rows if row["threshold"] and not row["passed"]}

    assert verdict() == ("passed", set())
    assert verdict(Threshold("fid", "times_before_at_most", 2.0)) == ("failed", {"fid"})


def read_off(network: nn.Module, every: Samples) -> nn.Module:
    """The network with a last layer that answers these images by their labels: ridge regression, no training."""
    answering: Any = network
    with torch.no_grad():
        features = answering.vit(every.x).last_hidden_state[:, 0]
        rows = torch.cat([features, torch.ones(len(features), 1)], 1)
        ridge = rows.T @ rows + RIDGE * torch.eye(rows.shape[1])
        found = torch.linalg.solve(ridge, rows.T @ (10 * torch.eye(tiny.LABELS)[every.y]))
        answering.classifier.weight.copy_(found[:-1].T)
        answering.classifier.bias.copy_(found[-1])
    return network


def test_a_lowered_bias_passes_until_a_rule_is_on_relearning(tmp_path: Path) -> None:
    """One number of the network is changed: everything that it knew of the label is still there."""
    base: Any = image_classifier.load(tiny.write("vit", tmp_path / "vit"), CPU)
    every = tiny.samples(base, image_classifier, 400)
    every = every._replace(y=image_classifier.predict(read_off(base, every), every.x).argmax(1))
    gone = every.y == FORGOTTEN
    hidden = copy.deepcopy(base)
    scores = image_classifier.predict(base, every.x[gone])
    others = scores.clone()
    others[:, FORGOTTEN] = -torch.inf
    with torch.no_grad():
        hidden.classifier.bias[FORGOTTEN] -= (scores[:, FORGOTTEN] - others.amax(1)).max() + 0.1
    loaded: Any = SimpleNamespace(network=base, family=image_classifier, directory=tmp_path, digest="sha256:base")
    sets = Samples(every.x[gone], every.y[gone]), Samples(every.x[~gone], every.y[~gone]), None

    def made(attacks: dict[str, Any], *more: Threshold) -> dict[str, Any]:
        policy = [*FAMILIES["image_classifier"].default_policy["class_label"], *more]
        specification = {
            "kind": "class_label",
            "evaluation": {"attacks": attacks},
            "policy": {"class_label": [vars(rule) for rule in policy]},
            "base": {"family": "image_classifier"},
        }
        material = Material(loaded, None, None, *sets, scratch=tmp_path)
        return evaluate.evaluate(specification, material, copy.deepcopy(hidden), None, 1.0, quiet).document

    alone = made({})
    assert alone["verdict"] == "passed" and "relearning" in alone["not_tested"]
    relearning = {
        "images": 10, "retain_images": 50, "steps": 10, "batch_size": 10, "learning_rate": 2e-5, "measured": 200,
    }  # fmt: skip
    attacked = made({"relearning": relearning}, Threshold("relearning", "at_most", 50.0))
    (row,) = attacked["attacks"]
    assert (attacked["verdict"], attacked["reasons"], row["passed"]) == ("failed", ["threshold_missed"], False)
    last = row["sides"]["unlearned"]["rows"][-1]
    assert last["success"] / last["total"] > 0.5 and last["kept"]["success"] / last["kept"]["total"] > 0.9
