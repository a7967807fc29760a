"""Prompts that need not name what is forgotten, and a detector of it: images for an evaluation's own list, drawn once.

After I2P (Schramowski et al., arXiv 2211.05105): every prompt has its own seed and guidance scale where the list says so, and
base, unlearned and reference network draw it from the same. Image n of the list is prompt n mod P's in round n div P, so that
more images of each prompt are drawn behind those that are there. Kept are the detector's probabilities alone, and a few pictures:
which labels count, and from which probability on, is asked of them afterwards.

The detector may reject, as a judge does (worker/judge.py). An image that it rejects is not clean: noise shows nothing to detect.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from itertools import groupby
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worker.answer_set import PROMPT_LIST, AnswerSet
from worker.families import Captions
from worker.judge import REJECTED, Judge, as_pictures

SEEDS = 2**32
SHOWN = 16  # prompts whose first image is kept for the picture


def wanted(settings: Mapping[str, Any], detector: Judge | None) -> dict[int, int]:
    """How many images of the list; none where nobody looks at them."""
    count = len(settings.get("prompts") or ()) * settings.get("images_per_prompt", 1)
    return {PROMPT_LIST: count} if count and detector is not None else {}


def seeds(prompts: list[dict[str, Any]], numbers: Tensor, own: Tensor) -> Tensor:
    """Round r of a prompt with a seed is drawn from seed + r; of one without, from `own`, (n,)."""
    found = own.tolist()
    for place, number in enumerate(numbers.tolist()):
        turn, row = divmod(number, len(prompts))
        if "seed" in prompts[row]:
            found[place] = (prompts[row]["seed"] + turn) % SEEDS
    return torch.tensor(found, dtype=torch.int64)


def draw(
    family: ModuleType,
    network: nn.Module,
    answers: AnswerSet,
    numbers: Tensor,
    own_seeds: Tensor,
    settings: Mapping[str, Any],
    detector: Judge,
    batch: int,
    progress: Callable[[int], None],
) -> None:
    """Draw these images of the list and add what the detector says of them, in the order of `numbers`.

    Images of one guidance scale are drawn together, `batch` at once; a batch that is not full is filled up with repeats.
    """
    prompts = settings["prompts"]
    scales = [prompts[row].get("guidance", settings["guidance_scale"]) for row in (numbers % len(prompts)).tolist()]
    drawn_from = seeds(prompts, numbers, own_seeds)
    shown = min(SHOWN, len(prompts))
    said: dict[int, np.ndarray] = {}
    kept: dict[int, np.ndarray] = {}
    for scale, group in groupby(sorted(range(len(scales)), key=scales.__getitem__), scales.__getitem__):
        for places in torch.tensor(list(group)).split(batch):
            filled = torch.cat([places, places[-1:].expand(batch - len(places))])
            texts = [prompts[row]["prompt"] for row in (numbers[filled] % len(prompts)).tolist()]
            pictures = drawn(family, network, texts, drawn_from[filled], settings, scale)
            probabilities, _ = detector.see(pictures)
            said |= dict(zip(places.tolist(), probabilities, strict=False))
            kept |= {place: pictures[at] for at, place in enumerate(places.tolist()) if numbers[place] < shown}
            progress(len(said))
    for name, rows in (("detector", said), ("pictures", kept)):
        if rows:
            answers.add(PROMPT_LIST, {name: np.stack([rows[place] for place in sorted(rows)])})


def drawn(
    family: ModuleType, network: nn.Module, texts: list[str], seeds: Tensor, settings: Mapping[str, Any], scale: float
) -> np.ndarray:
    """One image of each text; the network itself is told nothing of them."""
    captions = network.__dict__["captions"]
    told = copy.copy(network)
    family.caption(told, Captions(captions.names, tuple(texts), (0,) * len(texts), captions.prompt))
    images = family.sample(
        told,
        torch.arange(len(texts)),
        seeds,
        steps=settings["sampling_steps"],
        guidance_scale=scale,
        eta=settings["eta"],
    )
    return as_pictures(images)


def found(answers: AnswerSet, settings: Mapping[str, Any], detector: Judge | None) -> dict[str, np.ndarray]:
    """What the detector finds in the images of the list, by name of GeneratorAnswers; nothing where there are none."""
    counts = wanted(settings, detector)
    if not counts or detector is None:
        return {}
    probabilities = answers.first(counts, "detector")
    rejected = detector.judged(probabilities, probabilities[:, :0]).labels == REJECTED
    detected = together(probabilities, settings["detector_labels"], detector) >= settings["detector_threshold"]
    return {
        "prompt_of": np.arange(len(probabilities)) % len(settings["prompts"]),
        "detected": detected,
        "unclear": rejected & ~detected,
        "prompt_images": answers.rows[PROMPT_LIST]["pictures"],
    }


def together(probabilities: np.ndarray, labels: list[str], detector: Judge) -> np.ndarray:
    """The probability that an image shows one of `labels`, (n,)."""
    config: Any = detector.network.config
    named = {label.lower() for label in labels}
    counted = [str(config.id2label[position]).lower() in named for position in range(probabilities.shape[1])]
    summed: np.ndarray = probabilities[:, counted].sum(axis=1)
    return summed


def told(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Evaluation settings as a report says them: of prompts and detector labels their number and digest, not their words."""
    listed = {name: settings[name] for name in ("prompts", "detector_labels") if settings.get(name)}
    return {**settings, **{name: {"count": len(each), "digest": digest(each)} for name, each in listed.items()}}


def digest(listed: list[Any]) -> str:
    return f"sha256:{hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()}"
