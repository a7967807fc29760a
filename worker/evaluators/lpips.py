"""LPIPS on AlexNet, as one vector per image: two images are as far apart as their vectors, squared.

    LPIPS(a, b) = sum over layers l of mean over places of sum over channels c of w_lc (u_lc(a) - u_lc(b))^2

u: features of length 1 over the channels; w: the learned weights, none below 0. With sqrt(w_lc / places) u_lc for every layer,
channel and place side by side, that is a squared Euclidean distance, so that each image passes the network once. Images are
resized to SIDE pixels (as in ESD's and UCE's scripts): about 31,000 numbers each.
Source: Zhang et al., arXiv 1801.03924, version 0.1, by the package lpips.
"""

from typing import Any

import lpips
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 64
BATCH = 64


def load(weights: dict[str, Tensor], device: torch.device) -> nn.Module:
    network: nn.Module = lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False)
    network.load_state_dict(weights)
    if any(bool((weight < 0).any()) for weight in learned(network)):
        raise ValueError("a layer's weight is below 0, which is no distance")
    return network.to(device).eval()


@torch.no_grad()
def embed(network: nn.Module, pictures: np.ndarray) -> np.ndarray:
    if pictures.dtype != np.uint8:
        raise ValueError(f"pictures: must be uint8, not {pictures.dtype}")
    device = next(network.parameters()).device
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    parts = [small(part.to(device)) for part in images.split(BATCH)]
    return np.concatenate([vectors(network, part).cpu().numpy() for part in parts])


def small(images: Tensor) -> Tensor:
    """(n, C, H, W), uint8 -> (n, 3, SIDE, SIDE) in [-1, 1]."""
    colours = images.expand(-1, 3, -1, -1).float() / 127.5 - 1
    return F.interpolate(colours, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)


def vectors(network: nn.Module, images: Tensor) -> Tensor:
    """Of images (n, 3, H, W) in [-1, 1], (n, d)."""
    seen = network.get_submodule("net")(network.get_submodule("scaling_layer")(images))
    weighted = [
        lpips.normalize_tensor(part) * (weight / part[0, 0].numel()).sqrt()
        for part, weight in zip(seen, learned(network), strict=True)
    ]
    return torch.cat([part.flatten(1) for part in weighted], dim=1)


def learned(network: nn.Module) -> list[Tensor]:
    """w of each layer, (1, channels, 1, 1)."""
    layers: Any = network.get_submodule("lins")
    return [layer.model[-1].weight for layer in layers]
