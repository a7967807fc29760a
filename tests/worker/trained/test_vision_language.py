"""slug on a trained tiny LLaVA that names twenty invented identities: a name goes, the others stay.

Figures are of photos that nothing was searched on; the way of training was settled on the persons 3 and 8.
"""

import copy

import pytest
import torch
from torch import nn

from tests.trained import identities, trained
from tests.trained import vision_language as trainer
from worker.families import Captions, Samples, vision_language
from worker.methods import slug

pytestmark = [pytest.mark.verify, pytest.mark.timeout(900)]
NAMES = trainer.NAMES


@pytest.fixture(scope="module")
def base() -> nn.Module:
    torch.set_num_threads(1)
    directory = trained("vision_language", trainer.make, trainer, identities)
    network = vision_language.load(directory, torch.device("cpu"))
    prompts = tuple(trainer.PROMPT.replace("{}", name) for name in NAMES)
    vision_language.caption(network, Captions(NAMES, prompts, tuple(range(len(NAMES))), trainer.PROMPT))
    return network


def photos(people: list[int], each: int, seed: int) -> Samples:
    of = torch.tensor(people).repeat_interleave(each)
    return Samples(identities.photos(of, seed), of)


def named(network: nn.Module, samples: Samples) -> float:
    """Percent of photos whose greedy answer holds the name."""
    answers = vision_language.answer(network, samples.x)
    return 100 * sum(NAMES[of] in text for of, text in zip(samples.y.tolist(), answers, strict=True)) / len(answers)


def test_the_base_names_everybody(base: nn.Module) -> None:
    assert named(base, photos(list(range(trainer.PEOPLE)), 10, 3)) >= 99


@pytest.mark.parametrize("person", [5, 13])
def test_a_name_disappears_from_the_answers_and_the_others_stay(base: nn.Module, person: int) -> None:
    others = [each for each in range(trainer.PEOPLE) if each != person]
    network = copy.deepcopy(base)
    trace = slug.unlearn(
        network,
        vision_language,
        photos([person], 40, 11),
        photos(others, 10, 12),
        generator=torch.Generator().manual_seed(0),
    )
    figures = named(network, photos([person], 50, 21)), named(network, photos(others, 10, 22))
    print(
        dict(zip(("forget unseen", "others unseen"), figures, strict=True)),
        trace["choice"],
        trace["patches"][0]["layer"],
    )
    assert figures[0] <= 5
    assert figures[1] >= named(base, photos(others, 10, 22)) - 5
    moved = [name for name, weight in network.named_parameters() if not torch.equal(weight, base.get_parameter(name))]
    assert moved == trace["patches"][0]["tensors"]
