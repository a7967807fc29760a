"""Class-conditional diffusion: guidance, sampling and losses against diffusers and against formulas."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DModel
from torch import nn

from tests import tiny
from worker.families import class_diffusion

NULL = tiny.LABELS
LABELS = torch.tensor([0, 1, 2, 3, 1])
SEEDS = torch.tensor([7, 8, 9, 7, 10])


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tiny.write("unet", tmp_path / "base")


@pytest.fixture
def network(directory: Path) -> nn.Module:
    return class_diffusion.load(directory, torch.device("cpu"))


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_samples_as_a_plain_ddim_loop_of_diffusers(network: nn.Module, directory: Path, scale: float) -> None:
    ours = class_diffusion.sample(network, LABELS, SEEDS, steps=6, guidance_scale=scale)
    unet, scheduler = UNet2DModel.from_pretrained(directory).eval(), DDIMScheduler.from_pretrained(directory)
    scheduler.set_timesteps(6)
    x = torch.stack([torch.randn((1, 8, 8), generator=torch.Generator().manual_seed(int(seed))) for seed in SEEDS])
    with torch.no_grad():
        for t in scheduler.timesteps:
            without = unet(x, t, class_labels=torch.full_like(LABELS, NULL)).sample
            asked = unet(x, t, class_labels=LABELS).sample
            x = scheduler.step(without + scale * (asked - without), t, x, eta=0.0).prev_sample
    assert torch.allclose(ours, x.clamp(-1, 1), atol=1e-4)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_image_depends_on_its_own_seed_and_not_on_its_batch(network: nn.Module, eta: float) -> None:
    settings = {"steps": 5, "guidance_scale": 2.0, "eta": eta}
    whole = class_diffusion.sample(network, LABELS, SEEDS, **settings)
    split = class_diffusion.sample(network, LABELS, SEEDS, **settings, batch_size=2)
    alone = class_diffusion.sample(network, LABELS[3:4], SEEDS[3:4], **settings)
    assert torch.allclose(whole, split, atol=1e-4)
    assert torch.allclose(whole[3:4], alone, atol=1e-4)
    assert not torch.allclose(whole[1], whole[4], atol=1e-2)


def test_refuses_labels_and_seeds_that_do_not_fit(network: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"labels: labels must lie in 0\.\.3"):
        class_diffusion.sample(network, torch.tensor([NULL]), SEEDS[:1], steps=2, guidance_scale=2.0)
    with pytest.raises(ValueError, match="seeds: one per label"):
        class_diffusion.sample(network, LABELS, SEEDS[:2], steps=2, guidance_scale=2.0)


def test_relabelling_to_the_network_itself_costs_the_difference_of_two_labels(network: nn.Module) -> None:
    x, y = tiny.samples(network, class_diffusion, 9)
    loss = class_diffusion.relabel_loss(network, network, x, y, torch.Generator().manual_seed(0), "next")
    noisy, t, _ = class_diffusion.diffuse(network, x, torch.Generator().manual_seed(0))
    wanted = class_diffusion.denoise(network, noisy, t, (y + 1) % tiny.LABELS)
    assert torch.allclose(loss, F.mse_loss(class_diffusion.denoise(network, noisy, t, y), wanted))
    assert loss.item() > 0


def test_training_keeps_the_null_class_alive(network: nn.Module) -> None:
    x, y = tiny.samples(network, class_diffusion, 200)
    table = class_diffusion.label_tables(network)["class_embedding.weight"]
    loss = class_diffusion.training_loss(network, x, y, torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(loss, [table])
    assert float(gradient[NULL].abs().sum()) > 0


@pytest.mark.parametrize("kind", class_diffusion.PREDICTIONS)
def test_the_training_target_is_what_the_scheduler_says(directory: Path, kind: str) -> None:
    path = directory / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": kind}))
    network = class_diffusion.load(directory, torch.device("cpu"))
    with torch.no_grad():
        for weight in network.parameters():
            weight.zero_()  # predicts 0, so that the loss is the mean square of its target
    x, y = tiny.samples(network, class_diffusion, 8)
    loss = class_diffusion.training_loss(network, x, y, torch.Generator().manual_seed(0))
    _, t, target = class_diffusion.diffuse(network, x, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(t, torch.randint(100, (8,), generator=generator))
    noise = torch.randn(x.shape, generator=generator)
    kept = DDIMScheduler.from_pretrained(directory).alphas_cumprod[t].reshape(-1, 1, 1, 1)
    targets = {"epsilon": noise, "sample": x, "v_prediction": kept.sqrt() * noise - (1 - kept).sqrt() * x}
    assert torch.allclose(target, targets[kind], atol=1e-5)
    assert torch.allclose(loss, targets[kind].square().mean(), rtol=1e-4)


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("config.json", "class_embed_type", "timestep"),
        ("config.json", "num_class_embeds", None),
        ("config.json", "num_class_embeds", 2),
        ("config.json", "down_block_types", ["NoSuchBlock", "DownBlock2D"]),
        ("scheduler_config.json", "prediction_type", "flow"),
        ("scheduler_config.json", "beta_schedule", "none such"),
    ],
)
def test_refuses_a_config_that_it_cannot_work_with(directory: Path, file: str, field: str, value: object) -> None:
    path = directory / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ValueError, match=file.replace(".", r"\.")):
        class_diffusion.load(directory, torch.device("cpu"))
