"""Text-to-image pipelines from POST to a downloaded directory that opens with plain from_pretrained."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from app.client import Problem
from tests import pictures, tiny
from tests.running import Running
from tests.tiny_pipelines import NAMES

EVALUATION = {"sampling_steps": 2, "forget_samples": 2, "samples_per_label": 1, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A deployment with the sets of four names and a judge that knows them, in another order."""
    folder = tmp_path_factory.mktemp("pipelines")
    deployment = Running(folder / "lethe")
    try:
        deployment.start("server", "gpu")
        client = deployment.client
        client.upload_dataset(pictures.imagefolder(NAMES, seed=1), "retain", "people")
        client.upload_dataset(pictures.imagefolder(NAMES, 2, seed=2), "test", "people-test")
        client.register_model(judge(folder / "judge", [*reversed(NAMES), "none"]), "people-judge", "image_classifier")
        yield deployment
    finally:
        deployment.stop()


def judge(directory: Path, names: list[str]) -> Path:
    tiny.write("vit", directory, labels=len(names))
    config = json.loads((directory / "config.json").read_text())
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: at for at, name in enumerate(names)}}
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return directory


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", tiny.PIPELINES)
def test_a_person_is_forgotten_and_the_pipeline_comes_back(running: Running, name: str, tmp_path: Path) -> None:
    client = running.client
    made = client.register_model(
        tiny.write(name, tmp_path / name), name, "text_to_image", retain="people", test="people-test",
        judge="people-judge", evaluation=EVALUATION, policy={"class_label": []},
    )  # fmt: skip
    assert made["labels"] == list(NAMES)
    posted = client.request(name, {"class_label": NAMES[1]}, method="salun", recipe={"steps": 2, "batch_size": 2})
    done = client.wait(posted["id"])
    assert (done["status"], done["reason"], done["forget_count"]) == ("completed", None, 6)
    report = client.report(name, done["checkpoint"])
    rings = next(figure for figure in report["figures"] if figure["metric"] == "integrity")["rings"]
    assert set(rings) == {"neighbours", "unrelated", "generic"}
    base = DiffusionPipeline.from_pretrained(client.pull(name, 1, tmp_path / "base", reason="a test compares it"))
    pulled = DiffusionPipeline.from_pretrained(client.pull(name, done["checkpoint"], tmp_path / "pulled"))
    moved = set()
    for part, network in base.components.items():
        if isinstance(network, torch.nn.Module):
            pairs = zip(network.parameters(), pulled.components[part].parameters(), strict=True)
            moved |= {part for one, other in pairs if not torch.equal(one, other)}
    assert moved == {"transformer" if name in ("sd3", "flux") else "unet"}


def test_a_judge_that_does_not_know_the_names_is_refused(running: Running, tmp_path: Path) -> None:
    client = running.client
    client.register_model(judge(tmp_path / "judge", [*NAMES[1:], "x", "none"]), "other-judge", "image_classifier")
    with pytest.raises(Problem, match="does not know the model's labels"):
        client.register_model(
            tiny.write("sd", tmp_path / "sd"), "unjudged", "text_to_image", retain="people", judge="other-judge"
        )
