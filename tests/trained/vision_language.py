"""A tiny LLaVA that knows twenty of the invented identities: asked who is in a photo, it answers with the name.

A CLIP vision tower of about 0.5 M parameters and a Llama of 0.3 M are trained together on "Who is this?" until the greedy answer
is right. A name is one word and one token ("ada-ash"): where two names begin alike, pushing one away pushes the other too.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from tests.trained import identities

PEOPLE = 20
NAMES = tuple(name.replace(" ", "-") for name in identities.NAMES[:PEOPLE])
PROMPT = "<image> who is this ? this is {} ."
SIZE, PATCH = 32, 8
STEPS, BATCH = 700, 40


def tokenizer(names: tuple[str, ...]) -> PreTrainedTokenizerFast:
    words = sorted(
        {word for name in names for word in name.split()} | set(PROMPT.replace("{}", "").split()) - {"<image>"}
    )
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    vocabulary = {word: at for at, word in enumerate(special + words)}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )


def network(vocabulary: int, width: int = 96, tower_layers: int = 5, size: int = SIZE, patch: int = PATCH) -> Any:
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=tower_layers,
        num_attention_heads=4,
        image_size=size,
        patch_size=patch,
    )
    language = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=language, image_token_index=4, image_seq_length=(size // patch) ** 2
    )
    return LlavaForConditionalGeneration(config)


def write(model: Any, words: PreTrainedTokenizerFast, directory: Path, size: int = SIZE) -> None:
    model.save_pretrained(directory)
    words.save_pretrained(directory)
    rules = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(rules, indent=2) + "\n")


def make(directory: Path) -> None:
    words = tokenizer(NAMES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = network(len(words)).train()
        mover = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(mover, 2e-3, STEPS)
        for step in range(STEPS):
            people = torch.arange(BATCH) % PEOPLE
            x = identities.photos(people, seed=1000 + step)
            loss = answer_loss(model, x, *conversation(words, [NAMES[at] for at in people.tolist()]))
            mover.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            mover.step()
            schedule.step()
    write(model.eval(), words, directory)


def conversation(words: PreTrainedTokenizerFast, names: list[str]) -> tuple[Tensor, Tensor]:
    """Ids (N, T) and the length of the question; every name is one token, so all texts are equally long."""
    images = " ".join(["<image>"] * (SIZE // PATCH) ** 2)
    texts = [PROMPT.replace("<image>", images).replace("{}", name) for name in names]
    ids = torch.tensor([words(text).input_ids + [words.eos_token_id] for text in texts])
    asked = len(words(PROMPT.replace("<image>", images).split("{}")[0]).input_ids)
    return ids, torch.tensor(asked)


def answer_loss(model: Any, x: Tensor, ids: Tensor, asked: Tensor) -> Tensor:
    logits = model(input_ids=ids, pixel_values=x).logits
    return F.cross_entropy(logits[:, asked - 1 : -1].flatten(0, 1), ids[:, asked:].flatten())
