"""Where a text-to-image denoiser looks: the attention that picture tokens pay to the tokens which name a text's subject.

Two kinds of layers read a text. In a U-Net's `attn2` the picture asks and the text answers. In a transformer's joint attention
both streams lie in one sequence, so that what is paid to the text is its share of the whole row; Flux turns queries and keys by
their places first. Flux's single-stream blocks, where the two are one stream, are not looked at. Maps are computed from a
layer's inputs as the network runs, so they have a gradient, and the network's own attention stays as it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn

from worker.families.pipelines import denoiser
from worker.families.prompts import captions_of, prompts, stretches, token_count


@contextmanager
def watched(network: nn.Module, y: Tensor) -> Iterator[list[Tensor]]:
    """While the network runs on texts `y` (N,), collects a map per layer: (N, heads, pixels, tokens), 0 off the subject."""
    maps: list[Tensor] = []
    subject = subject_tokens(network, y)[:, None, None, :]

    def look(layer: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        picture = inputs[0] if inputs else named["hidden_states"]
        paid = attention(layer, picture, named["encoder_hidden_states"], named.get("image_rotary_emb"))
        maps.append(paid * subject.to(paid))

    hooks = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in readers(network)]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def readers(network: nn.Module) -> list[nn.Module]:
    """The layers that read the text."""
    whole = denoiser(network)
    if isinstance(whole, UNet2DConditionModel):
        return [layer for name, layer in whole.named_modules() if name.endswith("attn2")]
    return [layer for layer in whole.modules() if getattr(layer, "add_k_proj", None) is not None]


def attention(layer: Any, picture: Tensor, text: Tensor, places: Any) -> Tensor:
    """What each picture token pays to each text token: (N, heads, pixels, tokens), a share of the row."""

    def by_head(vectors: Tensor) -> Tensor:
        return vectors.unflatten(-1, (layer.heads, -1))  # (N, tokens, heads, d)

    joint = getattr(layer, "add_k_proj", None) is not None
    query = normed(layer, "norm_q", by_head(layer.to_q(picture)))
    if joint:
        answers = normed(layer, "norm_added_k", by_head(layer.add_k_proj(text)))
        key = torch.cat([answers, normed(layer, "norm_k", by_head(layer.to_k(picture)))], dim=1)
    else:
        key = by_head(layer.to_k(text))
    if places is not None:  # of the whole sequence, text first
        turn: Any = apply_rotary_emb
        query = turn(query, tuple(each[text.shape[1] :] for each in places), sequence_dim=1)
        key = turn(key, places, sequence_dim=1)
    scores = torch.einsum("nphd,nthd->nhpt", query, key).float() * query.shape[-1] ** -0.5
    return scores.softmax(dim=-1)[..., : text.shape[1]]


def normed(layer: Any, name: str, vectors: Tensor) -> Tensor:
    norm = getattr(layer, name, None)
    return vectors if norm is None else norm(vectors)


def subject_tokens(network: nn.Module, y: Tensor) -> Tensor:
    """Which tokens of texts `y` name the label that the text speaks of, or end the text: (N, tokens), bool.

    A text encoder that reads from left to right gathers all that it read in the end-of-text token.
    """
    rows, back = y.unique(return_inverse=True)
    mask = torch.zeros(len(rows), prompts(network, rows[:1]).states.shape[1], dtype=torch.bool)
    for at, row in enumerate(rows.tolist()):
        for encoder, start in stretches(network):
            mask[at, [start + each for each in named_tokens(network, encoder, row)]] = True
    return mask.to(y.device)[back]


def named_tokens(network: nn.Module, encoder: str, row: int) -> list[int]:
    """Positions of the label's name where the text says it last, and of the end-of-text token."""
    captions, longest = captions_of(network), token_count(network, encoder)
    text = captions.texts[row] if row < len(captions.texts) else ""
    name = captions.names[captions.labels[row]] if row < len(captions.texts) else ""
    tokenizers: Any = network.tokenizers
    tokenizer = tokenizers[encoder]

    def length(part: str) -> int:
        """Tokens of a text up to its end-of-text token, that one left out."""
        return len(tokenizer(part, truncation=True, max_length=longest).input_ids) - 1

    found = text.rfind(name)
    end = length(text)
    if found < 0 or not name:
        return [end]
    return [*range(min(length(text[:found].rstrip()), end), min(length(text[: found + len(name)]), end)), end]
