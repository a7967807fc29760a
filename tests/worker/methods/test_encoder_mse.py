"""Encoder MSE and its baselines: what moves, towards what, and what stays bit for bit."""

import copy
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from tests import tiny, tiny_image_to_image
from worker.families import Samples
from worker.methods import encoder_mse, max_loss, noisy_label, random_encoder, retain_label

RECIPE = {"epochs": 2, "batch_size": 12, "warm_up_epochs": 0, "decay": "none", "learning_rate": 1e-3}
HARD = {"epochs": 5, "learning_rate": 3e-3}
every_network = pytest.mark.parametrize("name", tiny_image_to_image.NETWORKS)


class Scene:
    """One tiny network with a forget and a retain set that look different."""

    def __init__(self, name: str, directory: Path) -> None:
        self.family: ModuleType = tiny.FAMILIES[tiny.NETWORKS[name]]
        self.base: nn.Module = self.family.load(tiny.write(name, directory), torch.device("cpu"))
        images = tiny.samples(self.base, self.family, 48)
        self.forget, self.retain = (Samples(images.x[each], images.y[each]) for each in (images.y < 1, images.y >= 1))

    def run(self, method: Any = encoder_mse, seed: int = 0, **changes: Any) -> tuple[nn.Module, Any]:
        network = copy.deepcopy(self.base)
        sets = changes.pop("forget", self.forget), changes.pop("retain", self.retain)
        recipe: dict[str, Any] = {"pattern": "centre_8", **RECIPE, **changes}
        made = torch.Generator().manual_seed(seed)
        return network, method.unlearn(network, self.family, *sets, **recipe, generator=made)

    def features(self, network: nn.Module, samples: Samples, noise: bool = False) -> list[torch.Tensor]:
        made = torch.Generator().manual_seed(5)
        mask = self.family.masks(network, len(samples.x), "centre_8", 0.5, made)
        views = self.family.views(network, samples.x, mask, made)
        if noise:
            views = self.family.noise_views(network, views, mask, self.family.unit_noise(network, views, made))
        with torch.no_grad():
            answers: list[torch.Tensor] = self.family.encode(network, views)
        return answers

    def distance(self, network: nn.Module, samples: Samples, noise: bool = False) -> float:
        """Of the network's features from the base's, or from what the base says of noise, of the last tensor."""
        return float(
            (self.features(network, samples)[-1] - self.features(self.base, samples, noise)[-1]).square().mean()
        )

    def restoring(self, network: nn.Module, target: torch.Tensor) -> float:
        made = torch.Generator().manual_seed(5)
        mask = self.family.masks(network, len(self.forget.x), "centre_8", 0.5, made)
        with torch.no_grad():
            return float(self.family.reconstruction_loss(network, self.forget.x, target, mask, made))


@pytest.fixture
def scene(name: str, tmp_path: Path) -> Scene:
    return Scene(name, tmp_path / "base")


def moved(base: nn.Module, network: nn.Module) -> set[str]:
    pairs = zip(base.state_dict().items(), network.state_dict().values(), strict=True)
    return {name for (name, one), two in pairs if not torch.equal(one.view(torch.uint8), two.view(torch.uint8))}


@every_network
@pytest.mark.parametrize("method", [encoder_mse, random_encoder])
def test_moves_the_encoder_and_leaves_the_decoder_bit_for_bit(scene: Scene, method: Any) -> None:
    network, _ = scene.run(method)
    assert moved(scene.base, network) == set(scene.family.encoder(scene.base))


@pytest.mark.parametrize("name", ["mae"])
def test_weights_that_the_decoder_shares_stay(scene: Scene) -> None:
    scene.base.decoder.decoder_norm.weight = scene.base.vit.layernorm.weight  # type: ignore[union-attr]
    network, trace = scene.run()
    assert "vit.layernorm.weight" not in moved(scene.base, network)
    assert "vit.layernorm.bias" in moved(scene.base, network)
    assert trace["encoder_tensors"] == len(scene.family.encoder(scene.base))


@every_network
@pytest.mark.parametrize("pattern", ["centre_8", "random"])
def test_student_and_teacher_agree_before_the_first_step(scene: Scene, pattern: str) -> None:
    losses: list[float] = []
    _, trace = scene.run(pattern=pattern, on_step=lambda *told: losses.append(float(told[2]["retain_loss"])))
    scale = sum(float(each.square().mean()) for each in scene.features(scene.base, scene.retain))
    assert trace["retain_loss_at_start"] <= 1e-6 * scale
    assert losses[0] <= 1e-6 * scale
    assert losses[1] > losses[0]


@pytest.mark.parametrize("name", ["mae", "vq"])
def test_a_stochastic_student_is_refused(scene: Scene) -> None:
    handles = [
        module.register_forward_hook(lambda module, inputs, output: output + 0.1 * torch.rand_like(output))
        for module in scene.base.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with pytest.raises(RuntimeError, match="student and teacher differ"):
        scene.run(pattern="random")
    assert handles


@every_network
def test_forgotten_images_go_where_noise_goes_and_retained_ones_stay(scene: Scene) -> None:
    network, _ = scene.run(epochs=30, alpha=1.0)
    before, after = (scene.distance(each, scene.forget, noise=True) for each in (scene.base, network))
    assert after < 0.9 * before
    assert scene.distance(network, scene.retain) < 0.5 * scene.distance(network, scene.forget)


@pytest.mark.parametrize("name", ["mae", "kl"])
def test_what_is_kept_of_the_teacher_is_what_it_says(scene: Scene) -> None:
    made = torch.Generator().manual_seed(0)
    arguments = scene.forget.x, scene.retain.x, ("centre_8", 0.5), None, 8, made
    kept = encoder_mse.fixed_targets(scene.base, scene.family, *arguments)  # type: ignore[arg-type]
    assert kept is not None
    for one, two in zip(kept[0], scene.features(scene.base, scene.retain), strict=True):
        assert torch.allclose(one, two, atol=1e-5)
    assert len(kept[1][0]) == encoder_mse.BANK
    assert kept[1][0].std(0).mean() > 1e-3  # of different noise images


@pytest.mark.parametrize("name", ["mae", "inpainting"])
def test_every_kind_of_noise_leads_elsewhere(scene: Scene) -> None:
    ends = [scene.run(noise=noise)[0] for noise in ("unit", "batch", "forget_covariance")]
    flat = [torch.cat([weight.flatten() for weight in each.parameters()]) for each in ends]
    assert not torch.equal(flat[0], flat[1])
    assert not torch.equal(flat[1], flat[2])
    assert not torch.equal(flat[0], flat[2])


def test_the_forget_covariance_is_per_pixel_and_shows_no_mean_image() -> None:
    x = torch.randn(500, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    x[:, :, 0] = x[:, :, 0] * 3 + 2
    mean, spread = encoder_mse.noise_spread(x)
    assert mean.shape == (3, 1, 1)
    assert torch.allclose(mean.flatten(), x.mean((0, 2, 3)))
    assert torch.allclose(spread, x.std(0))
    with pytest.raises(ValueError, match=r"^forget\.x: "):
        encoder_mse.noise_spread(x[:1])


@pytest.mark.parametrize("name", ["vq"])
def test_l1_makes_the_encoder_smaller(scene: Scene) -> None:
    sizes = []
    for l1 in (0.0, 0.01):
        network, _ = scene.run(l1=l1, weight_decay=0.0, epochs=4)
        sizes.append(sum(float(weight.detach().abs().sum()) for weight in scene.family.encoder(network).values()))
    assert sizes[1] < 0.99 * sizes[0]


@pytest.mark.parametrize("name", ["mae"])
def test_a_proxy_is_another_retain_set(scene: Scene) -> None:
    proxy = Samples(torch.rand(scene.retain.x.shape, generator=torch.Generator().manual_seed(9)), scene.retain.y)
    network, trace = scene.run(retain=proxy)
    assert trace["retain_loss_at_start"] < 1e-6
    assert moved(scene.run()[0], network)


@pytest.mark.parametrize("name", ["mae"])
def test_the_rate_rises_over_the_warm_up_and_falls_by_half_a_cosine(scene: Scene) -> None:
    rates: list[float] = []

    def on_step(step: int, total: int, figures: dict[str, Any], moving: Any) -> None:
        if moving is not None:  # where an epoch ends
            rates.append(moving["optimizer"].param_groups[0]["lr"])

    scene.run(epochs=6, warm_up_epochs=3, decay="cosine", on_step=on_step)
    assert rates[:3] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3])
    assert rates[2] > rates[3] > rates[4] > rates[5] > 0
    assert rates[5] < 0.1 * rates[2]


def test_weight_decay_spares_norms_and_biases() -> None:
    theta = {"a.weight": nn.Parameter(torch.ones(2, 2)), "a.bias": nn.Parameter(torch.ones(2))}
    decayed, spared = encoder_mse.make_optimizer(theta, 1e-3, 0.95, 0.05).param_groups
    assert [decayed["weight_decay"], spared["weight_decay"]] == [0.05, 0.0]
    assert decayed["params"] == [theta["a.weight"]]
    assert spared["params"] == [theta["a.bias"]]
    assert decayed["betas"] == (0.9, 0.95)


@pytest.mark.parametrize("name", ["mae", "inpainting"])
@pytest.mark.parametrize("method", ["encoder_mse", "max_loss", "noisy_label", "retain_label", "random_encoder"])
def test_a_pattern_that_hides_nothing_is_refused_before_anything_changes(scene: Scene, method: str) -> None:
    network = copy.deepcopy(scene.base)
    unlearn = importlib.import_module(f"worker.methods.{method}").unlearn
    with pytest.raises(ValueError, match="^pattern: "):
        unlearn(network, scene.family, scene.forget, scene.retain, pattern="none", generator=torch.Generator())
    assert not moved(scene.base, network)


@every_network
def test_max_loss_raises_the_forgotten_images_error(scene: Scene) -> None:
    network, _ = scene.run(max_loss, epochs=5, alpha=1.0, learning_rate=3e-3)
    assert scene.restoring(network, scene.forget.x) > 1.05 * scene.restoring(scene.base, scene.forget.x)


@every_network
def test_noisy_label_restores_noise_where_forgotten_images_were(scene: Scene) -> None:
    noise = noisy_label.noise_images(
        scene.family.pixel_range(scene.base), scene.forget.x, torch.Generator().manual_seed(3)
    )
    assert scene.family.pixels(scene.base, noise).abs().max() <= 1 + 1e-5
    with_forget, without = (scene.run(noisy_label, **HARD, alpha=alpha)[0] for alpha in (3.0, 1e-6))
    assert scene.restoring(with_forget, noise) < scene.restoring(without, noise)


@every_network
def test_retain_label_restores_retained_images_where_forgotten_ones_were(scene: Scene) -> None:
    target = scene.retain.x.mean(0).expand_as(scene.forget.x)  # each forgotten image meets many retained ones
    with_forget, without = (scene.run(retain_label, **HARD, alpha=alpha)[0] for alpha in (3.0, 1e-6))
    assert scene.restoring(with_forget, target) < scene.restoring(without, target)


@every_network
def test_random_encoder_pushes_forgotten_images_and_not_retained_ones(scene: Scene) -> None:
    network, _ = scene.run(random_encoder, epochs=30, alpha=1.0)
    assert scene.distance(network, scene.forget) > 1.2 * scene.distance(network, scene.retain)
