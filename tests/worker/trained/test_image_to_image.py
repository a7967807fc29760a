"""Networks that restore digits forget two of them: encoder MSE on a trained autoencoder of each kind, real and proxy retain set.

The recipes were tuned on the digits of TUNED and are verified on others; with proxies, 8 and 9 had shown that a first
recipe of the VQ autoencoder was too weak. Kept digits are measured on images that the
network was trained on (retain) and on unseen ones (test). With a proxy retain set the method sees neither, but other
unseen digits. `python -m tests.worker.trained.test_image_to_image <family> <digits> <method> <real|proxy>` prints every
figure of one run.
"""

import copy
import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from app.catalog import FAMILIES
from tests.trained import feature_judge, inpainting_diffusion, masked_autoencoder, trained, vq_autoencoder
from worker import by_name
from worker.answers import reconstruction
from worker.evaluate import count_changes, figures
from worker.families import Samples, image_classifier
from worker.judge import Judge, as_pictures
from worker.metrics import Evidence, ReconstructionAnswers
from worker.rules import verdict

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1800)]

TUNED = ((0, 6), (3, 7))
VERIFIED = ((1, 4), (2, 5))
BASELINES = ("max_loss", "noisy_label", "retain_label", "random_encoder")
MAKERS: Mapping[str, ModuleType] = {
    "masked_autoencoder": masked_autoencoder,
    "vq_autoencoder": vq_autoencoder,
    "inpainting_diffusion": inpainting_diffusion,
}
ASKED: Mapping[str, Mapping[str, Any]] = {  # what is hidden when a network is measured, and while it forgets
    "masked_autoencoder": {"pattern": "random", "hidden_share": 0.5},
    "vq_autoencoder": {"pattern": "none", "hidden_share": 0.5},
    "inpainting_diffusion": {"pattern": "centre_8", "hidden_share": 0.5},
}
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "masked_autoencoder": {"alpha": 1.0, "learning_rate": 2e-3, "epochs": 60},
    "vq_autoencoder": {"alpha": 0.1, "learning_rate": 2e-3, "epochs": 60},
    "inpainting_diffusion": {"alpha": 0.3, "learning_rate": 1e-3, "epochs": 60},
}
WITH_PROXIES: Mapping[str, Mapping[str, Any]] = {"vq_autoencoder": {"alpha": 0.05, "epochs": 40}}  # instead
MOVED_COPIES = {"masked_autoencoder": 3, "vq_autoencoder": 11, "inpainting_diffusion": 3}  # of each proxy


NOT_REACHED = {
    "inpainting_diffusion": "its first tensors cannot tell digits apart, and suffice to fill the hole: see the method's page"
}
REACHED = [name for name in MAKERS if name not in NOT_REACHED]
CASES = [(name, forgotten, proxy) for name in REACHED for forgotten in VERIFIED for proxy in (False, True)]
OPEN = [
    pytest.param(name, VERIFIED[0], False, marks=pytest.mark.xfail(reason=why, strict=True))
    for name, why in NOT_REACHED.items()
]


BETTER = {  # than encoder MSE, by these figures: see its page
    ("vq_autoencoder", "noisy_label"),
    ("vq_autoencoder", "retain_label"),
    ("vq_autoencoder", "random_encoder"),
    ("masked_autoencoder", "noisy_label"),
    ("masked_autoencoder", "retain_label"),
}


@dataclass(frozen=True)
class Outcome:
    """The default policy's verdict and every figure: value, the base's, n, and whether its rule was met."""

    verdict: str
    figures: dict[str, dict[str, Any]]
    after: ReconstructionAnswers
    outside: bool  # whether every weight outside the encoder is the base's

    def times(self, name: str) -> float:
        row = self.figures[name]
        return float(row["value"] / row["before"])


@functools.cache
def judge() -> Judge:
    directory = trained("feature_judge", feature_judge.make, feature_judge)
    return Judge(image_classifier.load(directory, torch.device("cpu")), image_classifier, directory, "feature judge")


@functools.cache
def base(name: str) -> nn.Module:
    directory = trained(name, MAKERS[name].make, MAKERS[name], feature_judge)
    network: nn.Module = by_name.family(name).load(directory, torch.device("cpu"))
    return network


def samples(name: str, digits: feature_judge.Sets) -> Samples:
    directory = trained(name, MAKERS[name].make, MAKERS[name], feature_judge)
    x = by_name.family(name).prepare(list(digits.images), directory, base(name))
    return Samples(x, torch.from_numpy(digits.labels))


def kept(forgotten: tuple[int, ...]) -> tuple[feature_judge.Sets, feature_judge.Sets, feature_judge.Sets]:
    """Images of the other classes: those that the network was trained on, the unseen ones to measure on, the proxies."""
    others = tuple(label for label in range(feature_judge.CLASSES) if label not in forgotten)
    unseen = feature_judge.digits(seen=False).of(others)
    halves = [feature_judge.Sets(unseen.images[part::2], unseen.labels[part::2]) for part in (0, 1)]
    return feature_judge.digits(seen=True).of(others), halves[0], halves[1]


def proxies(digits: feature_judge.Sets, moved_copies: int) -> feature_judge.Sets:
    """The images and so many moved copies of each, since they are few."""
    generator = torch.Generator().manual_seed(0)
    x = feature_judge.pixels(digits)
    copies = [x, *(feature_judge.moved(x, generator, 1) for _ in range(moved_copies))]
    return feature_judge.Sets(as_pictures(torch.cat(copies)), np.tile(digits.labels, len(copies)))


@functools.cache
def asked_of_base(name: str, forgotten: tuple[int, ...]) -> ReconstructionAnswers:
    return ask(name, base(name), forgotten)


def ask(name: str, network: nn.Module, forgotten: tuple[int, ...]) -> ReconstructionAnswers:
    retain, test, _ = kept(forgotten)
    forget = feature_judge.digits(seen=True).of(forgotten)
    sets = {key: samples(name, each) for key, each in (("forget", forget), ("retain", retain), ("test", test))}
    settings = {"seed": 0, "images_per_set": 1000, "sampling_steps": 10, **ASKED[name]}
    family = by_name.family(name)
    return reconstruction.ask(family, network, sets, "class_label", settings, judge(), lambda done, total: None)


@functools.cache
def outcome(name: str, forgotten: tuple[int, ...], method: str = "encoder_mse", proxy: bool = False) -> Outcome:
    """What a method makes of the base, with the family's recipe and seed 0."""
    family, network = by_name.family(name), copy.deepcopy(base(name))
    retain, _, others = kept(forgotten)
    recipe = {**RECIPES[name], **(WITH_PROXIES.get(name, {}) if proxy else {})}
    by_name.method(method).unlearn(
        network,
        family,
        samples(name, feature_judge.digits(seen=True).of(forgotten)),
        samples(name, proxies(others, MOVED_COPIES[name]) if proxy else retain),
        generator=torch.Generator().manual_seed(0),
        **{"warm_up_epochs": 1, "weight_decay": 0.0, **ASKED[name], **recipe},
    )
    before, after = asked_of_base(name, forgotten), ask(name, network, forgotten)
    changed, total = count_changes(base(name), network)
    rules = FAMILIES[name].default_policy["class_label"]
    rows = figures(Evidence(before, after, None, 1.0, changed, total), name, "class_label", rules, 0, judge())
    theirs, encoder = base(name).state_dict(), family.encoder(network)
    outside = all(torch.equal(own, theirs[key]) for key, own in network.state_dict().items() if key not in encoder)
    return Outcome(verdict(rows), {row["metric"]: row for row in rows}, after, outside)


def shown(reached: Outcome) -> str:
    rows = {key: row for key, row in reached.figures.items() if None not in (row["value"], row["before"])}
    return "  ".join(f"{key} {row['value']:.4g} (base {row['before']:.4g})" for key, row in rows.items())


@pytest.mark.parametrize(("name", "forgotten", "proxy"), CASES + OPEN)
def test_encoder_mse_forgets_two_digits_and_keeps_the_others(
    name: str, forgotten: tuple[int, ...], proxy: bool
) -> None:
    reached = outcome(name, forgotten, proxy=proxy)
    print(f"\n{name} {forgotten} proxy {proxy}: {shown(reached)}")
    assert reached.times("reconstruction_distance_forget") >= 3
    assert reached.figures["mutual_information_to_noise"]["value"] <= 25
    assert reached.times("reconstruction_distance_retain") <= 1.1
    assert reached.times("reconstruction_distance_test") <= 1.1
    assert reached.verdict == "passed"
    assert reached.outside
    for key in ("forget", "retain", "test"):
        assert len(reached.after.features[key]) >= 5 * feature_judge.FEATURES
    assert 50 < reached.figures["separability"]["value"] <= 100


@pytest.mark.parametrize("name", MAKERS)
def test_the_base_itself_does_not_pass(name: str) -> None:
    before = asked_of_base(name, VERIFIED[0])
    rules = FAMILIES[name].default_policy["class_label"]
    rows = figures(Evidence(before, before, None, 1.0, 0, 1), name, "class_label", rules, 0, judge())
    assert verdict(rows) == "failed"


@pytest.mark.parametrize("method", BASELINES)
@pytest.mark.parametrize("name", REACHED)
def test_no_baseline_but_the_documented_ones_forgets_as_much_and_keeps_as_much(name: str, method: str) -> None:
    """With the recipe of encoder MSE, a baseline misses a rule, or leaves more information, or keeps less."""
    ours, theirs = outcome(name, VERIFIED[0]), outcome(name, VERIFIED[0], method)
    print(f"\n{name} {method}: {theirs.verdict}: {shown(theirs)}")
    left = [each.figures["mutual_information_to_noise"]["value"] for each in (ours, theirs)]
    worse = [
        max(each.times(f"reconstruction_distance_{kept_set}") for kept_set in ("retain", "test"))
        for each in (ours, theirs)
    ]
    better = theirs.verdict == "passed" and left[1] <= left[0] and worse[1] <= worse[0]
    assert better == ((name, method) in BETTER)


if __name__ == "__main__":
    torch.set_num_threads(1)
    of_family, of_digits, by_method, of_kept = sys.argv[1:]
    run = outcome(of_family, tuple(int(digit) for digit in of_digits), by_method, of_kept == "proxy")
    print(*sys.argv[1:], run.verdict, shown(run))
