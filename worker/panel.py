"""The panel: the evaluators beside the judge that a model has, opened for one job, and what they say of generated images."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from worker.backbones import Backbone
from worker.families import Captions
from worker.judge import Judge
from worker.load import Material

BATCH = 64  # images or texts that a scorer sees at once


@dataclass(frozen=True)
class Scorer:
    """An opened two-tower network that puts images and texts into one space; `family` is worker.families.clip."""

    network: nn.Module
    family: ModuleType
    directory: Path
    digest: str

    @torch.no_grad()
    def images(self, pictures: np.ndarray) -> np.ndarray:
        """uint8 images (n, H, W, C) -> unit vectors (n, d)."""
        parts = self.family.prepare(list(pictures), self.directory, self.network).split(BATCH)
        return np.concatenate([self.family.image_features(self.network, part).float().cpu().numpy() for part in parts])

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors (n, d); a text that is longer than the network reads is cut."""
        distinct = tuple(dict.fromkeys(texts))
        told = copy.copy(self.network)  # a warm network must not keep the texts of a job
        self.family.caption(told, Captions(distinct, distinct, tuple(range(len(distinct)))))
        every = torch.arange(len(distinct), device=told.__dict__["tokens"].device)
        vectors = torch.cat([self.family.text_features(told, part) for part in every.split(BATCH)])
        return vectors.float().cpu().numpy()[[distinct.index(text) for text in texts]]  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Panel:
    context: Judge | None = None  # its labels are the evaluation's contexts
    clip: Scorer | None = None
    detector: Judge | None = None  # of the evaluation's list of prompts alone
    backbones: Mapping[str, Backbone] = field(default_factory=dict)  # inception, lpips

    def digests(self) -> dict[str, str]:
        """By part, in the catalogue's order."""
        parts = {"context": self.context, "clip": self.clip, "detector": self.detector, **self.backbones}
        return {part: each.digest for part, each in parts.items() if each is not None}

    def look(self, pictures: np.ndarray, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """What there is to say of uint8 images (n, H, W, C) that were drawn for `texts`, by name of GeneratorAnswers."""
        said = {name: backbone.embed(pictures) for name, backbone in self.backbones.items()}
        if self.context is not None:
            said["context_forced"] = self.context(pictures).forced
        if self.clip is not None:
            said["clip_images"] = self.clip.images(pictures)
        if self.clip is not None and texts:
            said["clip_match"] = np.sum(said["clip_images"] * self.clip.texts(texts), axis=1)
        return said

    def look_at_real(self, pictures: np.ndarray) -> dict[str, Any]:
        """The same of real images, where a distance needs it."""
        inception = self.backbones.get("inception")
        return {} if inception is None else {"real_inception": inception.embed(pictures)}


ALONE = Panel()


def open_panel(material: Material, settings: Mapping[str, Any]) -> Panel:
    parts = {
        part: (each.network, each.family, each.directory, each.digest) for part, each in material.evaluators.items()
    }
    return Panel(
        context=Judge(*parts["context"], tuple(settings["contexts"])) if "context" in parts else None,
        clip=Scorer(*parts["clip"]) if "clip" in parts else None,
        detector=Judge(*parts["detector"]) if "detector" in parts else None,
        backbones=material.backbones,
    )
