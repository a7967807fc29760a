"""A small inpainting diffusion network (diffusers' `UNet2DModel` with 2 * C + 1 input channels) trained on the digits.

Its input is the noisy image, clean where it is visible; the image with 0 where it is hidden; and the mask. Masks are random
boxes, a third of a side to all of it, so that a square hole in the middle is one of them. It predicts the image, and knows 100
noise levels, which is enough for 16x16 pixels.
"""

from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor

from tests.trained.feature_judge import SIZE, digits, moved, pixels

STEPS = 2500
BATCH = 32


def make(directory: Path) -> None:
    """Train (about two minutes on one core) and save it as a directory that a user would register."""
    generator = torch.Generator().manual_seed(0)
    x = pixels(digits(seen=True))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = UNet2DModel(
            sample_size=SIZE,
            in_channels=3,
            out_channels=1,
            block_out_channels=(24, 48),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=16,
        ).train()
    scheduler = DDIMScheduler(num_train_timesteps=100, beta_end=0.1, prediction_type="sample", clip_sample=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS, pct_start=0.1)
    for _ in range(STEPS):
        images = moved(x[torch.randint(len(x), (BATCH,), generator=generator)], generator)
        hidden = boxes(generator)
        noise = torch.randn(images.shape, generator=generator)
        t = torch.randint(scheduler.config["num_train_timesteps"], (BATCH,), generator=generator)
        noisy = torch.where(hidden, scheduler.add_noise(images, noise, t), images)
        given = torch.cat([noisy, images.masked_fill(hidden, 0.0), hidden.float()], dim=1)
        loss = (network(given, t).sample - images).square()[hidden].mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rate.step()
    network.eval().save_pretrained(directory)
    scheduler.save_pretrained(directory)


def boxes(generator: torch.Generator) -> Tensor:
    """A box per image, (BATCH, 1, SIZE, SIZE), bool: 6 to 16 pixels a side, anywhere."""
    sides = torch.randint(6, SIZE + 1, (2, BATCH, 1), generator=generator)
    starts = (torch.rand(2, BATCH, 1, generator=generator) * (SIZE - sides + 1)).long()
    place = torch.arange(SIZE)
    inside = (place >= starts) & (place < starts + sides)  # (2, BATCH, SIZE)
    return (inside[0][:, :, None] & inside[1][:, None, :]).unsqueeze(1)
