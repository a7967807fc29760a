"""A generator's answers: images at fixed seeds, drawn once, judged once, and then thrown away but for a few.

Every network is asked the same: `forget_samples` images of each label to forget and `samples_per_label` of each
other one, each in a context where the settings name some. Image i of a label always has the same seed, whichever label is
forgotten and however many are asked for, so what a network answered before (`answered`) is not drawn again. The unlearned
network is asked once more for the forgotten labels with the base's rows of its label table put back, since overwriting a
row is not forgetting. One that knows labels by words is asked for as many images of the empty prompt as of a kept label, too, and
for those of the evaluation's list of prompts (worker/prompt_list.py).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from app.errors import JobError
from worker import prompt_list
from worker.answer_set import EMPTY_PROMPT, AnswerSet
from worker.answers import required
from worker.contexts import prompted
from worker.families import Samples, labels_of
from worker.judge import Judge, Judged, as_pictures
from worker.metrics import GeneratorAnswers
from worker.panel import ALONE, Panel

BATCH = (
    32  # images drawn at once, always: an image's last bits follow from the size of its batch, not from its place in it
)
SEEDS_APART = 1_000_003  # so that two evaluation seeds share no label's noise
LABELS_APART = 2_654_435_769  # 2^32 over the golden ratio, which keeps thousands of labels' seeds 100,000 apart
GENERATOR_SEEDS = 2**32  # torch reads no more of a seed on the CPU
SHOWN = 8  # images of each label that are kept for the picture
OWN = {"pictures", "probabilities", "features"}  # of an answer set; what else it holds is as GeneratorAnswers names it


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
) -> GeneratorAnswers:
    """One network's images, judged. With `base`, it is also asked with the base's label rows put back; where they are the
    base's anyway, it has answered that already."""
    judge = checked(judge, family.label_count(network))
    forgotten = labels_of(network, required(sets, "forget").y).unique().cpu()
    wanted, generic = questions(family.label_count(network), forgotten, settings), empty_prompts(network, settings)
    listed = prompt_list.wanted(settings, panel.detector)
    gone = {label: wanted[label] for label in forgotten.tolist()}
    moved = base is not None and rows_moved(family, network, base, forgotten)
    answers = answered or AnswerSet()
    restored = AnswerSet() if moved else answers
    lacking, unlisted = lacks(answers, wanted | generic), lacks(answers, listed)
    answers.drawn = len(lacking[0]) + len(unlisted[0])
    answers.reused = sum((wanted | generic | listed).values()) - answers.drawn
    total = answers.drawn + (sum(gone.values()) if moved else 0)
    draw(family, network, answers, *lacking, settings, judge, panel, lambda done: progress(done, total))
    further = partial(_after, progress, len(lacking[0]), total)
    draw_listed(family, network, answers, *unlisted, settings, panel, further)
    if base is not None and moved:
        with rows_put_back(family, network, base, forgotten):
            further = partial(_after, progress, answers.drawn, total)
            draw(family, network, restored, *lacks(restored, gone), settings, judge, ALONE, further)
    if total == 0:
        progress(1, 1)
    seen, test = judged_of(judge, answers, wanted), sets["test"]
    others: dict[str, Any] = {name: answers.first(wanted, name) for name in answers.names(wanted) - OWN}
    others |= prompt_list.found(answers, settings, panel.detector)
    return GeneratorAnswers(
        forget_labels=tuple(gone),
        asked=np.repeat(list(wanted), list(wanted.values())),
        judged=seen.labels,
        features=seen.features,
        probabilities=seen.probabilities,
        forced=seen.forced,
        restored=judged_of(judge, restored, gone).labels
        if base is not None and family.label_tables(network)
        else seen.labels[:0],
        real_features=seen.features[:0] if test is None else judge(as_pictures(test.x)).features,
        **({} if test is None else panel.look_at_real(as_pictures(test.x))),
        real_labels=seen.labels[:0] if test is None else test.y.cpu().numpy(),
        images=shown(answers, wanted),
        nearness=near_prompts(family, network, forgotten),
        generic=answers.first(generic, "features") if generic else seen.features[:0],
        **others,
    )


def checked(judge: Judge | None, label_count: int) -> Judge:
    if judge is None:
        raise JobError("judge_missing", "A generator is measured by a judge: register one with the model.")
    if judge.label_count() != label_count:
        raise JobError("judge_mismatch", f"The judge knows {judge.label_count()} labels, the model {label_count}.")
    return judge


def questions(label_count: int, forgotten: Tensor, settings: Mapping[str, Any]) -> dict[int, int]:
    """How many images each label is asked for."""
    gone = set(forgotten.tolist())
    counts = {
        label: settings["forget_samples"] if label in gone else settings["samples_per_label"]
        for label in range(label_count)
    }
    return {label: count for label, count in counts.items() if count}


def empty_prompts(network: nn.Module, settings: Mapping[str, Any]) -> dict[int, int]:
    """How many images of the empty prompt; none of a network that knows no words."""
    count = settings["samples_per_label"]
    return {EMPTY_PROMPT: count} if count and "captions" in network.__dict__ else {}


def near_prompts(family: ModuleType, network: nn.Module, forgotten: Tensor) -> np.ndarray:
    """How near each label's prompt is to those of the forgotten ones, (labels,); none where there are no prompts."""
    if "captions" not in network.__dict__:
        return np.zeros(0)
    near: np.ndarray = family.nearness(network, forgotten).amax(0).cpu().numpy()
    return near


def shown(answers: AnswerSet, wanted: Mapping[int, int]) -> np.ndarray:
    """The first images of each label, as many of each: (rows, columns, H, W, C)."""
    columns = min(SHOWN, *wanted.values())
    return np.stack([answers.rows[label]["pictures"][:columns] for label in wanted])


def lacks(answers: AnswerSet, wanted: Mapping[int, int]) -> tuple[Tensor, Tensor]:
    """What is asked for and not there yet: each image's label, and its number among the label's images."""
    missing = {
        label: torch.arange(answers.count(label), count)
        for label, count in wanted.items()
        if count > answers.count(label)
    }
    if not missing:
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    labels = torch.tensor(list(missing)).repeat_interleave(torch.tensor([len(each) for each in missing.values()]))
    return labels, torch.cat(list(missing.values()))


def seeds_of(labels: Tensor, numbers: Tensor, seed: int) -> Tensor:
    """Image i of a label always has the same seed; the empty prompt stands before the first label, and the
    list of prompts before that."""
    return (seed * SEEDS_APART + (labels - EMPTY_PROMPT) * LABELS_APART + numbers) % GENERATOR_SEEDS


def _after(progress: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    progress(before + done, total)


def judged_of(judge: Judge, answers: AnswerSet, counts: Mapping[int, int]) -> Judged:
    """What the judge says of the first so many images of each label."""
    return judge.judged(answers.first(counts, "probabilities"), answers.first(counts, "features"))


def draw(
    family: ModuleType,
    network: nn.Module,
    answers: AnswerSet,
    labels: Tensor,
    numbers: Tensor,
    settings: Mapping[str, Any],
    judge: Judge,
    panel: Panel,
    progress: Callable[[int], None],
) -> None:
    """Draw these images of these labels and add what is said of them, and the first ones themselves."""
    told = labels
    if (labels == EMPTY_PROMPT).any():
        told = labels.masked_fill(labels == EMPTY_PROMPT, family.null_label(network))
    done = 0
    for pictures, said in looked_at(
        family, network, told, seeds_of(labels, numbers, settings["seed"]), settings, judge, panel
    ):
        part = slice(done, done + len(pictures))
        for label in labels[part].unique().tolist():
            own = (labels[part] == label).numpy()
            first = own & (numbers[part] < SHOWN).numpy()
            answers.add(label, {name: array[own] for name, array in said.items()} | {"pictures": pictures[first]})
        done += len(pictures)
        progress(done)


def draw_listed(
    family: ModuleType,
    network: nn.Module,
    answers: AnswerSet,
    labels: Tensor,
    numbers: Tensor,
    settings: Mapping[str, Any],
    panel: Panel,
    progress: Callable[[int], None],
) -> None:
    """Draw these images of the evaluation's list of prompts."""
    if len(labels) and panel.detector is not None:
        own = seeds_of(labels, numbers, settings["seed"])
        prompt_list.draw(family, network, answers, numbers, own, settings, panel.detector, BATCH, progress)


def looked_at(
    family: ModuleType,
    network: nn.Module,
    labels: Tensor,
    seeds: Tensor,
    settings: Mapping[str, Any],
    judge: Judge,
    panel: Panel,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Batch by batch the images of these labels, and what judge and panel say of them, by name.

    A last batch that is not full is filled up with repeats, which are thrown away: rows that are drawn in different jobs are
    bit for bit those that one job would have drawn.
    """
    for start in range(0, len(labels), BATCH):
        part, own = labels[start : start + BATCH], seeds[start : start + BATCH]
        part, filled = (torch.cat([each, each[-1:].expand(BATCH - len(each))]) for each in (part, own))
        told = prompted(family, network, part, filled, settings)
        images = family.sample(
            told.network,
            told.rows,
            filled,
            steps=settings["sampling_steps"],
            guidance_scale=settings["guidance_scale"],
            eta=settings["eta"],
        )
        pictures = as_pictures(images)
        probabilities, features = judge.see(pictures)
        said = {"probabilities": probabilities, "features": features, "contexts": told.contexts}
        said |= panel.look(pictures, told.texts)
        yield pictures[: len(own)], {name: array[: len(own)] for name, array in said.items()}


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
    drawn = [said for _, said in looked_at(family, network, labels, seeds, plain, judge, ALONE)]
    seen = judge.judged(*(np.concatenate([said[name] for said in drawn]) for name in ("probabilities", "features")))
    return torch.from_numpy(seen.labels) == labels


def rows_moved(family: ModuleType, network: nn.Module, base: nn.Module, labels: Tensor) -> bool:
    """Whether a row of these labels is another than the base's."""
    originals = family.label_tables(base)
    tables = family.label_tables(network).items()
    return not all(torch.equal(table[labels], originals[name][labels].to(table.dtype)) for name, table in tables)


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
