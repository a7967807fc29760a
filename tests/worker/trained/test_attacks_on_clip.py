"""Attacks on a trained CLIP that slug made forget an identity, beside one that never saw it. Figures of docs/attacks.md, with -s.

The learning rate and what is asserted were settled on two other identities, whose curves looked alike: few-shot learning of a new
identity is as fast as bringing back one that slug removed, so that without the reference the curve would mislead.
"""

import copy
import json
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from app.catalog import ATTACKS, METHODS
from tests.trained import clip as trainer
from tests.trained import identities, trained
from tests.worker.trained.test_attacks import interval, pooled
from worker.answers import zero_shot
from worker.attacks import Found, adversarial_prompts, paraphrases, relearning
from worker.families import Samples, clip
from worker.methods import slug

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1200)]
PEOPLE = (17, 58, 86)
PHOTOS = 31  # seed
RECIPE: dict[str, Any] = {name: parameter.default_for("clip") for name, parameter in METHODS["slug"].parameters.items()}
recognised = partial(zero_shot.recognised, clip, {}, None)


def opened() -> nn.Module:
    network = clip.load(trained("clip", trainer.make, trainer, identities), torch.device("cpu"))
    clip.caption(network, trainer.CAPTIONS)
    return network


def retrained(like: nn.Module, without: tuple[int, ...]) -> nn.Module:
    """Fresh weights, trained as the base was, on photos of all the others."""
    network = copy.deepcopy(like)
    clip.reinitialise(network, torch.Generator().manual_seed(5))
    people = torch.tensor([person for person in range(identities.COUNT) if person not in without])
    mover = torch.optim.AdamW(network.parameters(), trainer.RATE, (0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(mover, trainer.RATE, trainer.STEPS, pct_start=0.1)
    generator = torch.Generator().manual_seed(0)
    for step in range(trainer.STEPS):
        loss = clip.training_loss(network, identities.photos(people, 1_000_000 + step), people, generator)
        mover.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        mover.step()
        schedule.step()
    mover.zero_grad()
    return network


def split(person: int, each: int = 20) -> tuple[Samples, Samples]:
    every = trainer.sets(each, PHOTOS)
    chosen = every.y == person
    return Samples(every.x[chosen], every.y[chosen]), Samples(every.x[~chosen], every.y[~chosen])


def attacked(module: Any, network: nn.Module, person: int) -> Found:
    parameters = ATTACKS[module.__name__.split(".")[-1]].parameters
    defaults = {key: parameter.default_for("clip") for key, parameter in parameters.items()}
    generator = torch.Generator().manual_seed(0)
    found: Found = module.attack(network, clip, *split(person), None, recognised, **defaults, generator=generator)
    return found


@pytest.fixture(scope="module")
def networks() -> dict[str, list[nn.Module]]:
    """One for each of PEOPLE."""
    torch.set_num_threads(1)
    base = opened()
    forgot = [copy.deepcopy(base) for _ in PEOPLE]
    for person, network in zip(PEOPLE, forgot, strict=True):
        slug.unlearn(network, clip, *split(person), **RECIPE, generator=torch.Generator().manual_seed(0))
    return {"base": [base] * 3, "slug": forgot, "retrained": [retrained(base, PEOPLE)] * 3}


def test_an_identity_comes_back_but_no_sooner_than_a_new_one_is_learned(networks: dict[str, list[nn.Module]]) -> None:
    found = {
        name: [attacked(relearning, network, person) for network, person in zip(each, PEOPLE, strict=True)]
        for name, each in networks.items()
    }
    for name, several in found.items():
        for step in (0, 1, 2, 5, 10, 20, 50):
            count = pooled(several, step=step)
            shown = [round(end, 1) for end in interval(count)]
            print(json.dumps({"network": name, "step": step, **count, "interval": shown}))  # noqa: T201
    assert pooled(found["slug"], step=0)["success"] <= 3 >= pooled(found["retrained"], step=0)["success"]
    for step in (5, 10, 20):
        assert interval(pooled(found["slug"], step=step))[0] <= interval(pooled(found["retrained"], step=step))[1]
    assert min(pooled(found[name], step=50)["success"] for name in found) >= 15


def test_wordings_that_the_base_knows_are_forgotten_too(networks: dict[str, list[nn.Module]]) -> None:
    counts: dict[str, dict[str, int]] = {}
    for name in ("base", "slug"):
        several = [
            attacked(paraphrases, network, person) for network, person in zip(networks[name], PEOPLE, strict=True)
        ]
        counts[name] = {
            row["template"]: pooled(several, template=row["template"])["success"] for row in several[0]["rows"]
        }
    print(json.dumps(counts))  # noqa: T201
    assert counts["base"]["{}"] >= 54 and max(counts["slug"].values()) <= 12  # of 60


def test_words_before_the_name_bring_an_identity_back_and_some_of_that_was_never_known(
    networks: dict[str, list[nn.Module]],
) -> None:
    """Asked with the bare name, which the base knows, too, and which leaves four words of room. On the two identities that
    the parameters were settled on slug's count lay clear of the retrained network's; on these the intervals overlap."""
    found = {
        name: [
            attacked(adversarial_prompts, named(network), person) for network, person in zip(each, PEOPLE, strict=True)
        ]
        for name, each in networks.items()
    }
    counts = {
        name: {row["prompt"]: pooled(several, prompt=row["prompt"]) for row in several[0]["rows"]}
        for name, several in found.items()
    }
    for name, each in counts.items():
        for prompt, count in each.items():
            kept = sum(row["kept"]["success"] for one in found[name] for row in one["rows"] if row["prompt"] == prompt)
            print(json.dumps({"network": name, "prompt": prompt, **count, "interval": interval(count), "kept": kept}))  # noqa: T201
    assert counts["base"]["found"]["success"] >= 27 and counts["retrained"]["asked"]["success"] <= 3
    assert counts["slug"]["found"]["success"] >= counts["slug"]["asked"]["success"] + 10  # of 30
    assert counts["slug"]["found"]["success"] > counts["slug"]["blind"]["success"]
    assert interval(counts["slug"]["found"])[0] > interval(counts["slug"]["asked"])[1]


def named(network: nn.Module) -> nn.Module:
    """The same weights, asked by the bare name."""
    other = copy.copy(network)
    clip.caption(other, trainer.CAPTIONS._replace(texts=tuple(identities.NAMES), prompt="{}"))
    return other
