"""Which text each image is drawn from: its label's own prompt, or one that sets the label in a context, in turn.

A model's evaluation may name contexts, texts of another domain such as styles. Image i's context follows from its own seed, so
that every network is asked for it in the same, and consecutive images of a label pass through all of them. Only the report's
images are drawn so: methods and attacks know a label by its own prompt.
"""

import copy
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from worker.families import Captions

NO_CONTEXT = -1


class Prompted(NamedTuple):
    network: nn.Module  # the same weights, knowing the texts
    rows: Tensor  # (n,), int: what it is asked for
    texts: tuple[str, ...]  # of each image; none where labels are no words
    contexts: np.ndarray  # (n,), int: positions in the settings, NO_CONTEXT where there is none


def prompted(
    family: ModuleType, network: nn.Module, labels: Tensor, seeds: Tensor, settings: Mapping[str, Any]
) -> Prompted:
    """The empty prompt, whose label lies behind all texts, has no context."""
    captions = network.__dict__.get("captions")
    contexts = settings.get("contexts") or []
    none = np.full(len(labels), NO_CONTEXT)
    if captions is None:
        return Prompted(network, labels, (), none)
    worded = labels < len(captions.texts)
    if not contexts or not worded.any():
        texts = (*captions.texts, "")
        return Prompted(network, labels, tuple(texts[label] for label in labels.tolist()), none)
    turns = torch.where(worded, seeds % len(contexts), NO_CONTEXT)
    pairs = list(zip(labels.tolist(), turns.tolist(), strict=True))
    places = {pair: place for place, pair in enumerate(pair for pair in dict.fromkeys(pairs) if pair[1] != NO_CONTEXT)}
    texts = tuple(
        settings["context_prompt"].replace("{context}", contexts[turn]).replace("{}", captions.names[label])
        for label, turn in places
    )
    told = copy.copy(network)
    family.caption(told, Captions(captions.names, texts, tuple(label for label, _ in places), captions.prompt))
    rows = [places.get(pair, len(texts)) for pair in pairs]  # behind all texts: the empty prompt
    return Prompted(told, torch.tensor(rows), tuple((*texts, "")[row] for row in rows), turns.numpy())
