"""Tiny real networks and image sets: built from a config, seeded, and saved as ordinary Hugging Face directories.

Small enough that a method runs in well under a second, and of the classes that users register.
"""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel, UNet2DModel
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from tests import tiny_clip, tiny_image_to_image, tiny_llava, tiny_pipelines
from worker.families import (
    Samples,
    class_diffusion,
    clip,
    image_classifier,
    inpainting_diffusion,
    masked_autoencoder,
    text_to_image,
    vision_language,
    vq_autoencoder,
)

LABELS = 4
SIZE = 8
NETWORKS = {
    "unet": "class_diffusion",
    "dit": "class_diffusion",
    "resnet": "image_classifier",
    "vit": "image_classifier",
    **tiny_image_to_image.NETWORKS,
    **tiny_clip.NETWORKS,
    **tiny_llava.NETWORKS,
}
PIPELINES = dict.fromkeys(("sd", "sd_v", "sdxl", "sd3", "flux"), "text_to_image")  # directories of several networks
EVERY = NETWORKS | PIPELINES
FAMILIES: dict[str, ModuleType] = {
    "class_diffusion": class_diffusion,
    "clip": clip,
    "image_classifier": image_classifier,
    "masked_autoencoder": masked_autoencoder,
    "vq_autoencoder": vq_autoencoder,
    "inpainting_diffusion": inpainting_diffusion,
    "text_to_image": text_to_image,
    "vision_language": vision_language,
}


def write(name: str, directory: Path, seed: int = 0, labels: int = LABELS, reject_below: float = 0.0) -> Path:
    """Save the tiny network `name` with fresh weights; the directory is like one that a user registers. With `reject_below`
    it may judge."""
    if name in tiny_clip.NETWORKS:
        return tiny_clip.write(name, directory, seed)
    if name in tiny_llava.NETWORKS:
        return tiny_llava.write(directory, seed)
    if name in PIPELINES:
        return tiny_pipelines.write_pipeline(name, directory, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = BUILDERS[name](labels) if name in BUILDERS else tiny_image_to_image.BUILDERS[name]()
        network.save_pretrained(directory)
    if NETWORKS[name] in ("class_diffusion", "inpainting_diffusion"):
        DDIMScheduler(num_train_timesteps=100, beta_end=0.1).save_pretrained(directory)
        (directory / "scheduler_config.json").chmod(0o644)
    elif NETWORKS[name] in ("image_classifier", "masked_autoencoder"):
        rules = {"size": {"height": SIZE, "width": SIZE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (directory / "preprocessor_config.json").write_text(json.dumps(rules, indent=2) + "\n")
    if reject_below:
        config = json.loads((directory / "config.json").read_text()) | {"reject_below": reject_below}
        (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return directory


def opened(name: str, directory: Path, seed: int = 0) -> torch.nn.Module:
    """The tiny network as a job has it: written, loaded, and told its captions if it knows words."""
    family = FAMILIES[EVERY[name]]
    network: torch.nn.Module = family.load(write(name, directory, seed), torch.device("cpu"))
    tell(name, network)
    return network


def tell(name: str, network: torch.nn.Module) -> None:
    """Give a network that knows words the captions of a job."""
    family = FAMILIES[EVERY[name]]
    if hasattr(family, "caption"):
        family.caption(network, tiny_llava.CAPTIONS if name in tiny_llava.NETWORKS else tiny_pipelines.CAPTIONS)


def unet(labels: int) -> Any:
    return UNet2DModel(
        sample_size=SIZE,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        num_class_embeds=labels + 1,
    )


def dit(labels: int) -> Any:
    """Two output channels for one in: the second is a learned variance, as in the published DiT."""
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=1,
        out_channels=2,
        num_layers=1,
        sample_size=SIZE,
        patch_size=2,
        num_embeds_ada_norm=labels,
    )


def resnet(labels: int) -> Any:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=labels)
    return ResNetForImageClassification(config)


def vit(labels: int) -> Any:
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=SIZE,
        patch_size=4,
        num_labels=labels,
    )
    return ViTForImageClassification(config)


BUILDERS = {"unet": unet, "dit": dit, "resnet": resnet, "vit": vit}


def samples(network: torch.nn.Module, family: ModuleType, count: int, seed: int = 0) -> Samples:
    """Images that differ by label (a bright quarter each) under noise, so that there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(LABELS, (count,), generator=generator)
    images = torch.randn((count, *family.image_shape(network)), generator=generator) * 0.3 - 0.5
    half = SIZE // 2
    for image, label in zip(images, labels.tolist(), strict=True):
        top, left = label // 2 * half, label % 2 * half
        image[:, top : top + half, left : left + half] += 1.0
    return Samples(images.clamp(-1, 1), labels)
