"""Masked autoencoders: transformers' `ViTMAEForPreTraining`, which restores the patches that it is not shown.

A directory holds config.json, model.safetensors and, as a rule, preprocessor_config.json (mean and spread of the
pixels; without one, pixels are scaled to [-1, 1]). E is the vision transformer over the visible patches (`vit.`), D the
decoder. The network knows no labels: a request's labels are those of the registered sets.

The masks are ours, drawn from the caller's generator: the network's own random ones never run, and `mask_ratio` of its config
is only what ordinary training hides. With `norm_pix_loss` the decoder answers patches of mean 0 and spread 1; they are
shown with the mean and spread of the image's visible pixels, since those of a hidden patch would give it away.

He et al., Masked Autoencoders Are Scalable Vision Learners, CVPR 2022, arXiv 2111.06377.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import ViTMAEForPreTraining

from worker.families import Samples, Views, hidden_patches, own_parameters
from worker.families import directory as files
from worker.families.directory import round_to_stored as round_to_stored
from worker.families.inputs import check_channels, check_labels, check_samples, fresh, levels

CLASSES: dict[str, Any] = {"ViTMAEForPreTraining": ViTMAEForPreTraining}
WEIGHTS = "model.safetensors"
PREPROCESSOR = "preprocessor_config.json"
FIXED_VIEWS = True


def load(directory: Path, device: torch.device) -> nn.Module:
    config = files.read_config(directory, "config.json")
    if config.get("architectures") != ["ViTMAEForPreTraining"]:
        raise ValueError(
            f"config.json: architectures must be ViTMAEForPreTraining, not {config.get('architectures')!r}"
        )
    network = files.open_transformers(ViTMAEForPreTraining, directory)
    rules = preprocessing(directory)
    normal = rules.get("do_normalize", True)
    for name, other in (("image_mean", 0.0), ("image_std", 1.0)):
        value = torch.tensor(rules.get(name, 0.5) if normal else other).reshape(-1, 1, 1)
        network.__dict__[name] = value.expand(image_shape(network)[0], 1, 1).to(device)
    return network.to(device)


def save(network: nn.Module, directory: Path, like: Path) -> None:
    files.save({"": network}, directory, like)


def preprocessing(directory: Path) -> dict[str, Any]:
    return files.read_config(directory, PREPROCESSOR) if (directory / PREPROCESSOR).is_file() else {}


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    """All but the positions, which are fixed sines."""
    return {name: tensor for name, tensor in network.named_parameters() if tensor.requires_grad}


def encoder(network: nn.Module) -> dict[str, nn.Parameter]:
    return own_parameters(network, ("vit.",))


def label_tables(network: nn.Module) -> dict[str, nn.Parameter]:
    return {}


def label_count(network: nn.Module) -> int:
    """None: the network is never given a label."""
    return 0


def image_shape(source: nn.Module | Path) -> tuple[int, int, int]:
    config: Any = source.config.to_dict() if isinstance(source, nn.Module) else None  # type: ignore[union-attr,operator]
    if config is None:
        config = files.read_config(source, "config.json")  # type: ignore[arg-type]
    side = int(config.get("image_size", 224))
    return int(config.get("num_channels", 3)), side, side


def check(network: nn.Module, samples: Samples, name: str) -> None:
    check_samples(samples, image_shape(network), name)
    check_labels(samples.y, None, f"{name}.y")


def prepare(images: list[np.ndarray], directory: Path, network: nn.Module) -> Tensor:
    check_channels(image_shape(network)[0], "num_channels")
    resample = Image.Resampling(preprocessing(directory).get("resample", Image.Resampling.BILINEAR))
    known = network.__dict__
    x = levels(images, image_shape(network), resample).to(known["image_mean"].device)
    return ((x / 255 - known["image_mean"]) / known["image_std"]).contiguous()


def pixels(network: nn.Module, x: Tensor) -> Tensor:
    known = network.__dict__
    images: Tensor = (x * known["image_std"] + known["image_mean"]) * 2 - 1
    return images


def pixel_range(network: nn.Module) -> tuple[Tensor, Tensor]:
    known = network.__dict__
    return -known["image_mean"] / known["image_std"], (1 - known["image_mean"]) / known["image_std"]


def masks(network: nn.Module, count: int, pattern: str, share: float, generator: torch.Generator) -> Tensor:
    if pattern == "none":
        raise ValueError("pattern: a masked autoencoder restores hidden patches, so some must be hidden")
    side = patch_grid(network)
    return hidden_patches(count, side, side, pattern, share, generator)


def patch_grid(network: nn.Module) -> int:
    config: Any = network.config
    return int(config.image_size) // int(config.patch_size)


def hidden_pixels(network: nn.Module, mask: Tensor) -> Tensor:
    config: Any = network.config
    size = int(config.patch_size)
    return mask.repeat_interleave(size, 1).repeat_interleave(size, 2).unsqueeze(1)


def views(network: nn.Module, x: Tensor, mask: Tensor, generator: torch.Generator) -> Views:
    return x, mask.to(x.device)


def unit_noise(network: nn.Module, views: Views, generator: torch.Generator) -> Tensor:
    return torch.randn(views[0].shape, generator=generator).to(views[0].device)


def noise_views(network: nn.Module, views: Views, mask: Tensor, noise: Tensor) -> Views:
    return noise, views[1]


def encode(network: nn.Module, views: Views) -> list[Tensor]:
    """The last layer's tokens of the visible patches behind the class token, (N, 1 + visible, d)."""
    x, mask = views
    inside: Any = network
    embeddings = inside.vit.embeddings
    tokens = embeddings.patch_embeddings(x) + embeddings.position_embeddings[:, 1:]
    shown = order(mask)[:, : int((~mask[0]).sum())]
    tokens = tokens.gather(1, shown.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
    first = embeddings.cls_token + embeddings.position_embeddings[:, :1]
    hidden = torch.cat([first.expand(len(tokens), -1, -1), tokens], dim=1)
    for layer in inside.vit.layers:
        hidden = layer(hidden, None)
    return [inside.vit.layernorm(hidden)]


def order(mask: Tensor) -> Tensor:
    """The positions of the patches, the visible ones first, each part in its order: (N, patches)."""
    return mask.flatten(1).to(torch.uint8).argsort(dim=1, stable=True)


def decode(network: nn.Module, features: list[Tensor], mask: Tensor) -> Tensor:
    """The decoder's answer for every patch, (N, patches, patch_size^2 * C)."""
    inside: Any = network
    answer: Tensor = inside.decoder(features[0], order(mask).argsort(dim=1)).logits
    return answer


def reconstruction_loss(
    network: nn.Module, x: Tensor, target: Tensor, mask: Tensor, generator: torch.Generator
) -> Tensor:
    """The mean squared error over hidden patches."""
    inside: Any = network
    mask = mask.to(x.device)
    wanted = inside.patchify(target)
    if inside.config.norm_pix_loss:
        wanted = (wanted - wanted.mean(-1, keepdim=True)) / (wanted.var(-1, keepdim=True) + 1e-6).sqrt()
    answer = decode(network, encode(network, (x, mask)), mask)
    loss: Tensor = (answer - wanted).square().mean(-1)[mask.flatten(1)].mean()
    return loss


def training_loss(network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """As the network was trained: its config's share of the patches is hidden at random."""
    config: Any = network.config
    mask = masks(network, len(x), "random", config.mask_ratio, generator)
    return reconstruction_loss(network, x, x, mask, generator)


@torch.no_grad()
def reconstruct(network: nn.Module, x: Tensor, mask: Tensor, seeds: Tensor, steps: int) -> Tensor:
    """One pass, nothing is sampled: `seeds` and `steps` do not matter. Visible patches were never trained to be answered."""
    inside: Any = network
    mask = mask.to(x.device)
    answer = decode(network, encode(network, (x, mask)), mask)
    if inside.config.norm_pix_loss:
        visible = (~hidden_pixels(network, mask)).expand_as(x)
        means, spreads = zip(
            *((each[shown].mean(), each[shown].std()) for each, shown in zip(x, visible, strict=True)), strict=True
        )
        answer = answer * torch.stack(spreads).reshape(-1, 1, 1) + torch.stack(means).reshape(-1, 1, 1)
    return pixels(network, inside.unpatchify(answer)).clamp(-1, 1)


def reinitialise(network: nn.Module, generator: torch.Generator) -> None:
    other = fresh(network, generator)
    fix_positions(other)
    network.load_state_dict(other.state_dict())


@torch.no_grad()
def fix_positions(network: nn.Module) -> None:
    """Fill both tables of positions, which transformers 5.23 leaves at 0 in a network that it builds from a config."""
    inside: Any = network
    for table in (inside.vit.embeddings.position_embeddings, inside.decoder.decoder_pos_embed):
        table.copy_(positions(table.shape[-1], patch_grid(network)))


def positions(width: int, side: int) -> Tensor:
    """Sines and cosines of each patch's column and row, behind zeros for the class token: (1 + side * side, width)."""
    rates = 10_000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    row, column = torch.arange(side * side) // side, torch.arange(side * side) % side
    parts = [wave(axis[:, None] * rates) for axis in (column, row) for wave in (torch.sin, torch.cos)]
    return torch.cat([torch.zeros(1, width), torch.cat(parts, dim=1).float()])
