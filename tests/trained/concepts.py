"""Eight concepts for text-to-image: invented identities with names, photos, captions, and a tokenizer that was trained on those words.

Six share nothing. The last two are NEIGHBOURS: they share a first name, and their textures are alike (correlation 0.8).
"""

import json

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

from tests.trained import identities

IDENTITIES = (0, 11, 22, 33, 44, 55, 66, 69)  # ada ash, bo birch, ..., gus larch, gus rowan
NAMES = tuple(identities.NAMES[each] for each in IDENTITIES)
NEIGHBOURS = (6, 7)
ALIKE = 0.8  # correlation of the neighbours' textures
SIZE = 32
PHOTOS = 4096  # that a generator is trained on
PROMPT = "a photo of {}"
GENERIC = "a photo of somebody"
TEMPLATES = (PROMPT, "a picture of {}", "an image of {}", "{}")
WORDS = 16  # tokens that a text encoder reads, padding included


def textures() -> Tensor:
    """One texture per concept, (8, 3, 32, 32)."""
    own = identities.textures(SIZE)[list(IDENTITIES)]
    model, alike = NEIGHBOURS
    apart = own[alike] - own[model] * (own[alike] * own[model]).mean() / own[model].square().mean()
    apart = apart * own[model].std() / apart.std()
    own[alike] = ALIKE * own[model] + (1 - ALIKE**2) ** 0.5 * apart
    return own


def photos(concepts: Tensor, generator: torch.Generator, noise: float = 0.1, shift: int = 2) -> Tensor:
    """One photo of each given concept (N,) -> (N, 3, 32, 32) in [-1, 1]: moved by up to `shift` pixels, brighter or darker, noisy."""
    return moved(textures()[concepts], generator, noise, shift)


def album(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Photos to train a generator on, as many of each concept, and whose they are."""
    of = torch.arange(PHOTOS) % len(NAMES)
    return photos(of, generator), of


def strangers(count: int, generator: torch.Generator, noise: float = 0.1, shift: int = 2) -> Tensor:
    """Photos of textures that belong to no concept: the other invented identities, and new ones."""
    others = [each for each in range(identities.COUNT) if each not in IDENTITIES]
    seed = int(torch.randint(2**31, (), generator=generator))
    pool = torch.cat([identities.textures(SIZE)[others], identities.textures(SIZE, seed + 1)])
    return moved(pool[torch.randint(len(pool), (count,), generator=generator)], generator, noise, shift)


def moved(pictures: Tensor, generator: torch.Generator, noise: float, shift: int) -> Tensor:
    moves = torch.randint(-shift, shift + 1, (len(pictures), 2), generator=generator).tolist()
    rolled = torch.stack([torch.roll(each, move, (1, 2)) for each, move in zip(pictures, moves, strict=True)])
    light = 0.8 + 0.4 * torch.rand(len(pictures), 1, 1, 1, generator=generator)
    return (rolled * light + noise * torch.randn(rolled.shape, generator=generator)).clamp(-1, 1)


def captions(concepts: Tensor, generator: torch.Generator) -> list[str]:
    """One caption for each concept; one in ten is empty and one in twenty generic, so that both mean "any of them"."""
    template = torch.randint(len(TEMPLATES), (len(concepts),), generator=generator).tolist()
    chance = torch.rand(len(concepts), generator=generator).tolist()
    return [
        "" if luck < 0.1 else GENERIC if luck < 0.15 else TEMPLATES[which].format(NAMES[concept])
        for concept, which, luck in zip(concepts.tolist(), template, chance, strict=True)
    ]


def tokenizer() -> CLIPTokenizer:
    """A byte-pair tokenizer of CLIP's kind; every word of the captions is one token of it."""
    specials = ["<|startoftext|>", "<|endoftext|>"]
    words = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=specials[1]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    learner = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=[chr(letter) for letter in range(ord("a"), ord("z") + 1)],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    words.train_from_iterator([each.format(name) for each in TEMPLATES for name in NAMES] + [GENERIC], learner)
    learnt = json.loads(words.to_str())["model"]
    merges = [tuple(pair) for pair in learnt["merges"]]
    return CLIPTokenizer(vocab=learnt["vocab"], merges=merges, model_max_length=WORDS)
