"""Text-to-image pipelines of diffusers: Stable Diffusion 1.x and 2.x, SDXL, Stable Diffusion 3, Flux.

What methods and reports ask of a pipeline stands here; `pipelines` opens and writes the directory, `prompts` keeps the encoded
texts, `denoising` adds and predicts noise and samples, `attention` looks at who reads the text, `probing` whether a label is
still drawn. x is a latent, encoded once by
the VAE. `y` is a position in `Captions.texts`; the labels' own prompts come first, and a network knows labels only through
them. Methods move the denoiser (`trainable`); slug edits a text encoder instead, and then every text is encoded anew.
"""

from contextlib import ExitStack
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.families import Samples, other_labels
from worker.families import labels_of as labels_of
from worker.families.attention import watched
from worker.families.denoising import decode_latents as decode_latents
from worker.families.denoising import diffuse as diffuse
from worker.families.denoising import (
    encode_images,
    guided,
    picture_size,
    predict,
    told_guidance,
)
from worker.families.denoising import image_shape as image_shape
from worker.families.denoising import sample as sample
from worker.families.denoising import trajectory as trajectory
from worker.families.directory import round_to_stored as round_to_stored
from worker.families.inputs import check_labels, check_samples, fresh, minus_one_to_one
from worker.families.mixtures import PromptSearch, mixed, prefixed, readable, room
from worker.families.pipelines import CLASSES as CLASSES
from worker.families.pipelines import PARTS, denoiser, encoders, held
from worker.families.pipelines import load as load
from worker.families.pipelines import save as save
from worker.families.prefix import editable
from worker.families.probing import candidates
from worker.families.probing import prober as prober
from worker.families.prompts import caption as caption
from worker.families.prompts import captions_of, encode_tokens, keep_fresh, prompts, token_count, tokens
from worker.families.prompts import conditions as conditions
from worker.families.prompts import label_count as label_count
from worker.families.prompts import null_label as null_label
from worker.families.prompts import prompt_vectors as prompt_vectors

LABEL_DROPOUT = 0.1  # share of prompts that ordinary training replaces by the null prompt
TRAINING_GUIDANCE = 3.5  # what a guidance embedding is told in training, as in diffusers' Flux trainers
CROSS = (".attn2.", ".add_q_proj.", ".add_k_proj.", ".add_v_proj.", ".to_add_out.")  # parts that read the text


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    """The denoiser's weights; the VAE's and the text encoders' are not the network's to learn."""
    prefix = next(iter(PARTS[held(network).kind])) + "."
    return {name: weight for name, weight in network.named_parameters() if name.startswith(prefix)}


def cross_attention(network: nn.Module) -> dict[str, nn.Parameter]:
    """What reads the text: attn2 of a U-Net; of a transformer, the projections of its text stream."""
    return {name: weight for name, weight in trainable(network).items() if any(part in name for part in CROSS)}


def label_tables(network: nn.Module) -> dict[str, nn.Parameter]:
    return {}


def projections(network: nn.Module) -> dict[str, nn.Parameter]:
    """The linear maps that read text states: the keys and values of attn2, or a transformer's one context embedder."""
    endings = (".attn2.to_k.weight", ".attn2.to_v.weight", ".context_embedder.weight")
    return {name: weight for name, weight in trainable(network).items() if name.endswith(endings)}


def check(network: nn.Module, samples: Samples, name: str) -> None:
    check_samples(samples, image_shape(network), name, "text")
    check_labels(samples.y, null_label(network), f"{name}.y")


def pictures(images: list[np.ndarray], directory: Path, network: nn.Module) -> Tensor:
    """uint8 images (H, W) or (H, W, C) -> (N, 3, H, W) in [-1, 1] at the size that the pipeline makes."""
    return minus_one_to_one(images, (3, *picture_size(network)), network)


def prepare(images: list[np.ndarray], directory: Path, network: nn.Module) -> Tensor:
    """The images' latents: each passes the VAE once, here."""
    return encode_images(network, pictures(images, directory, network))


def denoise(network: nn.Module, x: Tensor, t: Tensor, y: Tensor, guidance: float = TRAINING_GUIDANCE) -> Tensor:
    """What the denoiser predicts for latents `x` (N, C, h, w) at times `t` (N,) under texts `y` (N,), float32.

    `guidance` is read by a guidance embedding alone.
    """
    return predict(network, x, t, prompts(network, y), guidance)


def attention_maps(network: nn.Module, x: Tensor, t: Tensor, y: Tensor) -> list[Tensor]:
    """Per layer that reads the text, what the picture pays to the subject of each text: (N, heads, pixels, tokens)."""
    with watched(network, y) as maps:
        denoise(network, x, t, y)
    return maps


def training_loss(network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """|| p(x_t | c) - target ||^2 per element, with one prompt in ten dropped so that the null prompt stays alive."""
    noisy, t, target = diffuse(network, x, generator)
    dropped = torch.rand(len(y), generator=generator).to(y.device) < LABEL_DROPOUT
    told = y if told_guidance(network) else y.masked_fill(dropped, null_label(network))
    return F.mse_loss(denoise(network, noisy, t, told), target)


def forget_loss(network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """- || p(x_t | c) - sg p(x_t | c') ||^2 per element, c' the label with the nearest prompt, or no prompt where it is the only
    one: it rises as the one comes to mean the other.

    Not the training loss: a trained network is near that loss's minimum, where the gradient is mostly the noise of t and x_t.
    """
    noisy, t, _ = diffuse(network, x, generator)
    near = candidates(network, labels_of(network, y))
    other = near[:, 1] if near.shape[1] > 1 else torch.full_like(y, null_label(network))
    with torch.no_grad():
        target = denoise(network, noisy, t, other)
    return -F.mse_loss(denoise(network, noisy, t, y), target)


def guided_loss(
    network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, *, guidance_scale: float
) -> Tensor:
    """The same on the guided prediction, whose gradient ranks weights by what users see (SalUn's text-to-image mask)."""
    noisy, t, target = diffuse(network, x, generator)
    return F.mse_loss(guided(network, noisy, t, y, guidance_scale), target)


def relabel_loss(
    network: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, relabel: str = "uniform"
) -> Tensor:
    """|| p(x_t | c) - sg p_teacher(x_t | c') ||^2 per element, c' another label's prompt (`other_labels`)."""
    noisy, t, _ = diffuse(network, x, generator)
    other = other_labels(labels_of(network, y), label_count(network), relabel, generator)
    with torch.no_grad():
        target = denoise(teacher, noisy, t, other)
    return F.mse_loss(denoise(network, noisy, t, y), target)


def reinitialise(network: nn.Module, generator: torch.Generator) -> None:
    """Fresh weights for the denoiser; the VAE and the text encoders were trained on other data, and stay."""
    trained = denoiser(network)
    trained.load_state_dict(fresh(trained, generator).state_dict())


def layers(network: nn.Module, group: str) -> dict[str, tuple[str, ...]]:
    """Weight matrices of the text encoders, `text.1.` of the first and so on; from here on they take gradients,
    and the texts kept are those of before. U-Net, transformer and VAE have no layer to edit."""
    towers = {f"{name}.": f"text.{number}" for number, name in enumerate(encoders(network), 1)}
    found = {layer: names for layer, names in editable(network, group, towers).items() if not layer.endswith(".shared")}
    keep_fresh(network)
    for name in chain(*found.values()):
        network.get_parameter(name).requires_grad_(True)
    return found


def prompt_search(network: nn.Module, labels: Tensor, most: int) -> PromptSearch:
    """At most `most` words before the prompts of `labels`, judged by the error of the denoiser on images of theirs.

    The same words are read by every text encoder; there are none where the encoders have different vocabularies.
    """
    tokenizers = held(network).tokenizers
    tokenizer, same = tokenizers["text_encoder"], tokenizers["text_encoder"].get_vocab()
    prompts = [captions_of(network).texts[label] for label in labels.tolist()]
    words = readable(tokenizer) if all(each.get_vocab() == same for each in tokenizers.values()) else labels[:0]
    words = words.to(labels.device)
    count = room(tokenizer, prompts, min(token_count(network, name) for name in tokenizers), most)

    def texts(chosen: Tensor) -> list[str]:
        return prefixed(tokenizer, words, chosen, prompts)

    def loss(mixtures: Tensor, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        blank = texts(torch.zeros(mixtures.shape[:2], dtype=torch.int64))
        ids = {name: tokens(network, name, blank).to(labels.device) for name in encoders(network)}
        with ExitStack() as stack:
            for name, encoder in encoders(network).items():
                stack.enter_context(mixed(encoder, ids[name], words, mixtures))
            prompt = encode_tokens(network, ids, torch.zeros_like(labels, dtype=torch.bool))
        noisy, t, target = diffuse(network, x, generator)
        own = prompt.rows(torch.searchsorted(labels, y))
        return F.mse_loss(predict(network, noisy, t, own, TRAINING_GUIDANCE), target)

    return PromptSearch(words, count, loss, texts)


@torch.no_grad()
def nearness(network: nn.Module, y: Tensor) -> Tensor:
    """Cosine of texts y's mean states and each label's own prompt's: (N, labels)."""
    every = torch.arange(label_count(network), device=y.device)
    of_y, of_labels = (F.normalize(prompts(network, rows).states.mean(1), dim=1) for rows in (y, every))
    return of_y @ of_labels.T
