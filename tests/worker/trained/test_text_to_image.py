"""Forgetting one of eight concepts in trained text-to-image pipelines, as judged by a classifier that may reject.

Recipes were chosen on TUNED; what is asserted here is measured on other concepts. Forget and retain set are photos that the
pipelines were trained on; every image that is judged has a seed of its own, and base and unlearned network share it.
"""

import copy
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline
from torch import nn

from tests.trained import concept_judge, concepts, flow, stable_diffusion
from worker import fitness
from worker.answers import generator
from worker.evaluate import count_changes
from worker.families import Captions, Samples, image_classifier, text_to_image
from worker.judge import Judge, as_pictures
from worker.methods import salun, slug
from worker.metrics import Evidence, forget_rejected, integrity, kept_accuracy, unlearning_accuracy

pytestmark = [pytest.mark.verify, pytest.mark.timeout(1500)]

CPU = torch.device("cpu")
LABELS = len(concepts.NAMES)
TUNED = (1, 2)  # concepts that recipes were chosen on
SETTINGS = {
    "sampling_steps": 20,
    "guidance_scale": 4.0,
    "eta": 0.0,
    "forget_samples": 100,
    "samples_per_label": 100,
    "seed": 11,
}
SALUN: dict[str, Any] = {
    "relabel": "next",
    "alpha": 1.0,
    "schedule": "steps",
    "steps": 300,
    "batch_size": 16,
    "optimizer": "adam",
    "learning_rate": 3e-4,
    "weight_decay": 0.0,
    "clip": 1.0,
}
FLOW_SETTINGS = SETTINGS | {"sampling_steps": 10, "guidance_scale": 2.0}
FLOW_SALUN = SALUN | {"relabel_on": "both", "steps": 800, "learning_rate": 1e-4}
SLUG: dict[str, Any] = {
    "tower": "text",
    "passes": 4,
    "probe_samples": 72,
    "retain_drop": 5.0,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def judge() -> Judge:
    directory = concept_judge.directory()
    return Judge(image_classifier.load(directory, CPU), image_classifier, directory, directory.name)


@pytest.fixture(scope="module")
def base() -> nn.Module:
    return opened(stable_diffusion.directory())


def opened(directory: Path) -> nn.Module:
    network = text_to_image.load(directory, CPU)
    prompts = tuple(concepts.PROMPT.format(name) for name in concepts.NAMES)
    text_to_image.caption(network, Captions(concepts.NAMES, prompts, tuple(range(LABELS))))
    return network


def sets(network: nn.Module, trainer: ModuleType, forgotten: int) -> dict[str, Samples | None]:
    """128 training photos of the concept and 448 of the others, as latents."""
    pictures, of = concepts.album(torch.Generator().manual_seed(trainer.SEED))
    forget = (of == forgotten).nonzero().flatten()[:128]
    retain = torch.cat([(of == label).nonzero().flatten()[:64] for label in range(LABELS) if label != forgotten])
    rows = {"forget": forget, "retain": retain}
    encoded = {
        name: Samples(text_to_image.encode_images(network, pictures[each]), of[each]) for name, each in rows.items()
    }
    return {**encoded, "test": None}


def measured(
    base: nn.Module, network: nn.Module, given: dict[str, Samples | None], judge: Judge, settings: dict[str, Any]
) -> dict[str, Any]:
    """The report's figures, by the service's own questions and metrics."""

    def ask(side: nn.Module) -> Any:
        return generator.ask(
            text_to_image, side, given, "class_label", settings, judge, lambda done, total: None, base=base
        )

    before, after = ask(base), ask(network)
    evidence = Evidence(before, after, None, 0.0, *count_changes(base, network))
    figures = {
        "unlearning_accuracy": unlearning_accuracy.measure(after, evidence)[0],
        "forget_rejected": forget_rejected.measure(after, evidence)[0],
        "kept_before": kept_accuracy.measure(before, evidence)[0],
        "kept_after": kept_accuracy.measure(after, evidence)[0],
        "kept_by_label": [round(100 * share_kept(after, label)) for label in range(LABELS)],
        "integrity": integrity.rings(after, before),
        "changed_weights": evidence.changed,
    }
    print({key: np.round(each, 2) if isinstance(each, float) else each for key, each in figures.items()})
    assert 100 - unlearning_accuracy.measure(before, evidence)[0] - forget_rejected.measure(before, evidence)[0] >= 95
    return figures


def share_kept(answers: Any, label: int) -> float:
    return float(np.mean(answers.judged[answers.asked == label] == label))


def unlearnt(method: ModuleType, base: nn.Module, given: dict[str, Samples | None], **recipe: Any) -> nn.Module:
    network = copy.deepcopy(base)
    method.unlearn(
        network,
        text_to_image,
        given["forget"],
        given["retain"],
        **recipe,
        generator=torch.Generator().manual_seed(5),
        on_step=lambda step, total, figures, moving: None,
    )
    return network


def test_the_judge_knows_the_concepts_and_rejects_what_is_none(judge: Judge) -> None:
    fresh = torch.Generator().manual_seed(77)
    of = torch.arange(1600) % LABELS
    real = fitness.right_on(judge, as_pictures(concepts.photos(of, fresh)), of.numpy())
    noise = fitness.rejected_noise(judge, (concepts.SIZE, concepts.SIZE, 3), 77, 1000)
    strangers = judge(as_pictures(concepts.strangers(1000, fresh))).labels
    figures = {
        "real": 100 * float(np.mean(real)),
        "noise_rejected": 100 * float(np.mean(noise)),
        "strangers_rejected": 100 * float(np.mean(strangers < 0)),
    }
    print(figures)
    assert figures["real"] >= 97
    assert figures["noise_rejected"] >= 95
    assert figures["strangers_rejected"] >= 95


def test_both_pipelines_open_with_plain_diffusers_and_draw_what_they_are_asked_for(judge: Judge) -> None:
    names = [concepts.PROMPT.format(name) for name in concepts.NAMES for _ in range(4)]
    of = np.repeat(np.arange(LABELS), 4)
    diffusion = StableDiffusionPipeline.from_pretrained(stable_diffusion.directory(), safety_checker=None)
    straight = StableDiffusion3Pipeline.from_pretrained(flow.directory())
    options: dict[str, Any] = {"num_inference_steps": 10, "output_type": "np"}
    for pipeline, own in (
        (diffusion, {"guidance_scale": 3.0}),
        (straight, {"guidance_scale": 2.0, "max_sequence_length": 16}),
    ):
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(names, generator=torch.Generator().manual_seed(3), **options, **own).images
        assert images.shape == (len(names), concepts.SIZE, concepts.SIZE, 3)
        judged = judge((images * 255).round().astype(np.uint8)).labels
        assert np.mean(judged == of) >= 0.9


@pytest.mark.parametrize(("forgotten", "drawn_as_another"), [(4, 90), (6, 80), (7, 90)])
def test_slug_edits_one_layer_of_the_text_encoder_and_nothing_else(
    forgotten: int, drawn_as_another: float, base: nn.Module, judge: Judge, tmp_path: Path
) -> None:
    """Its forget loss and its choice among equals were settled on concepts 0 to 5 of another training of the network; of the
    neighbours, 6 comes short of 90 on this one: a sixth of its images are a blend that the judge rejects."""
    given = sets(base, stable_diffusion, forgotten)
    network = unlearnt(slug, base, given, **SLUG)
    figures = measured(base, network, given, judge, SETTINGS)
    assert figures["unlearning_accuracy"] >= drawn_as_another
    assert figures["unlearning_accuracy"] + figures["forget_rejected"] >= 95
    assert figures["kept_after"] >= figures["kept_before"] - 5
    moved = [name for name, weight in network.named_parameters() if not torch.equal(weight, base.get_parameter(name))]
    assert len(moved) == 1
    assert moved[0].startswith("text_encoder.")
    source = stable_diffusion.directory()
    text_to_image.save(network, tmp_path / "unlearned", source)
    for part in ("unet", "vae"):
        weights = f"{part}/diffusion_pytorch_model.safetensors"
        assert (tmp_path / "unlearned" / weights).read_bytes() == (source / weights).read_bytes()
    weights = "text_encoder/model.safetensors"
    assert (tmp_path / "unlearned" / weights).read_bytes() != (source / weights).read_bytes()


@pytest.mark.parametrize("forgotten", [3, 4])
def test_salun_draws_another_concept_instead_and_keeps_the_others(
    forgotten: int, base: nn.Module, judge: Judge
) -> None:
    given = sets(base, stable_diffusion, forgotten)
    network = unlearnt(salun, base, given, **SALUN)
    figures = measured(base, network, given, judge, SETTINGS)
    assert figures["unlearning_accuracy"] >= 95
    assert figures["kept_after"] >= figures["kept_before"] - 5
    assert set(figures["integrity"]) == {"neighbours", "unrelated", "generic"}
    assert all(ring["n"] >= 100 for ring in figures["integrity"].values())
    assert figures["integrity"]["unrelated"]["value"] < 0.5  # 4 is opposite; two unrelated concepts are about 1 apart


@pytest.mark.parametrize("forgotten", [3, 4])
def test_the_flow_matching_pipeline_forgets_and_keeps_the_others(forgotten: int, judge: Judge) -> None:
    base = opened(flow.directory())
    given = sets(base, flow, forgotten)
    network = unlearnt(salun, base, given, **FLOW_SALUN)
    figures = measured(base, network, given, judge, FLOW_SETTINGS)
    assert figures["unlearning_accuracy"] >= 90
    assert figures["kept_after"] >= figures["kept_before"] - 5
