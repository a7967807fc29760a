"""A vision-language model's answers: for each image, whether the greedy answer holds the name of its own label."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from worker.answer_set import AnswerSet
from worker.answers import required
from worker.families import Captions, Samples, labels_of
from worker.judge import Judge
from worker.metrics import NamingAnswers
from worker.panel import ALONE, Panel

CHUNK = 64  # images asked about at once


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
) -> NamingAnswers:
    """The test set is asked about without images of a forgotten label."""
    captions: Captions = network.__dict__["captions"]
    meant = torch.tensor(captions.labels)
    forget, retain, test = required(sets, "forget"), required(sets, "retain"), sets["test"]
    labels = {
        "forget": meant[forget.y.cpu()],
        "retain": meant[retain.y.cpu()],
        "test": torch.zeros(0, dtype=torch.int64),
    }
    images = {"forget": forget.x, "retain": retain.x, "test": forget.x[:0]}
    if test is not None:
        kept = ~torch.isin(test.y.cpu(), labels["forget"].unique())
        labels["test"], images["test"] = test.y.cpu()[kept], test.x[kept.to(test.x.device)]
    total, done = sum(len(each) for each in images.values()), 0
    named: dict[str, np.ndarray] = {}
    for name, x in images.items():
        said: list[bool] = []
        for part, own in zip(x.split(CHUNK), labels[name].split(CHUNK), strict=True):
            spoken = family.answer(network, part)
            said += [
                captions.names[label].casefold() in text.casefold()
                for text, label in zip(spoken, own.tolist(), strict=True)
            ]
            done += len(part)
            progress(done, total)
        named[name] = np.array(said, dtype=bool)
    return NamingAnswers(named["forget"], named["retain"], named["test"])


def recognised(
    family: ModuleType, settings: Mapping[str, Any], judge: Judge | None, network: nn.Module, samples: Samples
) -> torch.Tensor:
    names = network.__dict__["captions"].names
    own = [names[label].casefold() for label in labels_of(network, samples.y).tolist()]
    spoken = [text.casefold() for part in samples.x.split(CHUNK) for text in family.answer(network, part)]
    return torch.tensor([name in text for name, text in zip(own, spoken, strict=True)], dtype=torch.bool)
