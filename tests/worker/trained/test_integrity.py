"""What integrity sees and a Frechet distance does not: two ways to forget the same concept on the trained Stable Diffusion, with
and without the term that holds other prompts to the base.

Steps, rate and what may move were chosen on concept 2 and other seeds (of twelve settings, one that forgets with and without
the term); the bounds were written before concept 7 was measured.
"""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.trained import concept_judge, concepts, stable_diffusion
from worker.answers import generator
from worker.families import Captions, Samples, image_classifier, text_to_image
from worker.judge import Judge
from worker.methods import overwrite
from worker.metrics import Evidence, GeneratorAnswers, fid, integrity, unlearning_accuracy

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1800)]

COUNT = len(concepts.NAMES)
EACH = 48  # images per concept
RECIPE = {"steps": 100, "batch_size": 8, "learning_rate": 5e-4, "overwrite_with": "next", "train": "cross_attention"}
ASKED = {"prompt": concepts.PROMPT, "sampling_steps": 10, "guidance_scale": 2.0, "eta": 0.0}
ASKED |= {"forget_samples": EACH, "samples_per_label": EACH}


@pytest.fixture(scope="module")
def base() -> nn.Module:
    network = text_to_image.load(stable_diffusion.directory(), torch.device("cpu"))
    prompts = tuple(concepts.PROMPT.format(name) for name in concepts.NAMES)
    text_to_image.caption(network, Captions(concepts.NAMES, prompts, tuple(range(COUNT))))
    return network


@pytest.fixture(scope="module")
def judge() -> Judge:
    directory = concept_judge.directory()
    network = image_classifier.load(directory, torch.device("cpu"))
    return Judge(network, image_classifier, directory, "concept judge", concepts.NAMES)


def photos(each: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    of = torch.arange(each * COUNT) % COUNT
    return concepts.photos(of, torch.Generator().manual_seed(seed)), of


def asked(network: nn.Module, judge: Judge, gone: Samples, seed: int) -> GeneratorAnswers:
    sets = {"forget": gone, "retain": None, "test": Samples(*photos(64, seed + 1))}
    settings = {**ASKED, "seed": seed}
    return generator.ask(text_to_image, network, sets, "class_label", settings, judge, lambda done, total: None)


@pytest.mark.parametrize(("concept", "seed"), [(4, 900), (7, 1700)])
def test_integrity_tells_with_from_without_the_help_term_while_the_frechet_distance_hardly_moves(
    base: nn.Module, judge: Judge, concept: int, seed: int
) -> None:
    x, of = photos(16, seed)
    latents, gone = text_to_image.encode_images(base, x), of == concept
    forget, retain = Samples(latents[gone], of[gone]), Samples(latents[~gone], of[~gone])
    before, redrawn = asked(base, judge, forget, seed), asked(base, judge, forget, seed + 5)
    found: dict[str, Any] = {}
    for name, beta in (("with", 5.0), ("without", 0.0)):
        network = copy.deepcopy(base)
        given = torch.Generator().manual_seed(seed)
        overwrite.unlearn(network, text_to_image, forget, retain, **RECIPE, beta=beta, generator=given)
        after = asked(network, judge, forget, seed)
        evidence = Evidence(before, after, None, 0.0, 0, 1)
        found[name] = {
            each.__name__: each.measure(after, evidence)[0] for each in (unlearning_accuracy, fid, integrity)
        }
    distances = [fid.measure(each, Evidence(before, each, None, 0.0, 0, 1))[0] for each in (before, redrawn)]
    print({"concept": concept, "fid of the base, two seeds": distances, **found})  # noqa: T201
    metric = {name: {key.rpartition(".")[2]: value for key, value in each.items()} for name, each in found.items()}
    chance = abs(distances[0] - distances[1])  # how far another seed of the same network moves the distance
    assert min(each["unlearning_accuracy"] for each in metric.values()) >= 75
    assert abs(metric["without"]["fid"] - metric["with"]["fid"]) <= chance
    assert metric["without"]["integrity"] >= 3 * metric["with"]["integrity"] > 0
