"""Class-conditional diffusion: diffusers' `UNet2DModel` with a class embedding, or `DiTTransformer2DModel`.

A directory holds config.json, diffusion_pytorch_model.safetensors and scheduler_config.json side by side, so
that `UNet2DModel.from_pretrained(d)` and `DDIMScheduler.from_pretrained(d)` both open it. The last row of the
label table is the null class of classifier-free guidance (Ho and Salimans, arXiv 2207.12598):

    eps(x_t | c, g) = eps(x_t | null) + g * (eps(x_t | c) - eps(x_t | null))

Images are in [-1, 1]. A network runs in eval mode here: label dropout is drawn from the generator that the
caller owns, never by the network. A learned variance (extra output channels) is left as it is.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DiTTransformer2DModel, UNet2DModel
from torch import Tensor, nn

from worker.families import Samples, other_labels
from worker.families import labels_of as labels_of
from worker.families.directory import UNBUILDABLE, open_diffusers, read_config
from worker.families.directory import round_to_stored as round_to_stored
from worker.families.directory import save as save_directory
from worker.families.inputs import check_channels, check_labels, check_samples, fresh, minus_one_to_one
from worker.families.prefix import editable, replayed

CLASSES: dict[str, Any] = {"UNet2DModel": UNet2DModel, "DiTTransformer2DModel": DiTTransformer2DModel}
WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler_config.json"
PREDICTIONS = ("epsilon", "v_prediction", "sample")
CANDIDATES, DRAWS = 10, 8  # of the diffusion classifier: labels that an image is compared under, noises of each image
LABEL_DROPOUT = 0.1  # share of labels that ordinary training replaces by the null class


def load(directory: Path, device: torch.device) -> nn.Module:
    config = read_config(directory, "config.json")
    check_config(config)
    network = open_diffusers(CLASSES[config["_class_name"]], directory)
    network.__dict__["noise_scheduler"] = load_scheduler(directory)
    return network.to(device)


def check_config(config: dict[str, Any]) -> None:
    name = config.get("_class_name")
    if name not in CLASSES:
        raise ValueError(f"config.json: _class_name must be one of {', '.join(CLASSES)}, not {name!r}")
    if name == "UNet2DModel" and config.get("class_embed_type") is not None:
        raise ValueError("config.json: class_embed_type must be null: labels are looked up in a table")
    field, fewest = ("num_class_embeds", 3) if name == "UNet2DModel" else ("num_embeds_ada_norm", 2)
    rows = config.get(field, 1000 if name == "DiTTransformer2DModel" else None)
    if not isinstance(rows, int) or rows < fewest:
        raise ValueError(f"config.json: {field} must be at least {fewest}: two labels, and the null class")


def load_scheduler(directory: Path) -> DDIMScheduler:
    config = read_config(directory, SCHEDULER)
    if config.get("prediction_type", "epsilon") not in PREDICTIONS:
        raise ValueError(f"{SCHEDULER}: prediction_type must be one of {', '.join(PREDICTIONS)}")
    try:
        return DDIMScheduler.from_config(config)
    except UNBUILDABLE as error:
        raise ValueError(f"{SCHEDULER}: DDIMScheduler cannot be built from it: {error}") from error


def save(network: nn.Module, directory: Path, like: Path) -> None:
    save_directory({"": network}, directory, like)


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: tensor for name, tensor in network.named_parameters() if tensor.is_floating_point()}


def label_tables(network: nn.Module) -> dict[str, nn.Parameter]:
    endings = ("class_embedding.weight", "class_embedder.embedding_table.weight")
    return {name: tensor for name, tensor in network.named_parameters() if name.endswith(endings)}


def conditions(network: nn.Module) -> list[Tensor]:
    """All that the network is told of each label: row y is label y's, the last the null class's."""
    return list(label_tables(network).values())


def label_count(network: nn.Module) -> int:
    return next(iter(label_tables(network).values())).shape[0] - 1


def image_shape(source: nn.Module | Path) -> tuple[int, int, int]:
    config: Any = read_config(source, "config.json") if isinstance(source, Path) else source.config
    size = config.get("sample_size")
    if size is None:
        raise ValueError("config.json: sample_size is needed to know which images the network takes")
    height, width = (size, size) if isinstance(size, int) else size
    return int(config.get("in_channels", 3)), int(height), int(width)


def check(network: nn.Module, samples: Samples, name: str) -> None:
    check_samples(samples, image_shape(network), name)
    check_labels(samples.y, label_count(network), f"{name}.y")


def prepare(images: list[np.ndarray], directory: Path, network: nn.Module) -> Tensor:
    check_channels(image_shape(network)[0], "in_channels")
    return minus_one_to_one(images, image_shape(network), network)


pictures = prepare


def denoise(network: nn.Module, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """What the network predicts for noisy images `x` (N, C, H, W) at times `t` (N,) under labels `y` (N,)."""
    dtype = next(network.parameters()).dtype
    output: Tensor = network(x.to(dtype), t, class_labels=y).sample
    return output[:, : x.shape[1]].float()


def diffuse(network: nn.Module, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, t and what the network should predict there (noise, velocity or x), drawn alike on every device."""
    scheduler: Any = network.noise_scheduler
    t = torch.randint(scheduler.config.num_train_timesteps, (len(x),), generator=generator).to(x.device)
    noise = torch.randn(x.shape, generator=generator).to(x.device)
    targets = {
        "epsilon": lambda: noise,
        "sample": lambda: x,
        "v_prediction": lambda: scheduler.get_velocity(x, noise, t),
    }
    return scheduler.add_noise(x, noise, t), t, targets[scheduler.config.prediction_type]()


def null_label(network: nn.Module) -> int:
    return label_count(network)


def cross_attention(network: nn.Module) -> dict[str, nn.Parameter]:
    """A label enters with the time, so there is none."""
    return {}


def training_loss(network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """|| eps(x_t | c) - eps ||^2 per element, with one label in ten dropped so that the null class stays alive."""
    noisy, t, target = diffuse(network, x, generator)
    dropped = torch.rand(len(y), generator=generator).to(y.device) < LABEL_DROPOUT
    return F.mse_loss(denoise(network, noisy, t, y.masked_fill(dropped, null_label(network))), target)


forget_loss = training_loss


def relabel_loss(
    network: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, relabel: str = "uniform"
) -> Tensor:
    """|| eps(x_t | c) - sg eps_teacher(x_t | c') ||^2 per element, c' another label (`other_labels`)."""
    noisy, t, _ = diffuse(network, x, generator)
    other = other_labels(y, label_count(network), relabel, generator)
    with torch.no_grad():
        target = denoise(teacher, noisy, t, other)
    return F.mse_loss(denoise(network, noisy, t, y), target)


def reinitialise(network: nn.Module, generator: torch.Generator) -> None:
    network.load_state_dict(fresh(network, generator).state_dict())


@torch.no_grad()
def sample(
    network: nn.Module,
    labels: Tensor,
    seeds: Tensor,
    *,
    steps: int,
    guidance_scale: float,
    eta: float = 0.0,
    batch_size: int = 256,
) -> Tensor:
    """Images (N, C, H, W) in [-1, 1] by DDIM, one per label; an image's noise depends on its own seed only."""
    check_labels(labels, label_count(network), "labels")
    if seeds.shape != labels.shape:
        raise ValueError(f"seeds: one per label is needed, {len(labels)} and not {tuple(seeds.shape)}")
    parts = zip(labels.split(batch_size), seeds.split(batch_size), strict=True)
    return torch.cat([sample_batch(network, *part, steps, guidance_scale, eta) for part in parts]).clamp(-1, 1)


def sample_batch(
    network: nn.Module, labels: Tensor, seeds: Tensor, steps: int, guidance_scale: float, eta: float
) -> Tensor:
    device = next(network.parameters()).device
    generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
    shape = image_shape(network)
    template: Any = network.noise_scheduler
    scheduler = DDIMScheduler.from_config(template.config)
    scheduler.set_timesteps(steps, device=device)
    labels = labels.to(device)
    nulls = torch.full_like(labels, null_label(network))
    x = torch.stack([torch.randn(shape, generator=each) for each in generators]).to(device)
    for t in scheduler.timesteps:
        if guidance_scale == 1:
            prediction = denoise(network, x, t.expand(len(x)), labels)
        else:
            both = denoise(network, x.repeat(2, 1, 1, 1), t.expand(2 * len(x)), torch.cat([nulls, labels]))
            without, prediction = both.chunk(2)
            prediction = without + guidance_scale * (prediction - without)
        noise = torch.stack([torch.randn(shape, generator=each) for each in generators]).to(device) if eta > 0 else None
        x = scheduler.step(prediction, t, x, eta=eta, variance_noise=noise).prev_sample
    return x


def layers(network: nn.Module, group: str) -> dict[str, tuple[str, ...]]:
    return editable(network, group, {"": "unet" if isinstance(network, UNet2DModel) else "transformer"})


@torch.no_grad()
def prober(
    network: nn.Module, names: Collection[str], samples: Samples, generator: torch.Generator, top: int = 1
) -> Callable[[], Tensor]:
    """Recognised: under its own label an image is denoised best, or among the `top` best, of up to CANDIDATES labels.

    The diffusion classifier of Li et al., arXiv 2303.16203, with DRAWS times and noises that stay the same.
    """
    count, others = len(samples.y), min(CANDIDATES, label_count(network)) - 1
    steps = torch.rand(count, label_count(network) - 1, generator=generator).argsort(1)[:, :others].to(samples.y.device)
    labels = torch.cat([samples.y[:, None], (samples.y[:, None] + 1 + steps) % label_count(network)], 1)  # own first
    asks = []
    for _ in range(DRAWS):
        noisy, t, target = diffuse(network, samples.x, generator)
        rows = torch.arange(count, device=t.device).repeat_interleave(1 + others)
        for part, y in zip(rows.split(256), labels.flatten().split(256), strict=True):
            asks.append(replayed(network, names, error_of(network, noisy[part], t[part], y, target[part])))

    def recognised() -> Tensor:
        errors = torch.cat([ask() for ask in asks]).reshape(DRAWS, count, 1 + others).mean(0)
        return (errors < errors[:, :1]).sum(1) < top

    return recognised


def error_of(network: nn.Module, noisy: Tensor, t: Tensor, y: Tensor, target: Tensor) -> Callable[[], Tensor]:
    """Asks for the mean squared error of each prediction, (N,)."""
    return lambda: (denoise(network, noisy, t, y) - target).pow(2).flatten(1).mean(1)
