"""A small masked autoencoder (`ViTMAEForPreTraining`) trained on the digits.

Patches of 2x2 pixels on 16x16 images: an 8x8 grid. Masks hide 15 to 60 % of it, half of them scattered
patches and half of them whole regions, so that the network can fill a square hole as well as single patches.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from tests.trained.feature_judge import SIZE, digits, moved, pixels

PATCH = 2
GRID = SIZE // PATCH
STEPS = 1600
BATCH = 48


def make(directory: Path) -> None:
    """Train (about two minutes on one core) and save it as a directory that a user would register."""
    generator = torch.Generator().manual_seed(0)
    x = pixels(digits(seen=True))
    config = ViTMAEConfig(
        image_size=SIZE,
        patch_size=PATCH,
        num_channels=1,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=4,
        decoder_intermediate_size=64,
        initializer_range=0.1,
        norm_pix_loss=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = ViTMAEForPreTraining(config).train()
    for table in (network.vit.embeddings.position_embeddings, network.decoder.decoder_pos_embed):
        table.data.copy_(positions(table.shape[-1]))  # transformers 5.23 leaves a fresh network's at 0
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS, pct_start=0.1)
    for _ in range(STEPS):
        rows = torch.randint(len(x), (BATCH,), generator=generator)
        hidden = 0.15 + 0.45 * float(torch.rand((), generator=generator))
        for part in (network.config, network.vit.config, network.vit.embeddings.config):
            part.mask_ratio = hidden
        loss = network(moved(x[rows], generator, 1), noise=order(generator)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rate.step()
    network.config.mask_ratio = 0.5
    network.eval().save_pretrained(directory)
    rules = {"size": {"height": SIZE, "width": SIZE}, "image_mean": [0.5], "image_std": [0.5]}
    (directory / "preprocessor_config.json").write_text(json.dumps(rules, indent=2) + "\n")


def positions(width: int) -> Tensor:
    """The fixed sines and cosines of a patch's column and row, a row of zeros first: (1 + GRID * GRID, width)."""
    rates = 10_000.0 ** (-torch.arange(width // 4) / (width // 4))
    row, column = torch.arange(GRID * GRID) // GRID, torch.arange(GRID * GRID) % GRID
    parts = [wave(axis[:, None] * rates) for axis in (column, row) for wave in (torch.sin, torch.cos)]
    return torch.cat([torch.zeros(1, width), torch.cat(parts, dim=1)])


def order(generator: torch.Generator) -> Tensor:
    """Per patch a number, (BATCH, GRID * GRID); the patches with the largest are hidden. Smooth for half of the batch."""
    scattered = torch.rand(BATCH, GRID * GRID, generator=generator)
    coarse = torch.rand(BATCH, 1, 3, 3, generator=generator)
    regions = F.interpolate(coarse, (GRID, GRID), mode="bicubic", align_corners=True).flatten(1)
    return torch.where(torch.rand(BATCH, 1, generator=generator) < 0.5, scattered, regions)
