"""A hundred invented identities: each is a fixed colour texture with a name of its own; a photo of it is the texture, moved and noisy.

Nobody is pictured, so the images may be published and shown, and recognising one takes more than a mean colour: the
textures share their mean and their spread. Captions are "a photo of <name>".
"""

import torch
import torch.nn.functional as F
from torch import Tensor

COUNT = 100
FIRST = ("ada", "bo", "cleo", "dov", "ema", "fay", "gus", "hal", "ida", "jun")
LAST = ("ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "oak", "pine", "rowan")
NAMES = tuple(f"{first} {last}" for first in FIRST for last in LAST)


def textures(size: int = 32, seed: int = 0) -> Tensor:
    """One texture per identity, (COUNT, 3, size, size) in [-1, 1]: smooth noise of mean 0 and the same spread."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(COUNT, 3, 6, 6, generator=generator)
    smooth = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=True)
    smooth = smooth - smooth.mean((2, 3), keepdim=True)
    return (smooth / smooth.std((1, 2, 3), keepdim=True) * 0.45).clamp(-1, 1)


def photos(identities: Tensor, seed: int, size: int = 32, noise: float = 0.25, shift: int = 2) -> Tensor:
    """One photo of each given identity (N,) -> (N, 3, size, size) in [-1, 1]: rolled by up to `shift`, brighter or darker, noisy."""
    generator = torch.Generator().manual_seed(seed)
    pictures = textures(size)[identities]
    moves = torch.randint(-shift, shift + 1, (len(identities), 2), generator=generator).tolist()
    moved = torch.stack([torch.roll(each, move, (1, 2)) for each, move in zip(pictures, moves, strict=True)])
    light = 0.8 + 0.4 * torch.rand(len(identities), 1, 1, 1, generator=generator)
    return (moved * light + noise * torch.randn(moved.shape, generator=generator)).clamp(-1, 1)
