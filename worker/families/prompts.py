"""Prompts of a pipeline: texts are tokenised and encoded once, and kept for as long as the text encoders stay as they are.

What a denoiser is conditioned on, by pipeline (diffusers' `encode_prompt`, which would log a text that it cuts off):

    Stable Diffusion   states: the CLIP encoder's last, normed
    SDXL               states: the next to last of two CLIP encoders, side by side; pooled: the second's projection
    SD3                states: those of two CLIP encoders side by side, padded, and T5's behind them; pooled: both projections
    Flux               states: T5's; pooled: CLIP's end-of-text state

A text's position is its row; the row after the last is the null prompt, empty, which SDXL may replace by zeros.
Rows are encoded anew whenever a text encoder's weights have changed, and with a graph while they take gradients.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worker.families import Captions
from worker.families.pipelines import FLUX, SD, SD3, SDXL, encoders, held

T5_TOKENS = {SD3: 256, FLUX: 512}  # the pipelines' own; fewer where the tokenizer takes fewer
BATCH = 64  # prompts encoded at once


class Encoded(NamedTuple):
    states: Tensor  # (n, tokens, d)
    pooled: Tensor  # (n, p); p = 0 where the denoiser takes none

    def rows(self, at: Tensor) -> "Encoded":
        return Encoded(self.states[at], self.pooled[at])


@dataclass
class Kept:
    """Every text's encoding by these weights. A copy of the network shares it until one of the two changes its weights."""

    weights: list[nn.Parameter]
    versions: list[int]
    encoded: Encoded

    def fresh(self) -> bool:
        return all(weight._version == version for weight, version in zip(self.weights, self.versions, strict=True))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Kept":
        weights = copy.deepcopy(self.weights, memo)
        stale = [-1] * len(weights)
        return Kept(weights, [weight._version for weight in weights] if self.fresh() else stale, self.encoded)


def caption(network: nn.Module, captions: Captions) -> None:
    """Take over the texts of a job: tokenise and encode them, and the null prompt behind them."""
    device = next(network.parameters()).device
    network.__dict__["captions"] = captions
    network.__dict__["tokens"] = {
        name: tokens(network, name, [*captions.texts, ""]).to(device) for name in encoders(network)
    }
    network.__dict__["kept"] = keep(network)


def tokens(network: nn.Module, encoder: str, texts: list[str]) -> Tensor:
    tokenizer: Any = held(network).tokenizers[encoder]
    longest = token_count(network, encoder)
    ids: Tensor = tokenizer(
        texts, padding="max_length", max_length=longest, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def token_count(network: nn.Module, encoder: str) -> int:
    """How many tokens a prompt has, padded, in one encoder; SD3 and Flux cut every CLIP at the first one's length."""
    tokenizers, kind = held(network).tokenizers, held(network).kind
    if is_t5(network, encoder):
        return min(T5_TOKENS[kind], int(tokenizers[encoder].model_max_length))
    return int(tokenizers["text_encoder" if kind in (SD3, FLUX) else encoder].model_max_length)


def is_t5(network: nn.Module, encoder: str) -> bool:
    return (held(network).kind, encoder) in ((SD3, "text_encoder_3"), (FLUX, "text_encoder_2"))


def prompts(network: nn.Module, y: Tensor) -> Encoded:
    """The encodings of texts y (N,): with a graph while a text encoder takes gradients, else those that are kept."""
    if any(weight.requires_grad for weight in encoder_weights(network)):
        rows, back = y.unique(return_inverse=True)
        return encode(network, rows).rows(back)
    keep_fresh(network)
    return kept_prompts(network, y)


def keep_fresh(network: nn.Module) -> None:
    if not held(network).kept.fresh():
        network.__dict__["kept"] = keep(network)


def kept_prompts(network: nn.Module, y: Tensor) -> Encoded:
    """The encodings of texts y as they were before a text encoder began to take gradients, or to move."""
    encoded: Encoded = held(network).kept.encoded
    return encoded.rows(y)


def keep(network: nn.Module) -> Kept:
    weights = list(encoder_weights(network))
    rows = torch.arange(len(captions_of(network).texts) + 1, device=weights[0].device)
    with torch.no_grad():
        parts = [encode(network, part) for part in rows.split(BATCH)]
    encoded = Encoded(torch.cat([part.states for part in parts]), torch.cat([part.pooled for part in parts]))
    return Kept(weights, [weight._version for weight in weights], encoded)


def conditions(network: nn.Module) -> list[Tensor]:
    """All that the denoiser reads of each text, as tensors of this network's own: row y is text y's, the last the null
    prompt's. Who moves them changes what is drawn under a text, as long as the text encoders stay as they are."""
    keep_fresh(network)
    kept: Kept = held(network).kept
    own = Encoded(*(part.clone() for part in kept.encoded))
    network.__dict__["kept"] = Kept(kept.weights, kept.versions, own)
    return [part for part in own if part.numel() > 0]


def encoder_weights(network: nn.Module) -> Iterator[nn.Parameter]:
    for encoder in encoders(network).values():
        yield from encoder.parameters()


def captions_of(network: nn.Module) -> Captions:
    return held(network).captions


def encode(network: nn.Module, rows: Tensor) -> Encoded:
    """The encodings of the texts in these rows, by the text encoders as they are now."""
    ids = {name: held(network).tokens[name][rows] for name in encoders(network)}
    return encode_tokens(network, ids, rows == len(captions_of(network).texts))


def encode_tokens(network: nn.Module, ids: Mapping[str, Tensor], null: Tensor) -> Encoded:
    """The encodings of token ids (n, length) per text encoder; `null` (n,): which are those of the null prompt."""
    parts = encoders(network)
    if held(network).kind == SD:
        states = parts["text_encoder"](ids["text_encoder"])[0]
        return Encoded(states, states[:, 0, :0])
    if held(network).kind == FLUX:
        pooled = parts["text_encoder"](ids["text_encoder"]).pooler_output
        return Encoded(parts["text_encoder_2"](ids["text_encoder_2"])[0], pooled)
    clips = [
        parts[name](ids[name], output_hidden_states=True)
        for name in ("text_encoder", "text_encoder_2")
        if name in parts
    ]
    states = torch.cat([clip.hidden_states[-2] for clip in clips], dim=-1)
    if held(network).kind == SDXL:
        zeros = null & held(network).force_zeros
        return Encoded(states.masked_fill(zeros[:, None, None], 0), clips[1][0].masked_fill(zeros[:, None], 0))
    pooled = torch.cat([clip[0] for clip in clips], dim=-1)
    return Encoded(torch.cat(behind(network, states, parts, ids), dim=1), pooled)


def behind(
    network: nn.Module, clip: Tensor, parts: Mapping[str, nn.Module], ids: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """SD3's two stretches of tokens, equally wide: CLIP's, padded with zeros, and T5's, zeros where there is no T5."""
    config: Any = network.get_submodule("transformer").config
    if "text_encoder_3" in parts:
        t5 = parts["text_encoder_3"](ids["text_encoder_3"])[0]
    else:
        t5 = clip.new_zeros(len(clip), T5_TOKENS[SD3], config.joint_attention_dim)
    return F.pad(clip, (0, t5.shape[-1] - clip.shape[-1])), t5


def label_count(network: nn.Module) -> int:
    return len(captions_of(network).names)


def null_label(network: nn.Module) -> int:
    """The row of the null prompt, whatever the number of texts."""
    return len(captions_of(network).texts)


def prompt_vectors(network: nn.Module, y: Tensor) -> Tensor:
    """What the denoiser's projections read of each prompt's last subject token, (k, d); SD3: CLIP's rows, then T5's."""
    captions, states = captions_of(network), prompts(network, y).states
    vectors = []
    for encoder, start in stretches(network):
        at = [start + last_subject(network, encoder, captions, row) for row in y.tolist()]
        vectors.append(states[torch.arange(len(y)), at])
    return torch.cat(vectors)


def stretches(network: nn.Module) -> tuple[tuple[str, int], ...]:
    """Whose tokens the states hold, and from where on; encoders side by side share their tokens."""
    if held(network).kind == FLUX:
        return (("text_encoder_2", 0),)
    if "text_encoder_3" in encoders(network):
        return (("text_encoder", 0), ("text_encoder_3", token_count(network, "text_encoder")))
    return (("text_encoder", 0),)


def last_subject(network: nn.Module, encoder: str, captions: Captions, row: int) -> int:
    """Where, among its tokens, a text's label is named for the last time; its last token where it is not; the end-of-text
    token of the null prompt."""
    text = captions.texts[row] if row < len(captions.texts) else ""
    name = captions.names[captions.labels[row]] if row < len(captions.texts) else ""
    found = text.lower().rfind(name.lower())
    tokenizer: Any = held(network).tokenizers[encoder]
    longest = token_count(network, encoder)
    ids = tokenizer(text[: found + len(name)] if found >= 0 else text, truncation=True, max_length=longest).input_ids
    return len(ids) - (2 if len(ids) > tokenizer.num_special_tokens_to_add() else 1)
