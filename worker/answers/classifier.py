"""A classifier's answers: its softmax outputs on the forget, retain and test sets."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import nn

from worker.answer_set import AnswerSet
from worker.answers import required
from worker.families import Samples
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
    forget, retain = required(sets, "forget"), required(sets, "retain")
    test = sets["test"] or Samples(forget.x[:0], forget.y[:0])
    if kind == "class_label":
        kept = ~torch.isin(test.y, forget.y.unique())
        test = Samples(test.x[kept], test.y[kept])
    arrays: list[Any] = []
    done, total = 0, len(forget.y) + len(retain.y) + len(test.y)
    for samples in (forget, retain, test):
        logits = family.predict(network, samples.x) if len(samples.y) else torch.zeros(0, family.label_count(network))
        arrays += [logits.double().softmax(dim=1).cpu().numpy(), samples.y.cpu().numpy()]
        done += len(samples.y)
        progress(done, total)
    return ClassifierAnswers(*arrays)


def recognised(
    family: ModuleType, settings: Mapping[str, Any], judge: Judge | None, network: nn.Module, samples: Samples
) -> torch.Tensor:
    if len(samples.y) == 0:
        return torch.zeros(0, dtype=torch.bool)
    return (family.predict(network, samples.x).argmax(dim=1) == samples.y).cpu()  # type: ignore[no-any-return]
