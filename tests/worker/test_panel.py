"""Evaluators beside the judge: contexts in turn, a judge of contexts, a scorer of images and texts, and the report they make."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from app.report import Report
from tests import tiny, tiny_clip
from tests.app.test_report import beyond_the_schema
from tests.tiny_pipelines import NAMES
from tests.worker.test_text_answers import SETTINGS, open_judge, sets_of
from worker import evaluate
from worker.answers import generator
from worker.contexts import NO_CONTEXT, prompted
from worker.families import class_diffusion, clip, text_to_image
from worker.judge import Judge
from worker.load import Material
from worker.panel import ALONE, Panel, Scorer

CPU = torch.device("cpu")
INKS = ("ink", "oil", "wax")
CONTEXTUAL = {**SETTINGS, "contexts": list(INKS), "context_prompt": "a {context} of {}", "prompt": "a photo of {}"}


@pytest.fixture
def network(tmp_path: Path) -> nn.Module:
    return tiny.opened("sd", tmp_path / "sd")


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    return open_judge(tmp_path / "judge", ["none", *NAMES])


@pytest.fixture
def of_contexts(tmp_path: Path) -> Judge:
    opened = open_judge(tmp_path / "contexts", ["wax", "INK", "none", "chalk", "oil"])
    return Judge(opened.network, opened.family, opened.directory, "sha256:" + "c" * 64, INKS)


@pytest.fixture
def scorer(tmp_path: Path) -> Scorer:
    directory = tiny_clip.write("clip", tmp_path / "scorer")
    return Scorer(clip.load(directory, CPU), clip, directory, "sha256:" + "5" * 64)


def test_images_of_a_label_pass_through_all_contexts_by_their_own_seeds(network: nn.Module) -> None:
    labels, seeds = torch.tensor([0, 0, 0, 0, 2, 2]), torch.arange(6) + 30
    told = prompted(text_to_image, network, labels, seeds, CONTEXTUAL)
    assert told.contexts.tolist() == [0, 1, 2, 0, 1, 2]
    assert told.texts[:4] == tuple(f"a {ink} of {NAMES[0]}" for ink in ("ink", "oil", "wax", "ink"))
    captions = told.network.__dict__["captions"]
    assert [captions.texts[row] for row in told.rows.tolist()] == list(told.texts)
    assert [captions.labels[row] for row in told.rows.tolist()] == labels.tolist()
    turned = prompted(text_to_image, network, labels.flip(0), seeds.flip(0), CONTEXTUAL)
    assert turned.texts == told.texts[::-1]


def test_the_network_itself_and_the_empty_prompt_know_no_context(network: nn.Module) -> None:
    before = network.__dict__["captions"]
    nulls = torch.full((2,), text_to_image.null_label(network))
    none = prompted(text_to_image, network, nulls, torch.arange(2), CONTEXTUAL)
    assert none.network is network and none.texts == ("", "") and none.contexts.tolist() == [NO_CONTEXT] * 2
    prompted(text_to_image, network, torch.arange(4), torch.arange(4), CONTEXTUAL)
    assert network.__dict__["captions"] is before
    plain = prompted(text_to_image, network, torch.tensor([3]), torch.arange(1), SETTINGS)
    assert plain.network is network and plain.texts == (f"a photo of {NAMES[3]}",)


def test_a_network_that_knows_no_words_is_asked_for_labels(tmp_path: Path) -> None:
    unet = class_diffusion.load(tiny.write("unet", tmp_path / "unet"), CPU)
    told = prompted(class_diffusion, unet, torch.tensor([1, 0]), torch.arange(2), CONTEXTUAL)
    assert told.network is unet and told.rows.tolist() == [1, 0] and told.texts == ()


def test_an_image_in_a_context_is_the_one_of_that_text(network: nn.Module, judge: Judge) -> None:
    """What is drawn for a label in a context is what the pipeline draws for the whole text at that seed."""
    sets = sets_of_labels(network)
    answers = generator.ask(text_to_image, network, sets, "class_label", CONTEXTUAL, judge, lambda done, total: None)
    direct = copy.copy(network)
    captions = network.__dict__["captions"]
    first = int(answers.contexts[0])
    text_to_image.caption(direct, captions._replace(texts=(f"a {INKS[first]} of {NAMES[0]}",), labels=(0,)))
    labels = torch.zeros(generator.BATCH, dtype=torch.int64)  # an image's last bits follow from the size of its batch
    seeds = generator.seeds_of(labels, labels, SETTINGS["seed"])
    image = text_to_image.sample(direct, labels, seeds, steps=2, guidance_scale=2.0)
    assert np.array_equal(generator.as_pictures(image)[0], answers.images[0, 0])
    assert np.bincount(answers.contexts[answers.asked != 1]).tolist() == [3, 3, 3]


def sets_of_labels(network: nn.Module) -> dict[str, Any]:
    given = sets_of(network)
    return {name: each and each._replace(y=each.y % len(NAMES)) for name, each in given.items()}


def test_attacks_ask_by_the_label_s_own_prompt(network: nn.Module, judge: Judge) -> None:
    """Contexts would undo the wording that an attack gives a label."""
    samples = sets_of_labels(network)["retain"]
    plain, contextual = (
        generator.recognised(text_to_image, settings, judge, network, samples) for settings in (SETTINGS, CONTEXTUAL)
    )
    assert torch.equal(plain, contextual)


def test_a_scorer_is_the_cosine_that_transformers_computes(scorer: Scorer) -> None:
    texts = (f"a photo of {NAMES[0]}", f"a photo of {NAMES[1]}", f"a photo of {NAMES[0]}")
    pictures = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    said = Panel(clip=scorer).look(pictures, texts)
    model: Any = scorer.network
    tokens = model.__dict__["tokenizer"](list(texts), padding=True, return_tensors="pt")
    pixels = model.__dict__["processor"](list(pictures), return_tensors="pt")["pixel_values"].float()
    with torch.no_grad():
        answer = model(pixel_values=pixels, **tokens)
    expected = (answer.logits_per_image / model.logit_scale.exp()).diagonal().detach().numpy()
    assert said["clip_match"] == pytest.approx(expected, abs=1e-5)
    assert np.linalg.norm(said["clip_images"], axis=1) == pytest.approx(1.0)
    assert "captions" not in model.__dict__ and "tokens" not in model.__dict__  # a warm scorer keeps no name


def test_a_judge_of_contexts_answers_by_name_and_must_answer(of_contexts: Judge) -> None:
    pictures = np.random.default_rng(1).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    said = Panel(context=of_contexts).look(pictures, ())["context_forced"]
    places = {0: 2, 1: 0, 3: len(INKS) + 3, 4: 1}  # wax, ink, one that is no context, oil; none is no answer
    kept = np.where(np.arange(5) == 2, -1, of_contexts(pictures).probabilities)
    assert said.tolist() == [places[place] for place in kept.argmax(axis=1).tolist()]


def report_with(
    directory: Path, network: nn.Module, judge: Judge, settings: dict[str, Any], **evaluators: Any
) -> dict[str, Any]:
    base: Any = SimpleNamespace(network=network, family=text_to_image, directory=directory, digest="sha256:base")
    loaded: Any = [
        SimpleNamespace(network=each.network, family=each.family, directory=each.directory, digest=each.digest)
        for each in (judge, *evaluators.values())
    ]
    changed = copy.deepcopy(network)
    with torch.no_grad():
        for weight in text_to_image.trainable(changed).values():
            weight.add_(0.05)
    material = Material(
        base, None, loaded[0], **sets_of_labels(network), scratch=directory,
        evaluators=dict(zip(evaluators, loaded[1:], strict=True)),
    )  # fmt: skip
    specification: dict[str, Any] = {
        "kind": "class_label", "evaluation": settings, "policy": {}, "base": {"family": "text_to_image"},
    }  # fmt: skip
    made = evaluate.evaluate(specification, material, changed, None, 1.0, lambda done, total: None)
    document: dict[str, Any] = json.loads(json.dumps(made.document))
    assert beyond_the_schema(Report.model_validate(document)) == []
    return document


def test_a_report_names_each_evaluator_where_it_had_a_part(
    network: nn.Module, judge: Judge, of_contexts: Judge, scorer: Scorer, tmp_path: Path
) -> None:
    document = report_with(tmp_path, network, judge, CONTEXTUAL, context=of_contexts, clip=scorer)
    rows = {row["metric"]: row for row in document["figures"]}
    assert document["evaluators"] == {"context": of_contexts.digest, "clip": scorer.digest}
    assert rows["clip_score"]["name"] == f"clip_score[{'5' * 12}]" and rows["cra"]["name"] == "cra"
    assert rows["inception_score"]["name"] == "inception_score[judge]"
    assert [rows[name]["evaluators"] for name in ("ira", "cra", "clip_score", "clip_similarity", "storage_added")] == [
        [judge.digest], [of_contexts.digest], [scorer.digest], [scorer.digest], []
    ]  # fmt: skip
    assert all(rows[name]["n"] == 9 and rows[name]["value"] is not None for name in ("ira", "cra", "clip_score"))
    assert set(rows["cra"]["by_context"]) == set("012") and set(rows["cra"]["by_label"]) == set("0123")
    assert rows["clip_similarity"]["before"] == pytest.approx(1.0) and rows["clip_similarity"]["value"] < 1
    assert not any(name in json.dumps(document) for name in NAMES)


def test_what_nobody_was_named_for_is_left_out(network: nn.Module, judge: Judge, tmp_path: Path) -> None:
    document = report_with(tmp_path, network, judge, SETTINGS)
    measured = {row["metric"] for row in document["figures"]}
    assert not measured & {"ira", "cra", "clip_score", "clip_similarity"} and "kept_accuracy" in measured
    assert document["evaluators"] == ALONE.digests() == {}


def test_a_scorer_sees_images_of_networks_without_words(scorer: Scorer) -> None:
    pictures = np.random.default_rng(2).integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
    assert set(Panel(clip=scorer).look(pictures, ())) == {"clip_images"}
