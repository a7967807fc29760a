"""A judge of the eight concepts that may reject: a ResNet of transformers with a ninth label, `none`, and a `reject_below`.

It is trained on photos of its own, which no generator saw. What it must call none is no concept to a person: noise of several
kinds, plain colours, strangers' textures, shuffled quarters, two concepts laid over each other, concepts drowned in noise.
`reject_below` comes from calibration photos alone, never from generated images.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

from tests.trained import concepts, identities, trained

LABELS = len(concepts.NAMES)
STEPS, BATCH, EACH, RATE = 700, 48, 6, 4e-3
CALIBRATION_REJECTS = 0.01  # share of rightly answered calibration photos that `reject_below` may cost
NONE_KINDS = ("noise", "tinted_noise", "plain", "strangers", "shuffled", "blends", "drowned")


def directory() -> Path:
    return trained("concept-judge", make, concepts, identities, sys.modules[__name__])


def make(directory: Path) -> None:
    torch.manual_seed(2)
    generator = torch.Generator().manual_seed(2)
    names = dict(enumerate([*concepts.NAMES, "none"]))
    config = ResNetConfig(
        embedding_size=24,
        hidden_sizes=[24, 48],
        depths=[2, 2],
        layer_type="basic",
        id2label=names,
        label2id={name: label for label, name in names.items()},
    )
    network = ResNetForImageClassification(config)
    mover = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(mover, RATE, total_steps=STEPS)
    network.train()
    for _ in range(STEPS):
        y = torch.randint(LABELS, (BATCH,), generator=generator)
        none = torch.cat([nothing(kind, EACH, generator) for kind in NONE_KINDS])
        images = eight_bits(torch.cat([varied(y, generator), none]))
        wanted = torch.cat([y, torch.full((len(none),), LABELS)])
        mover.zero_grad()
        F.cross_entropy(network(images).logits, wanted, label_smoothing=0.02).backward()
        mover.step()
        rate.step()
    network.eval()
    network.config.reject_below = calibrate(network, generator)
    network.save_pretrained(directory)
    rules = {
        "do_resize": True,
        "size": {"height": concepts.SIZE, "width": concepts.SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "image_processor_type": "ViTImageProcessor",
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(rules, indent=2) + "\n")


def varied(y: Tensor, generator: torch.Generator) -> Tensor:
    """Photos as other cameras would take them: none to much noise, some of them soft."""
    sharp = concepts.photos(y, generator, noise=0.0)
    soft = F.avg_pool2d(F.pad(sharp, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    blur = torch.rand((len(y), 1, 1, 1), generator=generator)
    noise = 0.25 * torch.rand((len(y), 1, 1, 1), generator=generator) ** 2
    seen = sharp.lerp(soft, blur) + noise * torch.randn(sharp.shape, generator=generator)
    return seen.clamp(-1, 1)


def nothing(kind: str, count: int, generator: torch.Generator) -> Tensor:
    """`count` images (fewer of some kinds) that show no concept."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def chance() -> Tensor:
        return torch.rand((count, 1, 1, 1), generator=generator)

    shape = (count, 3, concepts.SIZE, concepts.SIZE)
    y, other = torch.randint(LABELS, (2, count), generator=generator)
    if kind == "noise":
        images = normal(*shape)
    elif kind == "tinted_noise":
        images = 0.5 * normal(count, 3, 1, 1) + chance() * normal(*shape)
    elif kind == "plain":
        images = 0.6 * normal(count, 3, 1, 1) + 0.1 * chance() * normal(*shape)
    elif kind == "strangers":
        images = concepts.strangers(count, generator)
    elif kind == "shuffled":
        images = shuffled_quarters(varied(y, generator), generator)
    elif kind == "blends":
        share = 0.35 + 0.3 * chance()
        mixed = share * varied(y, generator) + (1 - share) * varied(other, generator)
        alike = (y >= min(concepts.NEIGHBOURS)) & (other >= min(concepts.NEIGHBOURS))
        images = mixed[(y != other) & ~alike]
    else:
        images = varied(y, generator) * (0.1 + 0.3 * chance()) + normal(*shape) * (0.5 + 0.5 * chance())
    return images.clamp(-1, 1)


def shuffled_quarters(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image's four quarters in another order; those that drew the old order are left out."""
    half = concepts.SIZE // 2
    quarters = images.unfold(2, half, half).unfold(3, half, half).flatten(2, 3)  # (n, 3, 4, half, half)
    order = torch.argsort(torch.rand((len(images), 4), generator=generator), dim=1)
    mixed = torch.stack([each[:, which] for each, which in zip(quarters, order, strict=True)])
    rows = torch.cat(
        [torch.cat([mixed[:, :, 0], mixed[:, :, 1]], 3), torch.cat([mixed[:, :, 2], mixed[:, :, 3]], 3)], 2
    )
    return rows[(order != torch.arange(4)).any(dim=1)]


def eight_bits(images: Tensor) -> Tensor:
    return ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


@torch.no_grad()
def calibrate(network: Any, generator: torch.Generator) -> float:
    """The confidence below which CALIBRATION_REJECTS of the rightly answered calibration photos lie."""
    y = torch.arange(800) % LABELS
    sureness, answer = network(eight_bits(varied(y, generator))).logits.softmax(dim=1).max(dim=1)
    return round(float(torch.quantile(sureness[answer == y], CALIBRATION_REJECTS)), 4)
