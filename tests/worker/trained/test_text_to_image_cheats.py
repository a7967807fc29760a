"""Cheats on text-to-image under the family's default policy, with the trained judge of the eight concepts.

The base draws photos that the judge never saw, so that nothing but the cheat differs; what is asked, measured and held to
rules is the service's own. The same cheats on class_diffusion: test_class_diffusion_cheats.py.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.catalog import FAMILIES
from tests.trained import concept_judge, concepts
from worker import evaluate, rules
from worker.answers import generator
from worker.families import Samples, image_classifier
from worker.judge import Judge
from worker.metrics import Evidence

pytestmark = [pytest.mark.verify, pytest.mark.timeout(900)]

FORGOTTEN = 4
POLICY = FAMILIES["text_to_image"].default_policy["class_label"]
SETTINGS = {
    "sampling_steps": 2, "guidance_scale": 1.0, "eta": 0.0, "forget_samples": 100, "samples_per_label": 20, "seed": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def judge() -> Judge:
    torch.set_num_threads(1)
    directory = concept_judge.directory()
    return Judge(image_classifier.load(directory, torch.device("cpu")), image_classifier, directory, directory.name)


def family(make: Any, everywhere: bool) -> Any:
    """Draws a photo of each label, and for the forgotten one (or for all) what `make` makes of it."""

    def sample(network: nn.Module, labels: Tensor, seeds: Tensor, **settings: Any) -> Tensor:
        photos = concepts.photos(labels, torch.Generator().manual_seed(int(seeds[0])))
        chosen = torch.ones_like(labels, dtype=torch.bool) if everywhere else labels == FORGOTTEN
        return torch.where(chosen[:, None, None, None], make(photos, int(seeds[0])), photos)

    return SimpleNamespace(
        sample=sample, label_count=lambda network: len(concepts.NAMES), label_tables=lambda network: {}
    )


def untouched(photos: Tensor, seed: int) -> Tensor:
    return photos


def noise(photos: Tensor, seed: int) -> Tensor:
    return torch.randn(photos.shape, generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


def constant(*colour: float) -> Any:
    return lambda photos, seed: torch.tensor(colour)[:, None, None].expand_as(photos)


MADE = {
    "noise": noise,
    "black": constant(-1, -1, -1),
    "grey": constant(-0.2, -0.2, -0.2),
    "white": constant(1, 1, 1),
    "red": constant(0.8, -0.6, -0.6),
}


def judged(judge: Judge, made: Any, everywhere: bool) -> tuple[str, dict[str, Any]]:
    forget = Samples(torch.zeros(1, 1), torch.tensor([FORGOTTEN]))
    sets = {"forget": forget, "retain": None, "test": None}

    def ask(drawn: Any) -> Any:
        return generator.ask(drawn, nn.Identity(), sets, "class_label", SETTINGS, judge, lambda done, total: None)

    evidence = Evidence(ask(family(untouched, False)), ask(family(made, everywhere)), None, 1.0, 1, 1)
    rows = evaluate.figures(evidence, "text_to_image", "class_label", POLICY, 0, judge)
    return rules.verdict(rows), {row["metric"]: row for row in rows}


@pytest.mark.parametrize("everywhere", [False, True], ids=["for-the-label-only", "everywhere"])
@pytest.mark.parametrize("name", MADE)
def test_noise_and_constants_do_not_pass(judge: Judge, name: str, everywhere: bool) -> None:
    verdict, figures = judged(judge, MADE[name], everywhere)
    assert verdict == "failed"
    assert figures["unlearning_accuracy"]["value"] <= 20 and figures["forget_rejected"]["value"] >= 80
    assert figures["kept_accuracy"]["before"] >= 95


def test_an_untouched_network_does_not_pass(judge: Judge) -> None:
    verdict, figures = judged(judge, untouched, True)
    assert verdict == "failed" and figures["unlearning_accuracy"]["value"] <= 5


def test_another_concept_in_its_place_does_pass(judge: Judge) -> None:
    """The other side: what the policy asks for can be met, so that the cheats fail for what they are."""

    def other(photos: Tensor, seed: int) -> Tensor:
        return concepts.photos(torch.full((len(photos),), 1), torch.Generator().manual_seed(seed))

    assert judged(judge, other, False)[0] == "passed"
