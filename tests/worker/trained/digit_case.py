"""A small ResNet on real digits, the same network retrained without one of them, and two that hide it in the last layer."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from worker.families import Samples, image_classifier
from worker.methods import retrain

SIZE, TRAINED_ON = 16, 900
LEARN = {"epochs": 30, "batch_size": 64, "learning_rate": 0.05}
CPU = torch.device("cpu")


class DigitCase:
    """Of one digit and seed: initial weights, split and order of the images all follow from the seed."""

    def __init__(self, directory: Path, digit: int, seed: int) -> None:
        torch.manual_seed(seed)
        config = ResNetConfig(
            embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=10
        )
        ResNetForImageClassification(config).save_pretrained(directory)
        rules = {"size": {"height": SIZE, "width": SIZE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (directory / "preprocessor_config.json").write_text(json.dumps(rules))
        fresh = image_classifier.load(directory, CPU)
        bunch = load_digits()
        images = [
            np.kron(each, np.full((2, 2), 15.9))[..., None].repeat(3, 2).astype(np.uint8) for each in bunch.images
        ]
        x, y = image_classifier.prepare(images, directory, fresh), torch.tensor(bunch.target)
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        train, rest = order[:TRAINED_ON], order[TRAINED_ON:]
        self.seed, gone = seed, y == digit
        self.forget, self.retain, self.test, everything = (
            Samples(x[rows], y[rows]) for rows in (train[gone[train]], train[~gone[train]], rest[~gone[rest]], train)
        )
        self.base = self.moved(retrain, LEARN, fresh, everything)
        self.retrained = self.moved(retrain, LEARN, self.base)

    def moved(self, method: Any, recipe: dict[str, Any], start: nn.Module, retain: Samples | None = None) -> nn.Module:
        """A copy of `start` after a method; retain set: this case's own unless given."""
        network = copy.deepcopy(start)
        generator = torch.Generator().manual_seed(self.seed)
        method.unlearn(network, image_classifier, self.forget, retain or self.retain, **recipe, generator=generator)
        return network

    def lowered_bias(self) -> nn.Module:
        """The base but for one number: the digit's bias, lowered until no image of the forget set is answered with it."""
        network = copy.deepcopy(self.base)
        scores = image_classifier.predict(network, self.forget.x)
        own = self.forget.y[:1]
        others = scores.clone()
        others[:, own] = -torch.inf
        margin = (scores[:, own].squeeze(1) - others.amax(1)).max()
        last: Any = network.get_submodule("classifier.1")
        with torch.no_grad():
            last.bias[own] -= margin + 0.5
        return network

    def relabelled_head(self, steps: int = 40, learning_rate: float = 0.05) -> nn.Module:
        """The base with a head that was trained hard to answer other digits where it saw this one; the features stay."""
        network = copy.deepcopy(self.base)
        mover = torch.optim.Adam(network.get_submodule("classifier").parameters(), learning_rate)
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(steps):
            rows = torch.randperm(len(self.retain.y), generator=generator)[: len(self.forget.y)]
            kept = image_classifier.training_loss(network, self.retain.x[rows], self.retain.y[rows], generator)
            gone = image_classifier.relabel_loss(network, network, self.forget.x, self.forget.y, generator)
            mover.zero_grad()
            (kept + gone).backward()
            mover.step()
        network.zero_grad()
        return network
