"""Asking networks that restore images: the same questions for every network, and no forgotten image in the picture."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from app.errors import JobError
from app.recipe import check_evaluation
from app.report import IMAGES
from tests import tiny, tiny_image_to_image
from worker import picture
from worker.answers import reconstruction
from worker.families import Samples, image_classifier
from worker.judge import Judge
from worker.metrics import ReconstructionAnswers

CPU = torch.device("cpu")
every_network = pytest.mark.parametrize("name", tiny_image_to_image.NETWORKS)


class Scene:
    def __init__(self, name: str, directory: Path) -> None:
        self.name, self.family = tiny.NETWORKS[name], tiny.FAMILIES[tiny.NETWORKS[name]]
        self.network: nn.Module = self.family.load(tiny.write(name, directory / "base"), CPU)
        place = tiny.write("resnet", directory / "judge")
        self.judge = Judge(image_classifier.load(place, CPU), image_classifier, place, "digest")
        sizes = {"forget": 70, "retain": 9, "test": 6}
        self.sets: dict[str, Samples | None] = {
            each: tiny.samples(self.network, self.family, size, seed=size) for each, size in sizes.items()
        }
        self.told: list[tuple[int, int]] = []

    def ask(self, kind: str = "samples", judge: bool = True, **settings: Any) -> ReconstructionAnswers:
        given = {"sampling_steps": 2} if self.name == "inpainting_diffusion" else {}
        return reconstruction.ask(
            self.family,
            self.network,
            self.sets,
            kind,
            check_evaluation(self.name, given | settings),
            self.judge if judge else None,
            lambda done, total: self.told.append((done, total)),
        )


@pytest.fixture
def scene(name: str, tmp_path: Path) -> Scene:
    return Scene(name, tmp_path)


@every_network
def test_outputs_are_the_network_s_own_where_hidden_and_the_original_elsewhere(scene: Scene) -> None:
    answers = scene.ask(pattern="centre_8")
    for name, count in (("forget", 70), ("retain", 9), ("test", 6)):
        hidden = answers.hidden[name]
        assert answers.outputs[name].dtype == answers.originals[name].dtype == np.uint8
        assert len(answers.outputs[name]) == len(hidden) == len(answers.features[name]) == count
        assert hidden.mean() == 0.25
        assert np.array_equal(answers.outputs[name][~hidden], answers.originals[name][~hidden])
        assert not np.array_equal(answers.outputs[name][hidden], answers.originals[name][hidden])
    original = scene.family.pixels(scene.network, scene.sets["retain"].x)  # type: ignore[union-attr]
    assert np.abs(answers.originals["retain"].transpose(0, 3, 1, 2) / 127.5 - 1 - original.numpy()).max() < 0.005
    assert scene.told == sorted(scene.told)
    assert scene.told[-1] == (85, 85)


@every_network
def test_noise_stands_where_the_forget_set_is_hidden(scene: Scene) -> None:
    answers = scene.ask(pattern="centre_8")
    hidden = answers.hidden["forget"]
    assert np.array_equal(answers.noise[~hidden], answers.originals["forget"][~hidden])
    levels = answers.noise[hidden] / 127.5 - 1
    assert abs(levels.mean()) < 0.05
    assert np.mean(np.abs(levels) >= 1) == pytest.approx(0.317, abs=0.04)  # of N(0, 1), beyond black and white
    assert answers.noise_features.shape == answers.features["forget"].shape


@every_network
def test_every_network_is_asked_the_same(scene: Scene) -> None:
    one, two, three = scene.ask(), scene.ask(), scene.ask(seed=1)
    for name in ("forget", "retain", "test"):
        assert np.array_equal(one.hidden[name], two.hidden[name])
        assert np.array_equal(one.outputs[name], two.outputs[name])
    random = check_evaluation(scene.name, {})["pattern"] == "random"
    assert np.array_equal(one.hidden["forget"], three.hidden["forget"]) is not random


@pytest.mark.parametrize("name", ["vq"])
def test_where_nothing_is_hidden_the_whole_output_is_the_network_s(scene: Scene) -> None:
    answers = scene.ask()
    assert answers.hidden["forget"].all()
    assert np.array_equal(answers.images[:, 0], answers.images[:, 1])  # it is shown everything


@pytest.mark.parametrize("name", ["mae"])
def test_a_forgotten_label_is_no_part_of_the_unseen_images(scene: Scene) -> None:
    forget, test = scene.sets["forget"], scene.sets["test"]
    assert forget is not None
    assert test is not None
    scene.sets["forget"] = Samples(forget.x, torch.full_like(forget.y, int(test.y[0])))
    kept = int((test.y != test.y[0]).sum())
    assert len(scene.ask("class_label").outputs["test"]) == kept < len(test.y)
    scene.sets["test"] = None
    assert scene.ask().features["test"].shape == (0, scene.ask().features["forget"].shape[1])


@pytest.mark.parametrize("name", ["mae"])
def test_at_most_so_many_images_of_each_set_are_restored(scene: Scene) -> None:
    answers = scene.ask(images_per_set=7)
    assert {name: len(each) for name, each in answers.outputs.items()} == {"forget": 7, "retain": 7, "test": 6}


@pytest.mark.parametrize("name", ["mae"])
def test_without_a_judge_nothing_is_measured(scene: Scene) -> None:
    with pytest.raises(JobError) as caught:
        scene.ask(judge=False)
    assert caught.value.code == "judge_missing"


@every_network
def test_the_picture_shows_no_forgotten_image(scene: Scene) -> None:
    answers = scene.ask()
    assert set(answers.shown) == {"retain", "test"}
    known = np.concatenate([answers.originals["retain"], answers.originals["test"]])
    assert all(any(np.array_equal(row[0], each) for each in known) for row in answers.images)
    png = picture.pictures(answers, answers)["grid.png"]
    assert "grid.png" in IMAGES  # and so it is sealed
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        assert image.width > 4 * 64


@every_network
def test_a_copy_of_a_forgotten_image_in_the_test_set_is_measured_and_not_shown(scene: Scene) -> None:
    """The owner's test set is left as it is."""
    test, forget = scene.sets["test"], scene.sets["forget"]
    assert test is not None and forget is not None
    before = scene.ask()
    test.x[1] = forget.x[69]
    answers = scene.ask(images_per_set=60)  # so few of the forget set are asked about that its last may not be
    assert len(answers.outputs["test"]) == 6
    assert answers.shown.count("test") == before.shown.count("test") == 4
    png = picture.pictures(answers, answers)["grid.png"]
    assert [shows(png, answers.originals["test"][at]) for at in (0, 1, 2)] == [True, False, True]
    assert not any(shows(png, original) for original in answers.originals["forget"])


def shows(png: bytes, original: np.ndarray) -> bool:
    """Whether the picture's pixels hold the middle row of an image, as large as it is drawn."""
    with Image.open(io.BytesIO(png)) as image:
        lines = [line.tobytes() for line in np.asarray(image.convert("RGB"))]
    height, width, _ = original.shape
    row = np.broadcast_to(original[height // 2], (width, 3))
    sought = np.repeat(row, max(1, -(-2 * picture.TILE // min(height, width))), axis=0).tobytes()
    return any(sought in line for line in lines)
