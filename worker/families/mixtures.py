"""Words that stand before the labels' prompts while somebody searches for them, as mixtures that can be differentiated.

Only tokens are mixed that are read again as they are written, alone or in a row: whole words. What a search finds among
them is therefore a text, and that text is what a network is asked with in the end.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]


class PromptSearch(NamedTuple):
    """What a family tells somebody who searches for words to put before the prompts of some labels, in their order."""

    words: Tensor  # (V,), ids of the tokens that may be chosen; empty where the text encoders read different ones
    tokens: int  # how many of them fit before the longest of the prompts
    loss: (
        Loss  # of mixtures (labels, tokens, V), images and their labels: it falls as the prompts come to fit the images
    )
    texts: Callable[[Tensor], list[str]]  # of positions in `words`, (labels, tokens): the prompts behind these words


def readable(tokenizer: Any) -> Tensor:
    """Ids of the tokens that alone make a text which is read as that one token."""
    special = set(tokenizer.all_special_ids)
    ids = [each for each in range(len(tokenizer)) if each not in special]
    read = tokenizer(spelled(tokenizer, ids), add_special_tokens=False).input_ids
    return torch.tensor([each for each, back in zip(ids, read, strict=True) if back == [each]], dtype=torch.int64)


def spelled(tokenizer: Any, ids: list[int]) -> list[str]:
    """The tokens without the marks of a word's beginning or end. Not by `decode`, which a copied tokenizer has forgotten."""
    return [token.removesuffix("</w>").removeprefix("▁") for token in tokenizer.convert_ids_to_tokens(ids)]


def prefixed(tokenizer: Any, words: Tensor, chosen: Tensor, prompts: Sequence[str]) -> list[str]:
    """Each prompt behind its own chosen words, (prompts, tokens) positions in `words`."""
    rows = words.cpu()[chosen.cpu()].tolist()
    return [" ".join([*spelled(tokenizer, row), prompt]) for row, prompt in zip(rows, prompts, strict=True)]


def room(tokenizer: Any, prompts: Sequence[str], longest: int, most: int) -> int:
    """How many words, at most `most`, fit before every one of the prompts."""
    return max(0, min(most, longest - max(len(ids) for ids in tokenizer(list(prompts)).input_ids)))


@contextmanager
def mixed(encoder: nn.Module, ids: Tensor, words: Tensor, mixtures: Tensor) -> Iterator[None]:
    """Within the block the encoder reads, where `ids` (k, length) begin with the first of `words` as often as there are
    tokens, the mixtures (k, tokens, V) of the words' embeddings instead."""
    inside: Any = encoder
    embedding = inside.get_input_embeddings()
    start = int((ids[0] == words[0]).nonzero()[0])
    place = slice(start, start + mixtures.shape[1])

    def replace(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        instead = mixtures @ embedding.weight.detach()[words]
        return torch.cat([output[:, : place.start], instead.to(output.dtype), output[:, place.stop :]], dim=1)

    hook = embedding.register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()
