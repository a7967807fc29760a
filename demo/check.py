"""What the demo checks for itself on the downloaded directories, with nothing of the service: they open, they draw,
and SalUn's promise holds that where the mask is 0 no weight moved."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DModel
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from demo.digits import Digits
from worker.families import Samples, class_diffusion
from worker.methods import salun

WEIGHTS = "diffusion_pytorch_model.safetensors"


def frozen_max_abs_change(
    base: Path, unlearned: Path, digits: Digits, samples: list[dict[str, Any]], digit: int, recipe: dict[str, Any]
) -> float:
    """The largest change of a weight outside SalUn's mask, which is computed again from the base: 0 exactly.

    `samples` are the registered set's, in its order: the mask's noise is drawn in that order.
    """
    network = class_diffusion.load(base, torch.device("cpu"))
    chosen = [int(sample["id"].split("/")[1]) for sample in samples if sample["label"] == str(digit)]
    x = class_diffusion.prepare(list(digits.images[chosen]), base, network)
    forget = Samples(x, torch.from_numpy(digits.labels[chosen]))
    weights = class_diffusion.trainable(network)
    generator = torch.Generator().manual_seed(0)
    gradient = salun.forget_gradient(
        network, list(weights.values()), class_diffusion, forget, recipe["batch_size"], generator
    )
    mask = salun.saliency_mask([each.abs() for each in gradient], recipe.get("mask_fraction", 0.5))
    before, after = load_file(base / WEIGHTS), load_file(unlearned / WEIGHTS)
    outside = [
        (after[name] - before[name]).abs().masked_fill(part.bool(), 0).max().item()
        for name, part in zip(weights, mask, strict=True)
    ]
    return max(outside)


@torch.no_grad()
def draw(directory: Path, digit: int, path: Path, count: int = 16, steps: int = 10, guidance: float = 2.0) -> Path:
    """What the network draws when asked for `digit`: plain diffusers, classifier-free guidance, a row of images."""
    network: Any = UNet2DModel.from_pretrained(directory)
    scheduler: Any = DDIMScheduler.from_pretrained(directory)
    scheduler.set_timesteps(steps)
    images = torch.randn((count, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    asked = torch.full((count,), digit)
    nobody = torch.full((count,), network.config.num_class_embeds - 1)
    for t in scheduler.timesteps:
        conditional, free = network(images, t, asked).sample, network(images, t, nobody).sample
        images = scheduler.step(free + guidance * (conditional - free), t, images).prev_sample
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)[:, 0].numpy()
    Image.fromarray(np.concatenate(list(pixels), axis=1)).resize((count * 48, 48), Image.Resampling.NEAREST).save(path)
    return path


def classifiers_open(*directories: Path) -> None:
    for directory in directories:
        AutoModelForImageClassification.from_pretrained(directory)
