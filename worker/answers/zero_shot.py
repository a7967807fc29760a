"""A two-tower network's answers: for each image, softmax over the prompts of all labels. Nothing was trained to classify."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import nn

from worker.answer_set import AnswerSet
from worker.answers import required
from worker.families import Samples, labels_of
from worker.judge import Judge
from worker.metrics import ClassifierAnswers
from worker.panel import ALONE, Panel


def ask(
    family: ModuleType,
    network: nn.Module,
    sets: Mapping[str, Samples | None],
    kind: str,
    settings: Mapping[str, Any],
    judge: Judge | None,
    progress: Callable[[int, int], None],
    base: nn.Module | None = None,
    answered: AnswerSet | None = None,
    panel: Panel = ALONE,
) -> ClassifierAnswers:
    """Retain and test sets are asked about without images of a label that is to be forgotten whole."""
    forget, retain, test = required(sets, "forget"), required(sets, "retain"), sets["test"]
    own = family.labels_of(network, forget.y)
    asked = [(forget.x, own), (retain.x, family.labels_of(network, retain.y))]
    asked.append((forget.x[:0], own[:0]) if test is None else (test.x, test.y))  # a test set holds labels, not texts
    if kind == "class_label":
        asked[1:] = [without(x, labels, own) for x, labels in asked[1:]]
    arrays: list[Any] = []
    done, total = 0, sum(len(labels) for _, labels in asked)
    for x, labels in asked:
        logits = family.predict(network, x) if len(labels) else torch.zeros(0, family.label_count(network))
        arrays += [logits.double().softmax(dim=1).cpu().numpy(), labels.cpu().numpy()]
        done += len(labels)
        progress(done, total)
    return ClassifierAnswers(*arrays)


def recognised(
    family: ModuleType, settings: Mapping[str, Any], judge: Judge | None, network: nn.Module, samples: Samples
) -> torch.Tensor:
    if len(samples.y) == 0:
        return torch.zeros(0, dtype=torch.bool)
    return (family.predict(network, samples.x).argmax(dim=1) == labels_of(network, samples.y)).cpu()  # type: ignore[no-any-return]


def without(x: torch.Tensor, labels: torch.Tensor, gone: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    kept = ~torch.isin(labels, gone)
    return x[kept], labels[kept]
