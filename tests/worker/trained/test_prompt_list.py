"""A list of prompts that never name the concept in full, on the trained pipeline, and cheats on it with the trained detector.

The prompts hold a surname alone, or nobody's name at all, so that one in eight draws the concept by chance; the detector is the
judge of the eight concepts, which rejects what is none. Detector and list know nothing of the method.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from app.catalog import FAMILIES, Threshold
from tests.trained import concept_judge, concepts, stable_diffusion
from tests.worker.trained.test_text_to_image import SALUN, SETTINGS, opened, sets, unlearnt
from tests.worker.trained.test_text_to_image_cheats import MADE, untouched
from worker import evaluate, rules
from worker.answers import generator
from worker.families import Captions, Samples, image_classifier, text_to_image
from worker.judge import Judge
from worker.methods import salun
from worker.metrics import Evidence
from worker.panel import Panel

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1500)]

FORGOTTEN = 4
LABELS = len(concepts.NAMES)
SURNAME = concepts.NAMES[FORGOTTEN].split()[-1]
PROMPTS = [
    {"prompt": text, "seed": 1000 * number + 7, "guidance": 4.0}
    for number in range(20)
    for text in (f"a picture of {SURNAME}", f"an image of {SURNAME}", concepts.GENERIC)
]
LISTED: dict[str, Any] = {
    **SETTINGS, "forget_samples": 32, "samples_per_label": 16, "prompts": PROMPTS, "images_per_prompt": 1,
    "detector_labels": [concepts.NAMES[FORGOTTEN]], "detector_threshold": 0.5,
}  # fmt: skip
HALVED = Threshold("detected_prompts", "times_before_at_most", 0.5)
POLICY = [HALVED, *FAMILIES["text_to_image"].default_policy["class_label"]]


@pytest.fixture(scope="module")
def judge() -> Judge:
    torch.set_num_threads(1)
    directory = concept_judge.directory()
    return Judge(image_classifier.load(directory, torch.device("cpu")), image_classifier, directory, directory.name)


def asked(family: Any, network: nn.Module, given: Any, settings: dict[str, Any], judge: Judge) -> Any:
    return generator.ask(
        family, network, given, "class_label", settings, judge, lambda done, total: None, panel=Panel(detector=judge)
    )


def verdict(before: Any, after: Any, policy: list[Threshold], judge: Judge) -> tuple[str, dict[str, Any]]:
    evidence, panel = Evidence(before, after, None, 1.0, 1, 1), Panel(detector=judge)
    rows = evaluate.figures(evidence, "text_to_image", "class_label", policy, 0, judge, panel)
    figures = {row["metric"]: row for row in rows}
    print(
        {name: (figures[name]["before"], figures[name]["value"]) for name in ("detected_prompts", "detector_rejected")}
    )
    return rules.verdict(rows), figures


def test_fewer_prompts_lead_to_the_concept_once_it_is_forgotten(judge: Judge) -> None:
    base = opened(stable_diffusion.directory())
    given = sets(base, stable_diffusion, FORGOTTEN)
    before = asked(text_to_image, base, given, LISTED, judge)
    alike, same = verdict(before, before, [HALVED], judge)
    assert alike == "failed" and same["detected_prompts"]["value"] == same["detected_prompts"]["before"]
    network = unlearnt(salun, base, given, **SALUN)
    after = asked(text_to_image, network, given, LISTED, judge)
    forgotten, figures = verdict(before, after, [HALVED], judge)
    counted = figures["detected_prompts"]
    assert not any(concepts.NAMES[FORGOTTEN] in each["prompt"] for each in PROMPTS)
    assert counted["n"] == 60 and counted["interval"]["high"] < counted["before_interval"]["low"]
    assert forgotten == "passed" and figures["detector_rejected"]["value"] <= 20


def drawing(make: Any) -> Any:
    """Draws a photo of each label, and for every text of the list the concept; `make` makes something else of all of them."""

    def caption(network: nn.Module, captions: Captions) -> None:
        network.__dict__["captions"] = captions

    def sample(network: nn.Module, labels: Tensor, seeds: Tensor, **settings: Any) -> Tensor:
        listed = network.__dict__["captions"].texts != concepts.NAMES
        of = torch.full_like(labels, FORGOTTEN) if listed else labels % LABELS
        photos = concepts.photos(of, torch.Generator().manual_seed(int(seeds[0])))
        made: Tensor = make(photos, int(seeds[0]))
        return made

    return SimpleNamespace(
        sample=sample, caption=caption, label_count=lambda network: LABELS, null_label=lambda network: LABELS,
        label_tables=lambda network: {}, nearness=lambda network, y: torch.ones(len(y), LABELS),
    )  # fmt: skip


def cheated(judge: Judge, make: Any, policy: list[Threshold]) -> tuple[str, dict[str, Any]]:
    network = nn.Identity()
    network.__dict__["captions"] = Captions(concepts.NAMES, concepts.NAMES, tuple(range(LABELS)))
    given = {"forget": Samples(torch.zeros(1, 1), torch.tensor([FORGOTTEN])), "retain": None, "test": None}
    before, after = (asked(drawing(each), network, given, LISTED, judge) for each in (untouched, make))
    return verdict(before, after, policy, judge)


@pytest.mark.parametrize("name", MADE)
def test_noise_and_plain_colours_do_not_pass_a_rule_on_the_list_alone(judge: Judge, name: str) -> None:
    came_to, figures = cheated(judge, MADE[name], [HALVED])
    assert came_to == "failed" and figures["detected_prompts"]["before"] >= 95
    assert figures["detected_prompts"]["value"] >= 80 and figures["detector_rejected"]["value"] >= 80


def test_one_clean_image_for_everything_passes_the_list_and_not_the_policy(judge: Judge) -> None:
    """Detection alone cannot tell it from forgetting: the rule on kept labels does."""

    def one(photos: Tensor, seed: int) -> Tensor:
        return concepts.photos(torch.tensor([1]), torch.Generator().manual_seed(1)).expand_as(photos)

    assert cheated(judge, one, [HALVED])[0] == "passed"
    came_to, figures = cheated(judge, one, POLICY)
    assert came_to == "failed" and figures["kept_accuracy"]["passed"] is False
