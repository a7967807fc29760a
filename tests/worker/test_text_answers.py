"""How a network that knows words is asked: by label, by the empty prompt, and by a judge that knows the labels' names."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from app.catalog import FAMILIES, METRICS
from app.errors import JobError
from tests import tiny
from tests.tiny_pipelines import CAPTIONS, NAMES
from worker import evaluate
from worker.answers import generator
from worker.families import Captions, Samples, image_classifier, text_to_image
from worker.judge import REJECTED, Judge
from worker.load import Material
from worker.metrics import GeneratorAnswers, integrity

CPU = torch.device("cpu")
SETTINGS = {
    "sampling_steps": 2,
    "guidance_scale": 2.0,
    "eta": 0.0,
    "forget_samples": 5,
    "samples_per_label": 3,
    "seed": 7,
}


def open_judge(directory: Path, names: list[str]) -> Judge:
    tiny.write("vit", directory, labels=len(names))
    config = json.loads((directory / "config.json").read_text())
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: at for at, name in enumerate(names)}}
    (directory / "config.json").write_text(json.dumps(config))
    return Judge(image_classifier.load(directory, CPU), image_classifier, directory, "sha256:judge", NAMES)


@pytest.fixture
def network(tmp_path: Path) -> nn.Module:
    """Each label has a caption besides its prompt: texts 4 to 7."""
    opened = tiny.opened("sd", tmp_path / "sd")
    texts = (*CAPTIONS.texts, *(f"{name} of a photo" for name in NAMES))
    text_to_image.caption(opened, Captions(NAMES, texts, (*CAPTIONS.labels, *range(len(NAMES))), "a photo of {}"))
    return opened


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    return open_judge(tmp_path / "judge", ["none", NAMES[2], "Stranger", NAMES[1].upper(), NAMES[3], NAMES[0]])


def sets_of(network: nn.Module) -> dict[str, Samples | None]:
    x = torch.randn(8, *text_to_image.image_shape(network), generator=torch.Generator().manual_seed(0))
    pixels = torch.zeros(4, 3, 16, 16)
    forget, retain = Samples(x[:2], torch.tensor([1, 5])), Samples(x[2:], torch.tensor([0, 2, 3, 4, 6, 7]))
    return {"forget": forget, "retain": retain, "test": Samples(pixels, torch.arange(4))}


def ask(network: nn.Module, judge: Judge, base: nn.Module | None = None) -> GeneratorAnswers:
    seen: list[tuple[int, int]] = []
    answers = generator.ask(
        text_to_image,
        network,
        sets_of(network),
        "class_label",
        SETTINGS,
        judge,
        lambda done, total: seen.append((done, total)),
        base,
    )
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1]
    return answers


def test_the_judge_s_labels_are_the_model_s_by_name(judge: Judge) -> None:
    assert judge.positions() == [REJECTED, 2, len(NAMES) + 2, 1, 3, 0]
    assert judge.label_count() == len(NAMES)


def test_a_judge_that_lacks_a_name_is_refused_without_naming_it(network: nn.Module, tmp_path: Path) -> None:
    lacking = open_judge(tmp_path / "lacking", ["none", *NAMES[:3], "somebody"])
    with pytest.raises(JobError, match="knows 3 labels, the model 4") as refused:
        ask(network, lacking)
    assert not any(name in str(refused.value) for name in NAMES)


def test_texts_are_asked_by_label_and_by_the_empty_prompt(network: nn.Module, judge: Judge) -> None:
    first, second = ask(network, judge), ask(copy.deepcopy(network), judge, base=network)
    assert first.forget_labels == (1,)
    assert first.asked.tolist() == [0] * 3 + [1] * 5 + [2] * 3 + [3] * 3
    assert set(first.judged.tolist()) <= {REJECTED, 0, 1, 2, 3, len(NAMES) + 2}
    assert len(first.generic) == 3 and len(second.restored) == 0
    assert np.array_equal(first.features, second.features) and np.array_equal(first.generic, second.generic)
    assert first.nearness.shape == (4,) and first.nearness.argmax() == 1
    assert first.images.shape == (4, 3, 16, 16, 3)


def answers_of(features: np.ndarray, nearness: list[float], generic: np.ndarray) -> GeneratorAnswers:
    asked = np.arange(5).repeat(2)
    none = np.zeros(0, dtype=np.int64)
    return GeneratorAnswers((4,), asked, asked, features, none, features[:0], none, none, np.array(nearness), generic)


def test_rings_are_the_nearest_and_the_farthest_kept_labels() -> None:
    before, after = np.tile([1.0, 0.0], (10, 1)), np.tile([1.0, 0.0], (10, 1))
    after[2:4] = [0.0, 1.0]  # label 1, the nearest: at right angles, 2
    after[6:8] = [-1.0, 0.0]  # label 3, the farthest: opposite, 4
    nearness = [0.5, 0.9, 0.4, 0.1, 1.0]
    base = answers_of(before, nearness, before[:2])
    rings = integrity.rings(answers_of(after, [0.0] * 5, before[:2]), base)
    assert rings == {
        "neighbours": {"value": 2.0, "n": 2},
        "unrelated": {"value": 4.0, "n": 2},
        "generic": {"value": 0.0, "n": 2},
    }
    assert all(ring["value"] == 0 for ring in integrity.rings(base, base).values())
    assert integrity.rings(base, answers_of(before, [], before[:0])) == {}


def test_the_report_of_a_pipeline(network: nn.Module, judge: Judge, tmp_path: Path) -> None:
    base: Any = SimpleNamespace(network=network, family=text_to_image, directory=tmp_path / "sd", digest="sha256:base")
    opened: Any = SimpleNamespace(
        network=judge.network, family=image_classifier, directory=judge.directory, digest="sha256:judge"
    )
    sets: Any = sets_of(network)
    material = Material(base, None, opened, **sets, scratch=tmp_path)
    changed = copy.deepcopy(network)
    with torch.no_grad():
        for weight in text_to_image.trainable(changed).values():
            weight.add_(0.05)
    specification: dict[str, Any] = {
        "kind": "class_label",
        "evaluation": SETTINGS | {"prompt": "a photo of {}"},
        "policy": {"class_label": [vars(rule) for rule in FAMILIES["text_to_image"].default_policy["class_label"]]},
        "base": {"family": "text_to_image"},
    }
    made = evaluate.evaluate(specification, material, changed, None, 1.0, lambda done, total: None)
    rows = {row["metric"]: row for row in made.document["figures"]}
    always = {name for name, metric in METRICS.items() if "text_to_image" in metric.families and not metric.optional}
    assert set(rows) == always
    assert set(rows["integrity"]["rings"]) == {"neighbours", "unrelated", "generic"}
    assert rows["integrity"]["value"] > 0 and 0 < rows["changed_weights"]["value"] < 100
    assert not any(name in json.dumps(made.document) for name in NAMES)
