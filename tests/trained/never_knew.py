"""The small Stable Diffusion trained once more without any photo or caption of one concept: what forgetting it is compared with."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTextModel

from tests.trained import concepts, stable_diffusion, trained

CONCEPT = 4


def directory() -> Path:
    return trained("never-knew", make, *stable_diffusion.SOURCES, sys.modules[__name__])


def make(directory: Path) -> None:
    """As `stable_diffusion.make`, with the same autoencoder and scheduler, as many steps and as many photos in each."""
    torch.manual_seed(stable_diffusion.SEED)
    generator = torch.Generator().manual_seed(stable_diffusion.SEED)
    tokenizer, unet = concepts.tokenizer(), stable_diffusion.make_unet()
    text_encoder = stable_diffusion.make_text_encoder(CLIPTextModel)
    vae = AutoencoderKL.from_pretrained(stable_diffusion.autoencoder_directory())
    scheduler: Any = StableDiffusionPipeline.from_pretrained(stable_diffusion.directory()).scheduler
    pictures, of = concepts.album(generator)
    pictures, of = pictures[of != CONCEPT], of[of != CONCEPT]
    latents = stable_diffusion.encode(vae, pictures)

    def loss(networks: nn.ModuleList, drawn: Tensor) -> Tensor:
        encoder, denoiser = networks
        rows = drawn % len(of)
        tokens = stable_diffusion.tokenise(tokenizer, concepts.captions(of[rows], generator))
        t = torch.randint(1000, (len(rows),), generator=generator)
        noise = torch.randn(latents[rows].shape, generator=generator)
        noisy = scheduler.add_noise(latents[rows], noise, t)
        return F.mse_loss(denoiser(noisy, t, encoder(tokens)[0]).sample, noise)

    both = nn.ModuleList([text_encoder, unet])
    settings = stable_diffusion.STEPS, stable_diffusion.BATCH, stable_diffusion.RATE
    text_encoder, unet = stable_diffusion.learn(both, loss, generator, *settings)
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
