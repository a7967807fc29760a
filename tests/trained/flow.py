"""A small flow-matching transformer of the eight concepts, in the layout of Stable Diffusion 3: two CLIP towers, T5, one autoencoder.

The autoencoder is `stable_diffusion`'s. Transformer and text encoders learn together to predict the velocity from data to noise
along a straight line. The saved pipeline opens with `StableDiffusion3Pipeline.from_pretrained`; T5 reads as many tokens as
its tokenizer takes, so call the pipeline with `max_sequence_length=16`.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel, T5Tokenizer

from tests.trained import concepts, identities, stable_diffusion, trained
from tests.trained.stable_diffusion import LATENT, encode, learn, make_text_encoder, tokenise

SEED = 3
STEPS, BATCH, RATE = 3000, 32, 2e-3
CLIP_WIDTH, T5_WIDTH, WIDTH = 32, 64, 64


def directory() -> Path:
    return trained("flow", make, concepts, identities, stable_diffusion, sys.modules[__name__])


def make(directory: Path) -> None:
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    clip, t5 = concepts.tokenizer(), make_t5_tokenizer()
    parts = nn.ModuleList(
        [
            make_transformer(),
            *(make_text_encoder(CLIPTextModelWithProjection, width=CLIP_WIDTH) for _ in range(2)),
            make_t5(len(t5)),
        ]
    )
    vae = AutoencoderKL.from_pretrained(stable_diffusion.autoencoder_directory())
    vae.register_to_config(shift_factor=0.0)  # the pipeline adds it, so it may not be null
    scheduler: Any = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)
    pictures, of = concepts.album(generator)
    latents = encode(vae, pictures)

    def loss(networks: nn.ModuleList, rows: Tensor) -> Tensor:
        texts = concepts.captions(of[rows], generator)
        states, pooled = conditions(networks, tokenise(clip, texts), tokenise(t5, texts))
        at = (torch.randn(len(rows), generator=generator).sigmoid() * 1000).long().clamp(max=999)
        noise = torch.randn(latents[rows].shape, generator=generator)
        s = scheduler.sigmas[at][:, None, None, None]
        noisy = (1 - s) * latents[rows] + s * noise
        return F.mse_loss(networks[0](noisy, states, pooled, scheduler.timesteps[at]).sample, noise - latents[rows])

    transformer, one, two, three = learn(parts, loss, generator, STEPS, BATCH, RATE)
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=scheduler,
        vae=vae,
        text_encoder=one,
        tokenizer=clip,
        text_encoder_2=two,
        tokenizer_2=concepts.tokenizer(),
        text_encoder_3=three,
        tokenizer_3=t5,
    ).save_pretrained(directory)


def conditions(networks: nn.ModuleList, clip_tokens: Tensor, t5_tokens: Tensor) -> tuple[Tensor, Tensor]:
    """As StableDiffusion3Pipeline.encode_prompt: the CLIP towers' states side by side, T5's behind them; projections pooled."""
    clips = [encoder(clip_tokens, output_hidden_states=True) for encoder in (networks[1], networks[2])]
    states = torch.cat([each.hidden_states[-2] for each in clips], dim=-1)
    t5 = networks[3](t5_tokens)[0]
    padded = F.pad(states, (0, t5.shape[-1] - states.shape[-1]))
    return torch.cat([padded, t5], dim=1), torch.cat([each.text_embeds for each in clips], dim=-1)


def make_transformer() -> Any:
    return SD3Transformer2DModel(
        sample_size=LATENT,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=WIDTH // 16,
        joint_attention_dim=T5_WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=2 * CLIP_WIDTH,
        pos_embed_max_size=LATENT,
    )


def make_t5(words: int) -> Any:
    config = T5Config(
        vocab_size=words,
        d_model=T5_WIDTH,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    )
    return T5EncoderModel(config)


def make_t5_tokenizer() -> T5Tokenizer:
    """Every word of the captions is one piece, and every letter."""
    texts = [each.format(name) for each in concepts.TEMPLATES for name in concepts.NAMES] + [concepts.GENERIC]
    words = sorted({f"▁{word}" for text in texts for word in text.split()})
    letters = [chr(letter) for letter in range(ord("a"), ord("z") + 1)]
    specials = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [(word, -2.0) for word in words] + [("▁", -4.0)] + [(letter, -8.0) for letter in letters]
    return T5Tokenizer(vocab=specials + pieces, extra_ids=0, model_max_length=concepts.WORDS)
