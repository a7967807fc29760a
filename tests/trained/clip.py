"""A CLIP of about 3.6 M parameters that knows the hundred invented identities by name.

Trained with the family's own symmetric InfoNCE on photos and captions "a photo of <name>", in about 100 seconds on one
core. The tokenizer is CLIP's, with one token for each word of the captions.
"""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel

from tests.tiny_pipelines import clip_tokenizer
from tests.trained import identities
from worker.families import Captions, Samples, clip

PROMPT = "a photo of {}"
SIZE, STEPS, RATE = 32, 180, 5e-4
TOKENS = 8  # of a caption, padded
CAPTIONS = Captions(
    identities.NAMES,
    tuple(PROMPT.replace("{}", name) for name in identities.NAMES),
    tuple(range(identities.COUNT)),
    PROMPT,
)


def write_preprocessor(directory: Path, size: int) -> None:
    """As CLIP's, with the means and spreads that take 0..255 to -1..1."""
    rules = {
        "crop_size": {"height": size, "width": size},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": size},
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(rules, indent=2) + "\n")


def make(directory: Path) -> None:
    """Fill `directory` with a trained network, as a user would register it."""
    tokenizer = clip_tokenizer(("a", "photo", "of", *identities.FIRST, *identities.LAST), TOKENS)
    tokenizer.save_pretrained(directory)
    write_preprocessor(directory, SIZE)
    untrained(tokenizer).save_pretrained(directory)
    network = clip.load(directory, torch.device("cpu"))
    clip.caption(network, CAPTIONS)
    train(network)
    clip.save(network, directory / "trained", directory)
    (directory / "trained" / clip.WEIGHTS).replace(directory / clip.WEIGHTS)
    for path in (directory / "trained").iterdir():
        path.unlink()
    (directory / "trained").rmdir()


def untrained(tokenizer: Any) -> CLIPModel:
    common = {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 4, "num_hidden_layers": 4}
    vision = {"image_size": SIZE, "patch_size": 8}
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CLIPModel(CLIPConfig(text_config=common | text, vision_config=common | vision, projection_dim=128))


def train(network: torch.nn.Module, seed: int = 0) -> None:
    """Every step sees one new photo of each identity."""
    mover = torch.optim.AdamW(network.parameters(), RATE, (0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(mover, RATE, STEPS, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    people = torch.arange(identities.COUNT)
    for step in range(STEPS):
        loss = clip.training_loss(network, identities.photos(people, 1_000_000 * (seed + 1) + step), people, generator)
        mover.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        mover.step()
        schedule.step()
    mover.zero_grad()


def sets(each: int, seed: int) -> Samples:
    """`each` photos of every identity, in the network's input range; y is the identity."""
    people = torch.arange(identities.COUNT).repeat_interleave(each)
    return Samples(identities.photos(people, seed), people)
