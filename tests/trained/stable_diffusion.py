"""A small Stable Diffusion of eight concepts: the layout of the real ones, trained on a CPU in a few minutes.

An autoencoder takes 32x32 pixels to 8x8 latents; text encoder and U-Net learn together, from captions, to predict the noise
of those latents. What is saved opens with `StableDiffusionPipeline.from_pretrained`.
"""

import copy
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from tests.trained import concepts, identities, trained

SEED = 1
LATENT, TEXT_WIDTH = 8, 64
AUTOENCODER_STEPS, AUTOENCODER_BATCH, AUTOENCODER_RATE = 1200, 16, 4e-3
STEPS, BATCH, RATE, EMA = 3500, 32, 2e-3, 0.998


def autoencoder_directory() -> Path:
    return trained("text-to-image-autoencoder", make_autoencoder, *SOURCES)


def directory() -> Path:
    return trained("stable-diffusion", make, *SOURCES)


def make_autoencoder(directory: Path) -> None:
    """Trained on photos of strangers, so that it knows no concept; the saved scale gives latents of spread 1."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=concepts.SIZE,
    )
    pictures = concepts.strangers(2048, generator)
    mover = torch.optim.AdamW(network.parameters(), AUTOENCODER_RATE, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.OneCycleLR(mover, AUTOENCODER_RATE, total_steps=AUTOENCODER_STEPS)
    for _ in range(AUTOENCODER_STEPS):
        x = pictures[torch.randint(len(pictures), (AUTOENCODER_BATCH,), generator=generator)]
        latents = network.encode(x).latent_dist
        decoded = network.decode(latents.sample(generator)).sample
        loss = F.mse_loss(decoded, x) + 1e-4 * latents.kl().mean() / LATENT**2
        step(mover, rate, network.parameters(), loss)
    with torch.no_grad():
        spread = network.eval().encode(pictures[:512]).latent_dist.mode().std()
    network.register_to_config(scaling_factor=round(1 / float(spread), 4))
    network.save_pretrained(directory)


def make(directory: Path) -> None:
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    tokenizer, text_encoder, unet = concepts.tokenizer(), make_text_encoder(CLIPTextModel), make_unet()
    vae = AutoencoderKL.from_pretrained(autoencoder_directory())
    scheduler: Any = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pictures, of = concepts.album(generator)
    latents = encode(vae, pictures)

    def loss(networks: nn.ModuleList, rows: Tensor) -> Tensor:
        encoder, denoiser = networks
        tokens = tokenise(tokenizer, concepts.captions(of[rows], generator))
        t = torch.randint(1000, (len(rows),), generator=generator)
        noise = torch.randn(latents[rows].shape, generator=generator)
        noisy = scheduler.add_noise(latents[rows], noise, t)
        return F.mse_loss(denoiser(noisy, t, encoder(tokens)[0]).sample, noise)

    text_encoder, unet = learn(nn.ModuleList([text_encoder, unet]), loss, generator, STEPS, BATCH, RATE)
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(directory)


def make_text_encoder(network: Any, width: int = TEXT_WIDTH) -> Any:
    """CLIP's text tower, small: three layers."""
    words = concepts.tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=concepts.WORDS,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return network(config)


def make_unet() -> Any:
    return UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=TEXT_WIDTH,
    )


def tokenise(tokenizer: Any, texts: list[str]) -> Tensor:
    tokens: Tensor = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return tokens


@torch.no_grad()
def encode(vae: Any, pictures: Tensor) -> Tensor:
    parts = [vae.encode(part).latent_dist.mode() for part in pictures.split(256)]
    return torch.cat(parts) * vae.config.scaling_factor


def learn(
    networks: nn.ModuleList,
    loss: Callable[[nn.ModuleList, Tensor], Tensor],
    generator: torch.Generator,
    steps: int,
    batch: int,
    peak: float,
) -> nn.ModuleList:
    """Train in place; returns the running mean of the weights."""
    mean = copy.deepcopy(networks)
    mover = torch.optim.AdamW(networks.parameters(), peak, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(mover, peak, total_steps=steps, pct_start=0.1)
    for done in range(1, steps + 1):
        rows = torch.randint(concepts.PHOTOS, (batch,), generator=generator)
        step(mover, rate, networks.parameters(), loss(networks, rows))
        with torch.no_grad():
            kept, now = list(mean.parameters()), list(networks.parameters())
            torch._foreach_lerp_(kept, now, 1 - min(EMA, done / (9 + done)))
    return mean.eval()


def step(mover: torch.optim.Optimizer, rate: Any, weights: Iterable[nn.Parameter], loss: Tensor) -> None:
    mover.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(weights, 1.0)
    mover.step()
    rate.step()


SOURCES = (concepts, identities, sys.modules[__name__])
