"""What families share about their inputs: checking samples, images as tensors, and fresh weights of the same shape."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from worker.families import Samples


def check_samples(samples: Samples, shape: tuple[int, int, int], name: str, per_image: str = "label") -> None:
    """ValueError naming `name.x` or `name.y` unless x is float32 (N, *shape) and y int64 with one `per_image` each."""
    if samples.x.dtype != torch.float32 or samples.x.shape[1:] != shape:
        wanted = f"float32 (N, {', '.join(map(str, shape))})"
        raise ValueError(f"{name}.x: must be {wanted}, not {samples.x.dtype} {tuple(samples.x.shape)}")
    if samples.y.dtype != torch.int64 or samples.y.shape != samples.x.shape[:1]:
        raise ValueError(f"{name}.y: must be int64 with one {per_image} per image, {len(samples.x)} of them")


def check_labels(y: Tensor, count: int | None, name: str) -> None:
    """ValueError naming `name` unless there is a label and all lie below `count`; None: the network knows no labels."""
    if count is None:
        if len(y) == 0 or y.min() < 0:
            raise ValueError(f"{name}: must hold at least one label, none below 0")
        return
    if len(y) == 0:
        raise ValueError(f"{name}: must hold at least one label")
    if y.min() < 0 or y.max() >= count:
        raise ValueError(f"{name}: labels must lie in 0..{count - 1}")


def check_channels(channels: int, field: str) -> None:
    if channels not in (1, 3):
        raise ValueError(f"config.json: {field} is {channels}; images have 1 or 3 channels")


def levels(
    images: list[np.ndarray], shape: tuple[int, int, int], resample: Image.Resampling = Image.Resampling.BICUBIC
) -> Tensor:
    """uint8 images (H, W) or (H, W, C) -> (N, *shape), float32 in 0..255."""
    channels, height, width = shape
    return stacked([picture.resize((width, height), resample) for picture in opened(images, channels)], channels)


def opened(images: list[np.ndarray], channels: int) -> list[Image.Image]:
    return [Image.fromarray(image.squeeze()).convert("L" if channels == 1 else "RGB") for image in images]


def stacked(pictures: list[Image.Image], channels: int) -> Tensor:
    """Pictures of one size -> (N, channels, H, W), float32 in 0..255."""
    arrays = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(arrays).reshape(*arrays.shape[:3], channels).permute(0, 3, 1, 2).float()


def minus_one_to_one(images: list[np.ndarray], shape: tuple[int, int, int], network: nn.Module) -> Tensor:
    """uint8 images -> (N, *shape) in [-1, 1], on the network's device."""
    return (levels(images, shape) / 127.5 - 1).contiguous().to(next(network.parameters()).device)


def by_processor(images: list[np.ndarray], network: nn.Module) -> Tensor:
    """uint8 images -> (N, 3, H, W) as the directory's preprocessor_config.json says."""
    pixels: Tensor = network.__dict__["processor"](opened(images, 3), return_tensors="pt")["pixel_values"]
    return pixels.float().contiguous().to(next(network.parameters()).device)


def fresh(network: nn.Module, generator: torch.Generator) -> Any:
    """A network of the same config with weights that nothing was learnt by."""
    blueprint: Any = network
    seed = int(torch.randint(2**62, (), generator=generator))
    make = getattr(type(blueprint), "from_config", type(blueprint))  # diffusers; transformers
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make(blueprint.config)
