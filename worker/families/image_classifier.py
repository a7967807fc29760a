"""Image classifiers: transformers' `*ForImageClassification`, opened from an ordinary Hugging Face directory.

A directory holds config.json, model.safetensors and, as a rule, preprocessor_config.json, which says how an
image becomes the network's input; without one, pixels are scaled to [-1, 1] at the size in config.json.
transformers' ResNet has a 7x7 stem of stride 2 and a pool: give it small images upsampled (CIFAR at 128x128).

The network runs in eval mode here; whoever trains it decides on its batch-norm statistics.
"""

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import (
    ConvNextForImageClassification,
    DeiTForImageClassification,
    RegNetForImageClassification,
    ResNetForImageClassification,
    SwinForImageClassification,
    ViTForImageClassification,
)

from worker.families import Samples, other_labels
from worker.families import labels_of as labels_of
from worker.families.directory import open_transformers, read_config
from worker.families.directory import round_to_stored as round_to_stored
from worker.families.directory import save as save_directory
from worker.families.inputs import check_channels, check_labels, check_samples, fresh, opened, stacked
from worker.families.prefix import editable, replayed

CLASSES: dict[str, Any] = {
    "ConvNextForImageClassification": ConvNextForImageClassification,
    "DeiTForImageClassification": DeiTForImageClassification,
    "RegNetForImageClassification": RegNetForImageClassification,
    "ResNetForImageClassification": ResNetForImageClassification,
    "SwinForImageClassification": SwinForImageClassification,
    "ViTForImageClassification": ViTForImageClassification,
}
WEIGHTS = "model.safetensors"
PREPROCESSOR = "preprocessor_config.json"


def load(directory: Path, device: torch.device) -> nn.Module:
    names = read_config(directory, "config.json").get("architectures")
    if not isinstance(names, list) or len(names) != 1 or names[0] not in CLASSES:
        raise ValueError(f"config.json: architectures must name one of {', '.join(CLASSES)}, not {names!r}")
    network = open_transformers(CLASSES[names[0]], directory)
    if label_count(network) < 2:
        raise ValueError("config.json: id2label (num_labels) must name at least two labels")
    network.__dict__["image_shape"] = image_shape(directory)
    return network.to(device)


def save(network: nn.Module, directory: Path, like: Path) -> None:
    save_directory({"": network}, directory, like)


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: tensor for name, tensor in network.named_parameters() if tensor.is_floating_point()}


def label_tables(network: nn.Module) -> dict[str, nn.Parameter]:
    """A classifier takes no label as input, so there is none."""
    return {}


def label_count(network: nn.Module) -> int:
    config: Any = network.config
    return int(config.num_labels)


def image_shape(source: nn.Module | Path) -> tuple[int, int, int]:
    if isinstance(source, nn.Module):
        if "image_shape" not in source.__dict__:
            raise ValueError("network: its image shape is known only after load()")
        shape: tuple[int, int, int] = source.__dict__["image_shape"]
        return shape
    config = read_config(source, "config.json")
    height, width = crop_size(preprocessing(source), config)
    return int(config.get("num_channels", 3)), height, width


def preprocessing(directory: Path) -> dict[str, Any]:
    return read_config(directory, PREPROCESSOR) if (directory / PREPROCESSOR).is_file() else {}


def crop_size(rules: dict[str, Any], config: dict[str, Any]) -> tuple[int, int]:
    """(H, W) of the network's input: the crop when one is made, else the size, else config.json's image_size."""
    size = rules.get("crop_size") if rules.get("do_center_crop") else rules.get("size")
    size = size if size is not None else config.get("image_size")
    if isinstance(size, int):
        return size, size
    if isinstance(size, list) and len(size) == 2:
        return int(size[0]), int(size[1])
    if isinstance(size, dict) and "shortest_edge" in size:
        return int(size["shortest_edge"]), int(size["shortest_edge"])
    if isinstance(size, dict) and {"height", "width"} <= size.keys():
        return int(size["height"]), int(size["width"])
    raise ValueError(f"{PREPROCESSOR}: size must give height and width: the network's config has no image_size")


def check(network: nn.Module, samples: Samples, name: str) -> None:
    check_samples(samples, image_shape(network), name)
    check_labels(samples.y, label_count(network), f"{name}.y")


def prepare(images: list[np.ndarray], directory: Path, network: nn.Module) -> Tensor:
    """As preprocessor_config.json says."""
    channels, height, width = image_shape(network)
    check_channels(channels, "num_channels")
    rules = preprocessing(directory)
    pixels = stacked([resize(picture, rules, height, width) for picture in opened(images, channels)], channels)
    if rules.get("do_rescale", True):
        pixels = pixels * rules.get("rescale_factor", 1 / 255)
    if rules.get("do_normalize", True):
        mean, std = (torch.tensor(rules.get(key, 0.5)).reshape(-1, 1, 1) for key in ("image_mean", "image_std"))
        pixels = (pixels - mean) / std
    return pixels.contiguous().to(next(network.parameters()).device)


def resize(picture: Image.Image, rules: dict[str, Any], height: int, width: int) -> Image.Image:
    """To (H, W): directly, or by the shortest edge and a centre crop where the rules crop."""
    resample = Image.Resampling(rules.get("resample", Image.Resampling.BILINEAR))
    size = rules.get("size")
    shortest = size.get("shortest_edge") if isinstance(size, dict) else None
    if shortest is not None and not rules.get("do_center_crop") and shortest < 384:
        shortest = int(shortest / rules.get("crop_pct", 1.0))  # ConvNext and ResNet crop what they enlarge
    elif not rules.get("do_center_crop") or not rules.get("do_resize", True):
        return picture.resize((width, height), resample)
    if shortest is None:
        scaled = crop_size({"size": size}, {})
        picture = picture.resize((scaled[1], scaled[0]), resample)
    else:
        scale = shortest / min(picture.size)
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), resample)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def logits(network: nn.Module, x: Tensor) -> Tensor:
    output: Tensor = network(x.to(next(network.parameters()).dtype)).logits
    return output.float()


def training_loss(network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    return F.cross_entropy(logits(network, x), y)


forget_loss = training_loss


def relabel_loss(
    network: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, relabel: str = "uniform"
) -> Tensor:
    """CE(x, y') with y' another label than y (`other_labels`); a classifier needs no teacher for it."""
    return F.cross_entropy(logits(network, x), other_labels(y, label_count(network), relabel, generator))


def reinitialise(network: nn.Module, generator: torch.Generator) -> None:
    network.load_state_dict(fresh(network, generator).state_dict())


@torch.no_grad()
def predict(network: nn.Module, x: Tensor, batch_size: int = 256) -> Tensor:
    """Logits (N, labels), in eval mode."""
    network.eval()
    return torch.cat([logits(network, part) for part in x.split(batch_size)])


@torch.no_grad()
def features(network: nn.Module, x: Tensor, batch_size: int = 256) -> Tensor:
    """What the last layer reads, (N, d): the pooled penultimate activations, in eval mode."""
    network.eval()
    head: Any = network.classifier
    seen: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].flatten(1).float()))
    try:
        for part in x.split(batch_size):
            logits(network, part)
    finally:
        hook.remove()
    return torch.cat(seen)


def layers(network: nn.Module, group: str) -> dict[str, tuple[str, ...]]:
    return editable(network, group, {"": "vision"})


@torch.no_grad()
def prober(
    network: nn.Module, names: Collection[str], samples: Samples, generator: torch.Generator, top: int = 1
) -> Callable[[], Tensor]:
    """Recognised: the own label's logit is among the `top` largest."""
    parts = [replayed(network, names, partial(logits, network, part)) for part in samples.x.split(256)]

    def recognised() -> Tensor:
        answers = torch.cat([part() for part in parts])
        return (answers > answers.gather(1, samples.y[:, None])).sum(1) < top

    return recognised
