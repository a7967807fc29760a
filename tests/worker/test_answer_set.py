"""Answer sets: the same images whatever is forgotten, reused bit for bit, and never a set that is another's or broken."""

import base64
import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from app.privacy.sealing import new_data_key, seal
from app.report import Report
from app.storage import LocalBlobs
from tests import tiny
from tests.app.test_report import beyond_the_schema
from tests.worker.test_evaluate import CPU, GENERATOR_RULES, SETTINGS, sets_of
from tests.worker.test_text_answers import open_judge
from worker import answer_set, evaluate
from worker.answer_set import EMPTY_PROMPT, AnswerSet
from worker.answers import generator
from worker.families import Captions, Samples, class_diffusion, image_classifier, text_to_image
from worker.load import Material

ASKED = {label: 6 if label == 1 else 2 for label in range(tiny.LABELS)}  # where label 1 is forgotten


@dataclass(frozen=True)
class Scene:
    """A base, a network that moved away from it, and a judge; the sets' places as a supervisor names them."""

    material: Material
    network: torch.nn.Module
    blobs: LocalBlobs
    places: dict[str, dict[str, str]]

    def specification(self, **settings: Any) -> dict[str, Any]:
        return {
            "kind": "class_label",
            "evaluation": {**SETTINGS, **settings},
            "policy": {"class_label": [vars(rule) for rule in GENERATOR_RULES]},
            "base": {"family": "class_diffusion"},
            "labels": [str(label) for label in range(tiny.LABELS)],
            "answers": self.places,
        }

    def evaluate(self, label: int = 1, **settings: Any) -> evaluate.Report:
        """One job: with what is kept of the base, and keeping what was added (as when its version misses the policy)."""
        specification, sets = self.specification(**settings), sets_of(self.material.base.network, label)
        material = replace(self.material, **sets)
        kept = answer_set.open_sets(specification, material, self.blobs)
        told: list[tuple[int, int]] = []
        made = evaluate.evaluate(
            specification, material, self.network, None, 1.0, lambda done, total: told.append((done, total)), kept
        )
        assert told == sorted(told) and told[-1][0] == told[-1][1]
        assert beyond_the_schema(Report.model_validate_json(json.dumps(made.document))) == []
        for side, path in answer_set.seal_sets(specification, material, kept, "version", passed=False).items():
            self.blobs.put(self.places[side]["blob"], Path(path))
        return made

    def forget_answers(self) -> None:
        for place in self.places.values():
            self.blobs.delete(place["blob"])


def place(name: str) -> dict[str, str]:
    return {"blob": f"answers/{name}", "key": base64.b64encode(new_data_key()).decode()}


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    loaded: dict[str, Any] = {
        name: SimpleNamespace(
            network=family.load(tiny.write(kind, tmp_path / name, seed), CPU),
            family=family,
            directory=tmp_path / name,
            digest=f"sha256:{name}",
        )
        for seed, (name, kind, family) in enumerate(
            [
                ("base", "unet", class_diffusion),
                ("reference", "unet", class_diffusion),
                ("judge", "vit", image_classifier),
            ]
        )
    }
    sets: Any = sets_of(loaded["base"].network, 1)
    network = copy.deepcopy(loaded["base"].network)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.02)
    material = Material(**loaded, **sets, scratch=tmp_path)
    places = {side: place(side) for side in ("base", "unlearned", "reference")}
    return Scene(material, network, LocalBlobs(tmp_path / "blobs"), places)


def counts(made: evaluate.Report) -> dict[str, tuple[int, int]]:
    return {side: (each["drawn"], each["reused"]) for side, each in made.document["answers"].items()}


def same(one: evaluate.Report, other: evaluate.Report) -> bool:
    """Bit for bit, but for where the answers came from."""
    documents = [json.dumps({**each.document, "answers": None}, sort_keys=True) for each in (one, other)]
    return documents[0] == documents[1] and one.pictures == other.pictures


def test_an_image_s_seed_depends_on_nothing_but_its_label_its_number_and_the_evaluation_s_seed() -> None:
    labels, numbers = torch.arange(EMPTY_PROMPT, 1000).repeat_interleave(2), torch.tensor([0, 99_999]).repeat(1001)
    ends = generator.seeds_of(labels, numbers, seed=2**31 - 1).reshape(-1, 2)
    unwrapped = ends[ends[:, 0] < ends[:, 1]].sort(0).values  # ranges that do not run over the end
    assert len(unwrapped) >= 1000 and (unwrapped[1:, 0] > unwrapped[:-1, 1]).all()
    assert ends.min() >= 0 and ends.max() < 2**32
    apart = generator.seeds_of(labels, numbers, 1) - generator.seeds_of(labels, numbers, 0)
    assert set((apart % 2**32).tolist()) == {generator.SEEDS_APART}


def test_what_was_answered_is_reused_and_changes_no_figure(scene: Scene) -> None:
    first, second = scene.evaluate(), scene.evaluate()
    assert counts(first) == {"base": (12, 0), "unlearned": (12, 0), "reference": (12, 0)}
    assert counts(second) == {"base": (0, 12), "unlearned": (12, 0), "reference": (0, 12)}
    assert same(first, second) and first.pictures.keys() == {"grid.png"}
    assert first.document["answers"]["base"]["digest"] == second.document["answers"]["base"]["digest"]
    assert first.document["answers"]["unlearned"]["digest"] is None


@pytest.mark.parametrize(
    ("label", "settings", "drawn", "reused"),
    [
        (2, {}, 4, 8),
        (1, {"forget_samples": 40}, 34, 12),
        (1, {"forget_samples": 9, "samples_per_label": 5}, 12, 12),
        (1, {"forget_samples": 3, "samples_per_label": 1}, 0, 6),
        (1, {"attacks": {}}, 0, 12),
    ],
)
def test_only_what_is_lacking_is_drawn_and_figures_are_those_of_a_fresh_base(
    scene: Scene, label: int, settings: dict[str, Any], drawn: int, reused: int
) -> None:
    scene.evaluate()
    extended = scene.evaluate(label, **settings)
    assert counts(extended)["base"] == counts(extended)["reference"] == (drawn, reused)
    assert counts(scene.evaluate(label, **settings))["base"] == (0, drawn + reused)
    scene.forget_answers()
    fresh = scene.evaluate(label, **settings)
    assert counts(fresh)["base"] == (drawn + reused, 0) and same(extended, fresh)


@pytest.mark.parametrize(
    "change", [{"seed": 6}, {"sampling_steps": 2}, {"guidance_scale": 1.0}, {"eta": 0.5}, {"prompt": "x"}]
)
def test_another_setting_is_another_question(scene: Scene, change: dict[str, Any]) -> None:
    first = scene.evaluate()
    other = scene.evaluate(**change)
    assert counts(other)["base"] == (12, 0)
    assert first.document["answers"]["base"]["digest"] != other.document["answers"]["base"]["digest"]


def test_the_digest_covers_network_judge_labels_and_device(scene: Scene) -> None:
    specification, material = scene.specification(), scene.material
    digest = answer_set.set_digest("base", specification, material)
    assert digest == answer_set.set_digest("base", scene.specification(forget_samples=1, samples_per_label=9), material)
    judged: Any = replace(material, judge=SimpleNamespace(digest="sha256:another"))
    moved: Any = replace(material, base=SimpleNamespace(network=torch.nn.Linear(1, 1, device="meta")))
    assert digest not in {
        answer_set.set_digest("other", specification, material),
        answer_set.set_digest("base", {**specification, "labels": ["0", "1", "2", "x"]}, material),
        answer_set.set_digest("base", specification, judged),
        answer_set.set_digest("base", specification, moved),
    }


def filled(digest: str) -> AnswerSet:
    return AnswerSet(digest, {label: {"outputs": np.arange(3) + label} for label in (EMPTY_PROMPT, 0, 1, 2)})


def test_what_a_request_alone_names_is_not_kept(tmp_path: Path) -> None:
    where, blobs = place("x"), LocalBlobs(tmp_path)
    blobs.put(where["blob"], answer_set.sealed(filled("right"), "right", where, labels=2))
    found = answer_set.opened(where, blobs, "right")
    assert {label: arrays["outputs"].tolist() for label, arrays in found.rows.items()} == {
        EMPTY_PROMPT: [-1, 0, 1], 0: [0, 1, 2], 1: [1, 2, 3]
    }  # fmt: skip


def test_a_missing_foreign_or_broken_set_is_an_empty_one(tmp_path: Path) -> None:
    where, blobs = place("x"), LocalBlobs(tmp_path)
    key, context = base64.b64decode(where["key"]), where["blob"].encode()
    whole = answer_set.sealed(filled("right"), "right", where, labels=9)
    blobs.put(where["blob"], whole)
    assert answer_set.opened(where, blobs, "right").count(1) == 3
    assert answer_set.opened(where, blobs, "wrong").rows == {}
    assert answer_set.opened({**where, "key": place("x")["key"]}, blobs, "right").rows == {}
    assert answer_set.opened(place("nowhere"), blobs, "right").rows == {}
    elsewhere = answer_set.sealed(filled("right"), "right", {**where, "blob": "answers/y"}, labels=9)
    broken = [whole[:-1], b"", b"not sealed", elsewhere, seal(key, b"", context), seal(key, b"no archive", context)]
    for content in broken:
        blobs.put(where["blob"], content)
        assert answer_set.opened(where, blobs, "right").rows == {}


def test_a_judge_s_answers_serve_jobs_with_other_words_behind_the_model_s(tmp_path: Path) -> None:
    """Two jobs name a concept each that the model does not know: kept labels are drawn once, and called the same."""
    judge = open_judge(tmp_path / "judge", ["none", "anna", "Ada Ash", "bea", "Bo Birch"])
    network = tiny.opened("sd", tmp_path / "sd")
    settings = {**SETTINGS, "sampling_steps": 2}

    def ask(concept: str, answered: AnswerSet) -> Any:
        names = ("Ada Ash", "Bo Birch", concept)
        texts = tuple(f"a photo of {name}" for name in names)
        text_to_image.caption(network, Captions(names, texts, (0, 1, 2), "a photo of {}"))
        x = torch.zeros(2, *text_to_image.image_shape(network))
        sets = {"forget": Samples(x, torch.tensor([2, 2])), "retain": None, "test": None}
        return generator.ask(
            text_to_image, network, sets, "class_label", settings, replace(judge, names=names),
            lambda done, total: None, answered=answered,
        )  # fmt: skip

    where, blobs = place("x"), LocalBlobs(tmp_path / "blobs")
    first = AnswerSet()
    ask("anna", first)
    blobs.put(where["blob"], answer_set.sealed(first, "digest", where, labels=2))
    kept = answer_set.opened(where, blobs, "digest")
    assert set(kept.rows) == {EMPTY_PROMPT, 0, 1}
    reused, fresh = ask("bea", kept), ask("bea", AnswerSet())
    assert (kept.drawn, kept.reused) == (6, 6)
    for name in ("asked", "judged", "features", "images", "generic"):
        assert np.array_equal(getattr(reused, name), getattr(fresh, name))
