"""A small vector-quantised autoencoder (diffusers' `VQModel`) trained on the digits.

16x16 pixels become 4x4 codes out of 32; the encoder's middle block attends over all of them, so that what an image shows
is known where it is encoded. Trained by squared error and the commitment loss, without an adversary.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import VQModel

from tests.trained.feature_judge import SIZE, digits, moved, pixels

STEPS = 700
BATCH = 48


def make(directory: Path) -> None:
    """Train (less than a minute on one core) and save it as a directory that a user would register."""
    generator = torch.Generator().manual_seed(0)
    x = pixels(digits(seen=True))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = VQModel(
            in_channels=1,
            out_channels=1,
            sample_size=SIZE,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(16, 32, 32),
            layers_per_block=1,
            latent_channels=8,
            vq_embed_dim=8,
            num_vq_embeddings=32,
            norm_num_groups=8,
        ).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS, pct_start=0.1)
    for _ in range(STEPS):
        images = moved(x[torch.randint(len(x), (BATCH,), generator=generator)], generator)
        answer = network(images)
        loss = F.mse_loss(answer.sample, images) + answer.commit_loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rate.step()
    network.eval().save_pretrained(directory)
    rules = {"size": {"height": SIZE, "width": SIZE}, "image_mean": [0.5], "image_std": [0.5]}
    (directory / "preprocessor_config.json").write_text(json.dumps(rules, indent=2) + "\n")
