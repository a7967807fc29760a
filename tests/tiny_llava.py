"""A tiny LLaVA with fresh weights that knows the words of four invented names."""

from pathlib import Path

import torch

from tests.tiny_pipelines import NAMES
from tests.trained import vision_language as maker
from worker.families import Captions

SIZE, PATCH = 8, 4
NETWORKS = {"llava": "vision_language"}
CAPTIONS = Captions(
    NAMES, tuple(maker.PROMPT.replace("{}", name) for name in NAMES), tuple(range(len(NAMES))), maker.PROMPT
)


def write(directory: Path, seed: int = 0) -> Path:
    words = maker.tokenizer(NAMES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = maker.network(len(words), width=16, tower_layers=3, size=SIZE, patch=PATCH)
    maker.write(network, words, directory, SIZE)
    return directory
