"""A generator's answers: images at fixed seeds, drawn once, judged once, and then thrown away but for a few.

Every network is asked the same: `forget_samples` images of each label to forget and `samples_per_label` of each
other one, image i from its own seed, each in a context where the settings name some. The unlearned network is asked once more for the forgotten labels with the base's
rows of its label table put back, since overwriting a row is not forgetting. One that knows labels by words is asked for
as many images of the empty prompt as of a kept label, too.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from app.errors import JobError
from worker.answers import required
from worker.contexts import prompted
from worker.families import Samples, labels_of
from worker.judge import Judge, Judged, as_pictures
from worker.metrics import GeneratorAnswers
from worker.panel import ALONE, Panel

CHUNK = 128  # images drawn at once
SEEDS_APART = 1_000_003  # so that two evaluation seeds share no image's noise
SHOWN = 8  # images of each label that are kept for the picture


class Drawn(NamedTuple):
    """What came of so many questions: the first images of each label (rows, columns, H, W, C), what the judge says of every
    image, and what the others say, by name of GeneratorAnswers."""

    pictures: np.ndarray
    judged: Judged
    further: dict[str, Any]


def ask(
    family: ModuleType,
    network: nn.Module,
    sets: Mapping[str, Samples | None],
    kind: str,
    settings: Mapping[str, Any],
    judge: Judge | None,
    progress: Callable[[int, int], None],
    base: nn.Module | None = None,
    panel: Panel = ALONE,
) -> GeneratorAnswers:
    """One network's images, judged. With `base`, it is also asked with the base's label rows put back."""
    label_count = family.label_count(network)
    if judge is None:
        raise JobError("judge_missing", "A generator is measured by a judge: register one with the model.")
    if judge.label_count() != label_count:
        raise JobError("judge_mismatch", f"The judge knows {judge.label_count()} labels, the model {label_count}.")
    forget, test = required(sets, "forget"), sets["test"]
    forgotten = labels_of(network, forget.y).unique().cpu()
    labels, seeds = questions(label_count, forgotten, settings)
    again = torch.isin(labels, forgotten)
    if base is None or not family.label_tables(network):
        again = torch.zeros_like(again)
    nulls = empty_prompts(family, network, settings)
    total = len(labels) + int(again.sum()) + len(nulls)

    def ask_for(some: Tensor, own: Tensor, before: int, panel: Panel = ALONE) -> Drawn:
        return draw(family, network, some, own, settings, judge, lambda done: progress(before + done, total), panel)

    asked = labels.numpy()
    pictures, seen, further = ask_for(labels, seeds, 0, panel)
    restored, generic = seen.labels[:0], seen.features[:0]
    if base is not None and again.any():
        with rows_put_back(family, network, base, forgotten):
            restored = ask_for(labels[again], seeds[again], len(labels)).judged.labels
    if len(nulls):
        generic = ask_for(
            nulls, seeds[-1] + 1 + torch.arange(len(nulls)), len(labels) + int(again.sum())
        ).judged.features
    return GeneratorAnswers(
        forget_labels=tuple(forgotten.tolist()),
        asked=asked,
        judged=seen.labels,
        features=seen.features,
        restored=restored,
        real_features=seen.features[:0] if test is None else judge(as_pictures(test.x)).features,
        **({} if test is None else panel.look_at_real(as_pictures(test.x))),
        real_labels=asked[:0] if test is None else test.y.cpu().numpy(),
        images=pictures,
        nearness=near_prompts(family, network, forgotten),
        generic=generic,
        probabilities=seen.probabilities,
        forced=seen.forced,
        **further,
    )


def empty_prompts(family: ModuleType, network: nn.Module, settings: Mapping[str, Any]) -> Tensor:
    """The null label, once per image that is asked of it; none for a network that knows no words."""
    if "captions" not in network.__dict__:
        return torch.zeros(0, dtype=torch.int64)
    return torch.full((settings["samples_per_label"],), family.null_label(network))


def near_prompts(family: ModuleType, network: nn.Module, forgotten: Tensor) -> np.ndarray:
    """How near each label's prompt is to those of the forgotten ones, (labels,); none where there are no prompts."""
    if "captions" not in network.__dict__:
        return np.zeros(0)
    near: np.ndarray = family.nearness(network, forgotten).amax(0).cpu().numpy()
    return near


def questions(label_count: int, forgotten: Tensor, settings: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Which label each image is asked for, in the labels' order, and each image's own seed."""
    every = torch.arange(label_count)
    counts = torch.where(torch.isin(every, forgotten), settings["forget_samples"], settings["samples_per_label"])
    labels = every.repeat_interleave(counts)
    return labels, settings["seed"] * SEEDS_APART + torch.arange(len(labels))


def draw(
    family: ModuleType,
    network: nn.Module,
    labels: Tensor,
    seeds: Tensor,
    settings: Mapping[str, Any],
    judge: Judge,
    progress: Callable[[int], None],
    panel: Panel = ALONE,
) -> Drawn:
    shown: dict[int, list[np.ndarray]] = {label: [] for label in labels.unique().tolist()}
    judged: list[Judged] = []
    further: list[dict[str, np.ndarray]] = []
    for part, own in zip(labels.split(CHUNK), seeds.split(CHUNK), strict=True):
        told = prompted(family, network, part, own, settings)
        images = family.sample(
            told.network,
            told.rows,
            own,
            steps=settings["sampling_steps"],
            guidance_scale=settings["guidance_scale"],
            eta=settings["eta"],
        )
        pictures = as_pictures(images)
        judged.append(judge(pictures))
        further.append({"contexts": told.contexts, **panel.look(pictures, told.texts)})
        for label, picture in zip(part.tolist(), pictures, strict=True):
            if len(shown[label]) < SHOWN:
                shown[label].append(picture)
        progress(sum(len(each.labels) for each in judged))
    columns = min(len(row) for row in shown.values())
    rows = np.stack([np.stack(row[:columns]) for row in shown.values()])
    return Drawn(
        rows,
        Judged(*(np.concatenate(each) for each in zip(*judged, strict=True))),
        {name: np.concatenate([each[name] for each in further]) for name in further[0]},
    )


def recognised(
    family: ModuleType, settings: Mapping[str, Any], judge: Judge | None, network: nn.Module, samples: Samples
) -> Tensor:
    """One image per sample is drawn for its label, the i-th always from the same seed; the judge says what it shows."""
    if judge is None:
        raise JobError("judge_missing", "A generator is measured by a judge: register one with the model.")
    labels = labels_of(network, samples.y).cpu()
    if len(labels) == 0:
        return torch.zeros(0, dtype=torch.bool)
    seeds = settings["seed"] * SEEDS_APART + torch.arange(len(labels))
    plain = {**settings, "contexts": []}  # by the label's own prompt, which an attack may have worded anew
    judged = draw(family, network, labels, seeds, plain, judge, lambda done: None).judged.labels
    return torch.from_numpy(judged) == labels


@contextmanager
def rows_put_back(family: ModuleType, network: nn.Module, base: nn.Module, labels: Tensor) -> Iterator[None]:
    """Within the block, the network's label tables hold the base's rows of these labels; after it, its own again."""
    tables, originals = family.label_tables(network), family.label_tables(base)
    own = {name: table.detach()[labels].clone() for name, table in tables.items()}
    try:
        with torch.no_grad():
            for name, table in tables.items():
                table[labels] = originals[name][labels].to(table.dtype)
        yield
    finally:
        with torch.no_grad():
            for name, table in tables.items():
                table[labels] = own[name]
