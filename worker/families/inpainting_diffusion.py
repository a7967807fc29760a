"""Inpainting by diffusion: diffusers' `UNet2DModel` that is given the visible part of an image as further channels.

A directory holds config.json, diffusion_pytorch_model.safetensors and scheduler_config.json. The network's input has
2 * C + 1 channels, in this order: the noisy image, clean where it is visible; the image with 0 where it is hidden; the mask, 1 where
hidden. It predicts C channels: the noise (or v, or the image) of the hidden part. E is `conv_in.`, `down_blocks.` and
`mid_block.`, and its features are all that the up blocks read of them. The time embedding, which both halves read, stays
with D.

Images are in [-1, 1]. The network knows no labels: a request's labels are those of the registered sets.

Saharia et al., Palette: Image-to-Image Diffusion Models, SIGGRAPH 2022, arXiv 2111.05826.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor, nn

from worker.families import Samples, Views, hidden_patches, own_parameters
from worker.families import directory as files
from worker.families.directory import round_to_stored as round_to_stored
from worker.families.inputs import check_channels, check_labels, check_samples, fresh, minus_one_to_one

CLASSES: dict[str, Any] = {"UNet2DModel": UNet2DModel}
WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler_config.json"
PREDICTIONS = ("epsilon", "v_prediction", "sample")
GRID = 16  # patches of a side, or the largest number below it that divides the side
HIDDEN_IN_TRAINING = 0.5  # share of the patches that ordinary training hides
FIXED_VIEWS = False


def load(directory: Path, device: torch.device) -> nn.Module:
    config = files.read_config(directory, "config.json")
    check_config(config)
    scheduler = load_scheduler(directory)
    network = files.open_diffusers(UNet2DModel, directory)
    network.__dict__["noise_scheduler"] = scheduler
    return network.to(device)


def check_config(config: dict[str, Any]) -> None:
    if config.get("_class_name") not in CLASSES:
        raise ValueError(f"config.json: _class_name must be UNet2DModel, not {config.get('_class_name')!r}")
    given, made = config.get("in_channels", 3), config.get("out_channels", 3)
    if given != 2 * made + 1:
        raise ValueError(f"config.json: in_channels must be 2 * out_channels + 1 (noisy, visible, mask), not {given}")
    if config.get("num_class_embeds") is not None or config.get("class_embed_type") is not None:
        raise ValueError("config.json: num_class_embeds must be null: inpainting is given no label")
    if config.get("sample_size") is None:
        raise ValueError("config.json: sample_size is needed to know which images the network takes")


def load_scheduler(directory: Path) -> DDIMScheduler:
    config = files.read_config(directory, SCHEDULER)
    if config.get("prediction_type", "epsilon") not in PREDICTIONS:
        raise ValueError(f"{SCHEDULER}: prediction_type must be one of {', '.join(PREDICTIONS)}")
    try:
        return DDIMScheduler.from_config(config)
    except files.UNBUILDABLE as error:
        raise ValueError(f"{SCHEDULER}: DDIMScheduler cannot be built from it: {error}") from error


def save(network: nn.Module, directory: Path, like: Path) -> None:
    files.save({"": network}, directory, like)


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: tensor for name, tensor in network.named_parameters() if tensor.requires_grad}


def encoder(network: nn.Module) -> dict[str, nn.Parameter]:
    return own_parameters(network, ("conv_in.", "down_blocks.", "mid_block."))


def label_tables(network: nn.Module) -> dict[str, nn.Parameter]:
    return {}


def label_count(network: nn.Module) -> int:
    """None: the network is never given a label."""
    return 0


def image_shape(source: nn.Module | Path) -> tuple[int, int, int]:
    config: Any = files.read_config(source, "config.json") if isinstance(source, Path) else source.config
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return int(config["out_channels"]), int(height), int(width)


def check(network: nn.Module, samples: Samples, name: str) -> None:
    check_samples(samples, image_shape(network), name)
    check_labels(samples.y, None, f"{name}.y")


def prepare(images: list[np.ndarray], directory: Path, network: nn.Module) -> Tensor:
    check_channels(image_shape(network)[0], "out_channels")
    return minus_one_to_one(images, image_shape(network), network)


def pixels(network: nn.Module, x: Tensor) -> Tensor:
    return x


def pixel_range(network: nn.Module) -> tuple[Tensor, Tensor]:
    white = torch.ones(image_shape(network)[0], 1, 1, device=next(network.parameters()).device)
    return -white, white


def masks(network: nn.Module, count: int, pattern: str, share: float, generator: torch.Generator) -> Tensor:
    if pattern == "none":
        raise ValueError("pattern: inpainting fills hidden patches, so some must be hidden")
    _, height, width = image_shape(network)
    return hidden_patches(count, patches(height), patches(width), pattern, share, generator)


def patches(side: int) -> int:
    return next(number for number in range(GRID, 0, -1) if side % number == 0)


def hidden_pixels(network: nn.Module, mask: Tensor) -> Tensor:
    _, height, width = image_shape(network)
    tall, wide = height // mask.shape[1], width // mask.shape[2]
    return mask.repeat_interleave(tall, 1).repeat_interleave(wide, 2).unsqueeze(1)


def views(network: nn.Module, x: Tensor, mask: Tensor, generator: torch.Generator) -> Views:
    """The network's input channels, the times, and the noise that was mixed in."""
    scheduler: Any = network.noise_scheduler
    hidden = hidden_pixels(network, mask.to(x.device))
    t = torch.randint(scheduler.config.num_train_timesteps, (len(x),), generator=generator).to(x.device)
    noise = torch.randn(x.shape, generator=generator).to(x.device)
    return channels(scheduler.add_noise(x, noise, t), x, hidden), t, noise


def unit_noise(network: nn.Module, views: Views, generator: torch.Generator) -> Tensor:
    return views[2]


def noise_views(network: nn.Module, views: Views, mask: Tensor, noise: Tensor) -> Views:
    """The noise wherever the image was, hidden or visible, at the same times. The released code keeps what surrounds the
    hole; a network that can fill it from there then answers with the image itself."""
    return channels(noise, noise, hidden_pixels(network, mask.to(noise.device))), *views[1:]


def channels(inside: Tensor, around: Tensor, hidden: Tensor) -> Tensor:
    """`inside` where hidden and `around` elsewhere; `around` with 0 where hidden; the mask: (N, 2 * C + 1, H, W)."""
    return torch.cat([torch.where(hidden, inside, around), around.masked_fill(hidden, 0.0), hidden.to(around)], dim=1)


def encode(network: nn.Module, views: Views) -> list[Tensor]:
    """As `UNet2DModel.forward` begins: conv_in, every down block's outputs, the middle block's."""
    inside: Any = network
    sample, t = views[:2]
    sample = 2 * sample - 1 if inside.config.center_input_sample else sample
    time = inside.time_embedding(inside.time_proj(t).to(sample.dtype))
    skip = sample
    sample = inside.conv_in(sample)
    features = [sample]
    for block in inside.down_blocks:
        if hasattr(block, "skip_conv"):
            sample, outputs, skip = block(hidden_states=sample, temb=time, skip_sample=skip)
        else:
            sample, outputs = block(hidden_states=sample, temb=time)
        features += outputs
    if inside.mid_block is not None:
        features.append(inside.mid_block(sample, time))
    return features


def reconstruction_loss(
    network: nn.Module, x: Tensor, target: Tensor, mask: Tensor, generator: torch.Generator
) -> Tensor:
    """The denoising error where hidden, of `target` there under what is visible of `x`."""
    inside: Any = network
    scheduler = inside.noise_scheduler
    hidden = hidden_pixels(network, mask.to(x.device))
    _, t, noise = views(network, x, mask, generator)
    prediction = inside(channels(scheduler.add_noise(target, noise, t), x, hidden), t).sample
    targets = {
        "epsilon": lambda: noise,
        "sample": lambda: target,
        "v_prediction": lambda: scheduler.get_velocity(target, noise, t),
    }
    error: Tensor = (prediction - targets[scheduler.config.prediction_type]()).square()
    return error[hidden.expand_as(error)].mean()


def training_loss(network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the patches are hidden, at random."""
    mask = masks(network, len(x), "random", HIDDEN_IN_TRAINING, generator)
    return reconstruction_loss(network, x, x, mask, generator)


@torch.no_grad()
def reconstruct(network: nn.Module, x: Tensor, mask: Tensor, seeds: Tensor, steps: int) -> Tensor:
    """DDIM in `steps` steps without added noise, the visible part put back before each; an image's noise is its seed's."""
    inside: Any = network
    template = inside.noise_scheduler
    scheduler = DDIMScheduler.from_config(template.config)
    scheduler.set_timesteps(steps, device=x.device)
    hidden = hidden_pixels(network, mask.to(x.device))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
    sample = torch.stack([torch.randn(x.shape[1:], generator=each) for each in generators]).to(x.device)
    for t in scheduler.timesteps:
        prediction = inside(channels(sample, x, hidden), t.expand(len(x))).sample
        sample = scheduler.step(prediction, t, sample, eta=0.0).prev_sample
    return torch.where(hidden, sample, x).clamp(-1, 1)


def reinitialise(network: nn.Module, generator: torch.Generator) -> None:
    network.load_state_dict(fresh(network, generator).state_dict())
