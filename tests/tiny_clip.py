"""Tiny networks of two towers, images and texts, with a tokenizer made on the spot; their labels are four invented names."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from tests.tiny_pipelines import CAPTIONS, TOKENS, clip_tokenizer

SIZE = 8
NETWORKS = {"clip": "clip", "siglip": "clip"}


def write(name: str, directory: Path, seed: int = 0) -> Path:
    """Save the tiny network `name` with fresh weights, its tokenizer and the rules for its images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BUILDERS[name]().save_pretrained(directory)
    clip_tokenizer().save_pretrained(directory)
    rules = {
        "crop_size": {"height": SIZE, "width": SIZE},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"shortest_edge": SIZE} if name == "clip" else {"height": SIZE, "width": SIZE},
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(rules, indent=2) + "\n")
    return directory


def configs() -> dict[str, dict[str, Any]]:
    tokenizer = clip_tokenizer()
    common = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TOKENS,
        "projection_dim": 16,
        "projection_size": 16,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return {"text_config": common | text, "vision_config": common | {"image_size": SIZE, "patch_size": 4}}


def clip() -> CLIPModel:
    return CLIPModel(CLIPConfig(**configs(), projection_dim=16))


def siglip() -> SiglipModel:
    return SiglipModel(SiglipConfig(**configs()))


BUILDERS = {"clip": clip, "siglip": siglip}
__all__ = ["BUILDERS", "CAPTIONS", "NETWORKS", "write"]
