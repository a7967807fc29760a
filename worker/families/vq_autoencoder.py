"""Autoencoders of images: diffusers' `VQModel` (a codebook) and `AutoencoderKL` (a Gaussian code).

A directory holds config.json and diffusion_pytorch_model.safetensors. E is `encoder.` with `quant_conv.`; codebook,
`post_quant_conv.` and `decoder.` are D. E's features are what comes before the codebook (`VQModel`), or mean and log
variance of the code (`AutoencoderKL`). Images are in [-1, 1]. The network knows no labels: a request's labels are those
of the registered sets.

T hides pixels by setting them to 0. The published networks are shown whole images (`none`), and then every pixel of the output
is the network's own; one that was trained to fill gaps is asked with the mask that it was trained for.

Van den Oord et al., arXiv 1711.00937; Esser et al., arXiv 2012.09841; Rombach et al., arXiv 2112.10752.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, VQModel
from torch import Tensor, nn

from worker.families import Samples, Views, hidden_patches, own_parameters
from worker.families import directory as files
from worker.families.directory import round_to_stored as round_to_stored
from worker.families.inputs import check_channels, check_labels, check_samples, fresh, minus_one_to_one

CLASSES: dict[str, Any] = {"VQModel": VQModel, "AutoencoderKL": AutoencoderKL}
WEIGHTS = "diffusion_pytorch_model.safetensors"
GRID = 16  # patches of a side, or the largest number below it that divides the side
KL_WEIGHT = 1e-6  # of AutoencoderKL's training, as published
FIXED_VIEWS = True


def load(directory: Path, device: torch.device) -> nn.Module:
    config = files.read_config(directory, "config.json")
    name = config.get("_class_name")
    if name not in CLASSES:
        raise ValueError(f"config.json: _class_name must be one of {', '.join(CLASSES)}, not {name!r}")
    channels = config.get("in_channels", 3), config.get("out_channels", 3)
    if channels[0] != channels[1]:
        raise ValueError(f"config.json: out_channels is {channels[1]}, and in_channels {channels[0]}")
    network = files.open_diffusers(CLASSES[name], directory)
    image_shape(network)
    return network.to(device)


def save(network: nn.Module, directory: Path, like: Path) -> None:
    files.save({"": network}, directory, like)


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: tensor for name, tensor in network.named_parameters() if tensor.requires_grad}


def encoder(network: nn.Module) -> dict[str, nn.Parameter]:
    return own_parameters(network, ("encoder.", "quant_conv."))


def label_tables(network: nn.Module) -> dict[str, nn.Parameter]:
    return {}


def label_count(network: nn.Module) -> int:
    """None: the network is never given a label."""
    return 0


def image_shape(source: nn.Module | Path) -> tuple[int, int, int]:
    config: Any = files.read_config(source, "config.json") if isinstance(source, Path) else source.config
    size = config.get("sample_size", 32)
    height, width = (size, size) if isinstance(size, int) else size
    halvings = 2 ** (len(config.get("block_out_channels", (64,))) - 1)
    if height % halvings or width % halvings:
        raise ValueError(f"config.json: sample_size must be a multiple of {halvings}, which the encoder divides it by")
    return int(config.get("in_channels", 3)), int(height), int(width)


def check(network: nn.Module, samples: Samples, name: str) -> None:
    check_samples(samples, image_shape(network), name)
    check_labels(samples.y, None, f"{name}.y")


def prepare(images: list[np.ndarray], directory: Path, network: nn.Module) -> Tensor:
    check_channels(image_shape(network)[0], "in_channels")
    return minus_one_to_one(images, image_shape(network), network)


def pixels(network: nn.Module, x: Tensor) -> Tensor:
    return x


def pixel_range(network: nn.Module) -> tuple[Tensor, Tensor]:
    white = torch.ones(image_shape(network)[0], 1, 1, device=next(network.parameters()).device)
    return -white, white


def masks(network: nn.Module, count: int, pattern: str, share: float, generator: torch.Generator) -> Tensor:
    _, height, width = image_shape(network)
    return hidden_patches(count, patches(height), patches(width), pattern, share, generator)


def patches(side: int) -> int:
    return next(number for number in range(GRID, 0, -1) if side % number == 0)


def hidden_pixels(network: nn.Module, mask: Tensor) -> Tensor:
    _, height, width = image_shape(network)
    tall, wide = height // mask.shape[1], width // mask.shape[2]
    return mask.repeat_interleave(tall, 1).repeat_interleave(wide, 2).unsqueeze(1)


def views(network: nn.Module, x: Tensor, mask: Tensor, generator: torch.Generator) -> Views:
    return (x.masked_fill(hidden_pixels(network, mask.to(x.device)), 0.0),)


def unit_noise(network: nn.Module, views: Views, generator: torch.Generator) -> Tensor:
    return torch.randn(views[0].shape, generator=generator).to(views[0].device)


def noise_views(network: nn.Module, views: Views, mask: Tensor, noise: Tensor) -> Views:
    return (noise.masked_fill(hidden_pixels(network, mask.to(noise.device)), 0.0),)


def encode(network: nn.Module, views: Views) -> list[Tensor]:
    inside: Any = network
    code: Tensor = inside.encoder(views[0])
    return [inside.quant_conv(code) if inside.quant_conv is not None else code]


def decode(network: nn.Module, features: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The image of the nearest codes, or of the code's mean; and how far the codes lie from the codebook."""
    inside: Any = network
    if isinstance(network, VQModel):
        image, apart = inside.decode(features[0], return_dict=False)
        return image, apart
    return inside.decode(features[0].chunk(2, dim=1)[0], return_dict=False)[0], features[0].new_zeros(())


def reconstruction_loss(
    network: nn.Module, x: Tensor, target: Tensor, mask: Tensor, generator: torch.Generator
) -> Tensor:
    """The mean squared error over the whole image."""
    image, _ = decode(network, encode(network, views(network, x, mask, generator)))
    return F.mse_loss(image, target)


def training_loss(network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Of whole images: squared error, and the commitment to the codebook or the code's divergence from N(0, I).

    The published networks are also trained against a perceptual distance and a discriminator, which no checkpoint holds.
    """
    features = encode(network, (x,))
    if isinstance(network, VQModel):
        image, apart = decode(network, features)
        return F.mse_loss(image, x) + apart
    inside: Any = network
    mean, log_variance = features[0].chunk(2, dim=1)
    log_variance = log_variance.clamp(-30, 20)
    noise = torch.randn(mean.shape, generator=generator).to(mean.device)
    image = inside.decode(mean + (0.5 * log_variance).exp() * noise, return_dict=False)[0]
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum((1, 2, 3)).mean()
    return F.mse_loss(image, x) + KL_WEIGHT * divergence


@torch.no_grad()
def reconstruct(network: nn.Module, x: Tensor, mask: Tensor, seeds: Tensor, steps: int) -> Tensor:
    """One pass, the code's mean: `seeds` and `steps` do not matter."""
    image, _ = decode(network, encode(network, views(network, x, mask, torch.Generator())))
    return image.clamp(-1, 1)


def reinitialise(network: nn.Module, generator: torch.Generator) -> None:
    network.load_state_dict(fresh(network, generator).state_dict())
