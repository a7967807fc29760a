"""Class-conditional diffusion: diffusers' `UNet2DModel` with a class embedding, or `DiTTransformer2DModel`.

A directory holds config.json, diffusion_pytorch_model.safetensors and scheduler_config.json side by side, so
that `UNet2DModel.from_pretrained(d)` and `DDIMScheduler.from_pretrained(d)` both open it. The last row of the
label table is the null class of classifier-free guidance (Ho and Salimans, arXiv 2207.12598):

    eps(x_t | c, g) = eps(x_t | null) + g * (eps(x_t | c) - eps(x_t | null))

Images are in [-1, 1]. A network runs in eval mode here: label dropout is drawn from the generator that the
caller owns, never by the network. A learned variance (extra output channels) is left as it is.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DiTTransformer2DModel, UNet2DModel
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from worker.families import Samples, other_labels
from worker.families.directory import round_to_stored as round_to_stored

CLASSES: dict[str, Any] = {"UNet2DModel": UNet2DModel, "DiTTransformer2DModel": DiTTransformer2DModel}
WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler_config.json"
PREDICTIONS = ("epsilon", "v_prediction", "sample")
LABEL_DROPOUT = 0.1  # share of labels that ordinary training replaces by the null class
UNBUILDABLE = (ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)


def load(directory: Path, device: torch.device) -> nn.Module:
    config = read_config(directory, "config.json")
    check_config(config)
    name = config["_class_name"]
    try:
        with torch.random.fork_rng(devices=[]):  # its first weights are thrown away, and nobody's seed is spent
            network: nn.Module = CLASSES[name].from_config(config)
    except UNBUILDABLE as error:
        raise ValueError(f"config.json: {name} cannot be built from it: {error}") from error
    network.load_state_dict(read_weights(directory, network.state_dict()), assign=True)
    network.__dict__["noise_scheduler"] = load_scheduler(directory)
    return network.to(device).eval()


def read_config(directory: Path, name: str) -> dict[str, Any]:
    path = directory / name
    if not path.is_file():
        raise ValueError(f"{name}: the directory must hold it")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{name}: not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{name}: must hold an object")
    return config


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


def read_weights(directory: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors, when names and shapes are exactly those of `expected`; their dtypes are kept."""
    path = directory / WEIGHTS
    if not path.is_file():
        raise ValueError(f"{WEIGHTS}: the directory must hold it, in one file")
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{WEIGHTS}: not a safetensors file: {error}") from error
    for name in sorted(expected.keys() - found.keys()):
        raise ValueError(f"{WEIGHTS}: tensor {name} is missing")
    for name in sorted(found.keys() - expected.keys()):
        raise ValueError(f"{WEIGHTS}: tensor {name} is not part of the network that config.json describes")
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            shapes = f"{tuple(found[name].shape)}, and config.json describes {tuple(tensor.shape)}"
            raise ValueError(f"{WEIGHTS}: tensor {name} has shape {shapes}")
        if found[name].is_floating_point() != tensor.is_floating_point():
            raise ValueError(f"{WEIGHTS}: tensor {name} has dtype {found[name].dtype}, unlike the network's")
    return found


def load_scheduler(directory: Path) -> DDIMScheduler:
    config = read_config(directory, SCHEDULER)
    if config.get("prediction_type", "epsilon") not in PREDICTIONS:
        raise ValueError(f"{SCHEDULER}: prediction_type must be one of {', '.join(PREDICTIONS)}")
    try:
        return DDIMScheduler.from_config(config)
    except UNBUILDABLE as error:
        raise ValueError(f"{SCHEDULER}: DDIMScheduler cannot be built from it: {error}") from error


def save(network: nn.Module, directory: Path, like: Path) -> None:
    writer: Any = network
    writer.save_pretrained(directory, safe_serialization=True, max_shard_size="1TB")
    for source in sorted(path for path in like.rglob("*") if path.is_file()):
        target = directory / source.relative_to(like)
        if target != directory / WEIGHTS:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: tensor for name, tensor in network.named_parameters() if tensor.is_floating_point()}


def label_tables(network: nn.Module) -> dict[str, nn.Parameter]:
    endings = ("class_embedding.weight", "class_embedder.embedding_table.weight")
    return {name: tensor for name, tensor in network.named_parameters() if name.endswith(endings)}


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
    if samples.x.dtype != torch.float32 or samples.x.shape[1:] != image_shape(network):
        wanted = f"float32 (N, {', '.join(map(str, image_shape(network)))})"
        raise ValueError(f"{name}.x: must be {wanted}, not {samples.x.dtype} {tuple(samples.x.shape)}")
    if samples.y.dtype != torch.int64 or samples.y.shape != samples.x.shape[:1]:
        raise ValueError(f"{name}.y: must be int64 with one label per image, {len(samples.x)} of them")
    check_labels(network, samples.y, f"{name}.y")


def check_labels(network: nn.Module, labels: Tensor, name: str) -> None:
    if len(labels) == 0:
        raise ValueError(f"{name}: must hold at least one label")
    if labels.min() < 0 or labels.max() >= label_count(network):
        raise ValueError(f"{name}: labels must lie in 0..{label_count(network) - 1}")


def prepare(images: list[np.ndarray], directory: Path, network: nn.Module) -> Tensor:
    channels, height, width = image_shape(network)
    if channels not in (1, 3):
        raise ValueError(f"config.json: in_channels is {channels}; images have 1 or 3 channels")
    pictures = (Image.fromarray(image.squeeze()).convert("L" if channels == 1 else "RGB") for image in images)
    arrays = [np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC)) for picture in pictures]
    pixels = torch.from_numpy(np.stack(arrays)).reshape(-1, height, width, channels).permute(0, 3, 1, 2)
    return (pixels.float() / 127.5 - 1).contiguous().to(next(network.parameters()).device)


pictures = prepare


def denoise(network: nn.Module, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """What the network predicts for noisy images `x` (N, C, H, W) at times `t` (N,) under labels `y` (N,)."""
    dtype = next(network.parameters()).dtype
    output: Tensor = network(x.to(dtype), t, class_labels=y).sample
    return output[:, : x.shape[1]].float()


def diffuse(network: nn.Module, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, t and the noise, all drawn from the generator: the same on every device."""
    scheduler: Any = network.noise_scheduler
    t = torch.randint(scheduler.config.num_train_timesteps, (len(x),), generator=generator).to(x.device)
    noise = torch.randn(x.shape, generator=generator).to(x.device)
    return scheduler.add_noise(x, noise, t), t, noise


def training_loss(network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """|| eps(x_t | c) - eps ||^2 per element, with one label in ten dropped so that the null class stays alive."""
    noisy, t, noise = diffuse(network, x, generator)
    dropped = torch.rand(len(y), generator=generator).to(y.device) < LABEL_DROPOUT
    prediction = denoise(network, noisy, t, y.masked_fill(dropped, label_count(network)))
    scheduler: Any = network.noise_scheduler
    targets = {
        "epsilon": lambda: noise,
        "sample": lambda: x,
        "v_prediction": lambda: scheduler.get_velocity(x, noise, t),
    }
    return F.mse_loss(prediction, targets[scheduler.config.prediction_type]())


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
    seed = int(torch.randint(2**62, (), generator=generator))
    blueprint: Any = network
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        fresh = type(blueprint).from_config(blueprint.config)
    network.load_state_dict(fresh.state_dict())


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
    check_labels(network, labels, "labels")
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
    nulls = torch.full_like(labels, label_count(network))
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
