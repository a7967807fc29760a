"""What a method needs to know of a kind of network, and the images it is given.

One file of this package is one family: plain functions over a Hugging Face directory and the network that it
holds. `Family` lists what every family offers to a method; loading, saving and evaluation use more of it, by name.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

Trace = dict[str, Any]  # what a method weighed and chose, for the report; JSON


class Samples(NamedTuple):
    """Images in the network's input range (or the latents that stand for them) and what they are called, on its device."""

    x: Tensor  # (N, C, H, W), float32
    y: Tensor  # (N,), int64: a label; for a family of texts, a position in `Captions.texts`


class Captions(NamedTuple):
    """The texts of one job. The first `len(names)` are the labels' own prompts, in the labels' order."""

    names: tuple[str, ...]  # of the labels
    texts: tuple[str, ...]  # distinct but for labels of one name
    labels: tuple[int, ...]  # per text, the label that it speaks of
    prompt: str = "{}"  # what made the labels' prompts of their names


class Family(Protocol):
    """The functions of a family module. `y` never holds the null class of a generator."""

    def load(self, directory: Path, device: torch.device) -> nn.Module:
        """Open a directory strictly, in eval mode; ValueError names the file, field or tensor at fault."""

    def save(self, network: nn.Module, directory: Path, like: Path) -> None:
        """Write the weights as `save_pretrained` would, and every other file of `like` byte for byte."""

    def check(self, network: nn.Module, samples: Samples, name: str) -> None:
        """ValueError naming `name.x` or `name.y` when the network cannot be given these samples."""

    def trainable(self, network: nn.Module) -> dict[str, nn.Parameter]:
        """The tensors that a method may move, by name, in the network's own order."""

    def label_tables(self, network: nn.Module) -> Mapping[str, nn.Parameter]:
        """Those of them that hold one input row per label (none for a classifier)."""

    def label_count(self, network: nn.Module) -> int:
        """Real labels, without a null class."""

    def image_shape(self, source: nn.Module | Path) -> tuple[int, int, int]:
        """(C, H, W) that the network expects."""

    def prepare(self, images: list[np.ndarray], directory: Path, network: nn.Module) -> Tensor:
        """uint8 images (H, W) or (H, W, C) -> (N, C, H, W) in the network's input range, on its device."""

    def training_loss(self, network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """The loss that the network was trained with, averaged over the batch and over elements."""

    def relabel_loss(
        self,
        network: nn.Module,
        teacher: nn.Module,
        x: Tensor,
        y: Tensor,
        generator: torch.Generator,
        relabel: str = "uniform",
    ) -> Tensor:
        """The distance to what another label than `y` would give; averaged likewise. See `other_labels`."""

    def round_to_stored(self, network: nn.Module) -> None:
        """Round every weight, in place, to the dtype of its file."""

    def reinitialise(self, network: nn.Module, generator: torch.Generator) -> None:
        """Replace every weight and statistic by a fresh one."""


class Classifier(Family, Protocol):
    """What methods of classifiers ask besides."""

    def logits(self, network: nn.Module, x: Tensor) -> Tensor:
        """(N, labels), float32, with a gradient."""


class Generator(Family, Protocol):
    """What methods of generators ask besides: noisy images, and what the network predicts for them."""

    def diffuse(self, network: nn.Module, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """x_t, t, and what the network should predict there: noise, velocity or x."""

    def denoise(self, network: nn.Module, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The prediction for noisy `x` at times `t` under labels or texts `y`; the null label is allowed."""

    def null_label(self, network: nn.Module) -> int:
        """The `y` of no label and no text."""

    def cross_attention(self, network: nn.Module) -> Mapping[str, nn.Parameter]:
        """Those of `trainable` that belong to attention over texts; empty where there is none."""


class TextGenerator(Generator, Protocol):
    """What methods ask of a generator that reads texts, where `y` is a position in `Captions.texts`."""

    def labels_of(self, network: nn.Module, y: Tensor) -> Tensor:
        """The label that each text speaks of, (N,); a label is also the position of its own prompt."""

    def trajectory(
        self, network: nn.Module, y: Tensor, generator: torch.Generator, *, steps: int, guidance_scale: float
    ) -> tuple[Tensor, Tensor]:
        """What sampling passes through, (steps, N, ...), and when, (steps,)."""

    def projections(self, network: nn.Module) -> Mapping[str, nn.Parameter]:
        """Weights (out, d) of the linear maps that read the text encoders' output."""

    def prompt_vectors(self, network: nn.Module, y: Tensor) -> Tensor:
        """What those maps read where a text names its subject, (N, d)."""

    def attention_maps(self, network: nn.Module, x: Tensor, t: Tensor, y: Tensor) -> list[Tensor]:
        """Per cross-attention layer the attention paid to each text's subject, (N, heads, pixels, tokens); 0 elsewhere."""


class Layered(Family, Protocol):
    """What slug asks of a family besides: where it may edit, what to forget, and whether a sample is still recognised."""

    def layers(self, network: nn.Module, group: str) -> Mapping[str, tuple[str, ...]]:
        """Editable layers in the network's order -> names of their tensors (no bias, norm, embedding or scale).

        A layer's name begins with its tower (`vision.`, `text.`, `unet.`). `group`: `tensor` is one tensor each,
        `block` joins query, key and value, and the two halves of a feed-forward part.
        """

    def forget_loss(self, network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        """What rises as these samples are forgotten, averaged over the batch."""

    def labels_of(self, network: nn.Module, y: Tensor) -> Tensor:
        """The label that each `y` speaks of, (N,)."""

    def prober(
        self,
        network: nn.Module,
        names: Collection[str],
        samples: Samples,
        generator: torch.Generator,
        top: int = 1,
    ) -> Callable[[], Tensor]:
        """Asks, each time it is called, which samples are still among the `top` answers for their own label: (N,) bool.

        Between calls only the tensors `names` may change; all that does not depend on them is computed once.
        """


def other_labels(y: Tensor, labels: int, relabel: str, generator: torch.Generator) -> Tensor:
    """For each label another one: `uniform` over the others, or the `next` (the last is followed by the first)."""
    if relabel == "next":
        return (y + 1) % labels
    return (y + torch.randint(1, labels, y.shape, generator=generator).to(y.device)) % labels


def labels_of(network: nn.Module, y: Tensor) -> Tensor:
    """The label that each `y` speaks of, (N,): itself, but for a captioned network, where y counts texts."""
    captions: Captions | None = network.__dict__.get("captions")
    return y if captions is None else torch.tensor(captions.labels, device=y.device)[y]


Views = tuple[Tensor, ...]  # all that an encoder is given, one row per image


class ImageToImage(Family, Protocol):
    """What families that restore images offer further: a network is D(E(T(x))), T hides patches, E may move, D may not.

    A mask is bool, (N, rows, columns) over the patch grid, True where hidden; every image of one mask hides as many.
    """

    FIXED_VIEWS: bool  # whether T(x) follows from x and the mask alone, without noise or times

    def encoder(self, network: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters of E that the rest of the network does not share, by name."""

    def masks(self, network: nn.Module, count: int, pattern: str, share: float, generator: torch.Generator) -> Tensor:
        """One mask per image, see `hidden_patches`; ValueError where the pattern leaves the network nothing to do."""

    def hidden_pixels(self, network: nn.Module, mask: Tensor) -> Tensor:
        """(N, 1, H, W), bool."""

    def views(self, network: nn.Module, x: Tensor, mask: Tensor, generator: torch.Generator) -> Views:
        """T(x). What a diffusion network sees is mixed with noise, at times from `generator`."""

    def unit_noise(self, network: nn.Module, views: Views, generator: torch.Generator) -> Tensor:
        """N(0, I) like the images of the views; in diffusion the very noise that they are mixed with."""

    def noise_views(self, network: nn.Module, views: Views, mask: Tensor, noise: Tensor) -> Views:
        """T(n): the same masks and times, with the images `noise` in the place of what the views show."""

    def encode(self, network: nn.Module, views: Views) -> list[Tensor]:
        """E: the feature tensors that the decoder reads, each (N, ...)."""

    def pixel_range(self, network: nn.Module) -> tuple[Tensor, Tensor]:
        """Black and white in the network's input range, each (C, 1, 1)."""

    def pixels(self, network: nn.Module, x: Tensor) -> Tensor:
        """Inputs as images in [-1, 1]."""

    def reconstruction_loss(
        self, network: nn.Module, x: Tensor, target: Tensor, mask: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The distance of what the network makes of T(x) to `target` (like x), averaged over batch and elements."""

    def reconstruct(self, network: nn.Module, x: Tensor, mask: Tensor, seeds: Tensor, steps: int) -> Tensor:
        """D(E(T(x))) as images in [-1, 1], the network's own output everywhere; `steps` of sampling where it samples."""


def hidden_patches(
    count: int, rows: int, columns: int, pattern: str, share: float, generator: torch.Generator
) -> Tensor:
    """(count, rows, columns), bool, True where hidden. Of a 16x16 grid, `centre_4` and `centre_8` hide the middle 4x4 and
    8x8 patches, `outpainting` all but the middle 8x8, `random` a `share` of all, drawn per image, `none` nothing."""
    hidden = torch.zeros(count, rows, columns, dtype=torch.bool)
    if pattern == "random":
        patches = rows * columns
        order = torch.rand(count, patches, generator=generator).argsort(dim=1)
        many = min(max(round(share * patches), 1), patches - 1)
        return hidden.flatten(1).scatter(1, order[:, :many], True).reshape(hidden.shape)
    if pattern != "none":
        of_16 = {"centre_4": 4, "centre_8": 8, "outpainting": 8}[pattern]
        tall, wide = (max(1, side * of_16 // 16) for side in (rows, columns))
        top, left = (rows - tall) // 2, (columns - wide) // 2
        hidden[:, top : top + tall, left : left + wide] = True
    return ~hidden if pattern == "outpainting" else hidden


def own_parameters(network: nn.Module, prefixes: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """The trainable parameters under these prefixes, but for those that are tied to one elsewhere."""
    names = list(network.named_parameters(remove_duplicate=False))
    elsewhere = {id(tensor) for name, tensor in names if not name.startswith(prefixes)}
    return {
        name: tensor
        for name, tensor in network.named_parameters()
        if name.startswith(prefixes) and id(tensor) not in elsewhere and tensor.requires_grad
    }
