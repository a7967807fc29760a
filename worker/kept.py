"""What may be kept: a set without the labels that earlier requests of the model forgot whole, which are measured apart."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from worker.families import Samples, labels_of


def without(samples: Samples | None, specification: Mapping[str, Any], captioned: nn.Module | None) -> Samples | None:
    """`captioned`: the network that counts the set's texts; None for a test set, which holds labels."""
    gone = forgotten_before(specification)
    if samples is None or not len(gone):
        return samples
    labels = samples.y if captioned is None else labels_of(captioned, samples.y)
    kept = ~torch.isin(labels, gone.to(labels.device))
    return Samples(samples.x[kept.to(samples.x.device)], samples.y[kept])


def forgotten_before(specification: Mapping[str, Any]) -> Tensor:
    """Labels, (k,), int."""
    return torch.tensor(specification.get("forgotten_before", ()), dtype=torch.int64)
