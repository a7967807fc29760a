"""Text-to-image pipelines: what diffusers' own pipelines do is what the family does, and what it reads it writes."""

import copy
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.tiny_pipelines import CAPTIONS, NAMES, PIPELINES, TOKENS, write_pipeline
from worker.families import Captions, Samples, pipelines, prompts, text_to_image

CPU = torch.device("cpu")
every_pipeline = pytest.mark.parametrize("name", PIPELINES)
NULL = len(CAPTIONS.texts)


@pytest.fixture
def directory(name: str, tmp_path: Path) -> Path:
    return write_pipeline(name, tmp_path / "base")


@pytest.fixture
def network(directory: Path) -> nn.Module:
    opened = text_to_image.load(directory, CPU)
    text_to_image.caption(opened, CAPTIONS)
    return opened


def reference(directory: Path) -> Any:
    index = json.loads((directory / "model_index.json").read_text())
    absent = {name: None for name in ("text_encoder_3", "tokenizer_3") if index.get(name) == [None, None]}
    pipeline = DiffusionPipeline.from_pretrained(directory, **absent)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noise(network: nn.Module, seeds: list[int]) -> Tensor:
    shape = text_to_image.image_shape(network)
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@every_pipeline
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_draws_what_the_pipeline_draws(name: str, directory: Path, network: nn.Module, guidance_scale: float) -> None:
    labels, seeds = torch.tensor([2, 0, 2]), torch.tensor([5, 6, 7])
    ours = text_to_image.sample(network, labels, seeds, steps=5, guidance_scale=guidance_scale)
    latents = noise(network, seeds.tolist())
    told: dict[str, Any] = {"guidance_scale": guidance_scale}
    if name.startswith("flux"):
        count, channels, height, width = latents.shape
        latents = latents.view(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
        latents = latents.reshape(count, -1, channels * 4)
        told |= {"height": 16, "width": 16}
        if name == "flux":
            told |= {"true_cfg_scale": guidance_scale, "negative_prompt": [""] * 3}
    if name.startswith(("flux", "sd3")) and "two" not in name:
        told["max_sequence_length"] = TOKENS
    texts = [CAPTIONS.texts[label] for label in labels.tolist()]
    theirs = reference(directory)(texts, num_inference_steps=5, latents=latents, output_type="pt", **told).images
    assert torch.allclose(ours, theirs * 2 - 1, atol=1e-4)
    assert (ours[0] - ours[2]).abs().max() > 0.01


@every_pipeline
def test_an_image_depends_on_its_own_seed_and_text_only(network: nn.Module) -> None:
    settings: dict[str, Any] = {"steps": 3, "guidance_scale": 2.0, "eta": 0.7}
    labels, seeds = torch.tensor([0, 1, 2, NULL]), torch.tensor([9, 9, 8, 7])
    state = torch.get_rng_state()
    whole = text_to_image.sample(network, labels, seeds, **settings)
    cut = text_to_image.sample(network, labels, seeds, batch_size=3, **settings)
    assert torch.equal(torch.get_rng_state(), state)
    assert whole.shape == (4, 3, 16, 16)
    assert whole.abs().max() <= 1
    assert torch.allclose(whole, cut, atol=1e-4)
    with pytest.raises(ValueError, match=r"labels: labels must lie in 0\.\.4"):
        text_to_image.sample(network, labels + 1, seeds, **settings)


@every_pipeline
def test_the_null_prompt_is_the_empty_one(name: str, network: nn.Module) -> None:
    null, named = prompts.prompts(network, torch.tensor([NULL, 0]))[0]
    assert text_to_image.null_label(network) == NULL
    assert not torch.equal(null, named)
    assert (not null.any()) == (name == "sdxl")


@every_pipeline
def test_texts_are_encoded_once_and_again_when_an_encoder_changes(network: nn.Module) -> None:
    y = torch.tensor([1, 3])
    before, twin = prompts.prompts(network, y), copy.deepcopy(network)
    calls: list[int] = []
    for part in pipelines.encoders(twin).values():
        part.register_forward_hook(lambda *told: calls.append(1))
    assert torch.equal(prompts.prompts(twin, y).states, before.states)
    assert calls == []  # the copy shares what is kept
    weights = [weight for weight in prompts.encoder_weights(twin) if weight.ndim == 2]
    with torch.no_grad():
        for weight in weights:
            weight.mul_(1.5)
    assert not torch.allclose(prompts.prompts(twin, y).states, before.states)
    assert torch.equal(prompts.prompts(network, y).states, before.states)
    counted = len(calls)
    prompts.prompts(twin, y)
    assert len(calls) == counted


@every_pipeline
def test_an_encoder_that_takes_gradients_gets_them(network: nn.Module) -> None:
    samples = some(network, 3)
    for encoder in pipelines.encoders(network).values():
        encoder.requires_grad_(True)
    loss = text_to_image.forget_loss(network, *samples, torch.Generator().manual_seed(0))
    weights = {name: weight for name, weight in network.named_parameters() if name.startswith("text_encoder")}
    gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
    reached = {
        name.split(".")[0] for name, each in zip(weights, gradients, strict=True) if each is not None and each.any()
    }
    assert reached == set(pipelines.encoders(network))


def some(network: nn.Module, count: int, seed: int = 0) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((count, *text_to_image.image_shape(network)), generator=generator)
    return Samples(x, torch.randint(len(NAMES), (count,), generator=generator))


@every_pipeline
def test_noisy_latents_and_targets_belong_together(name: str, network: nn.Module) -> None:
    """From x_t and the target the clean latent can be had again, whatever is predicted."""
    x, _ = some(network, 64)
    noisy, t, target = text_to_image.diffuse(network, x, torch.Generator().manual_seed(1))
    scheduler: Any = network.scheduler
    if pipelines.is_flow(network):
        clean = noisy - (t / 1000).view(-1, 1, 1, 1) * target
    else:
        kept = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        root, rest = kept.sqrt(), (1 - kept).sqrt()
        clean = root * noisy - rest * target if name == "sd_v" else (noisy - rest * target) / root
    assert torch.allclose(clean, x, atol=1e-3)
    assert t.unique().numel() > 20


@every_pipeline
def test_latents_are_the_posterior_s_mean_and_come_back_as_images(directory: Path, network: nn.Module) -> None:
    images = [np.full((20, 30), 255, np.uint8), np.zeros((5, 5, 3), np.uint8)]
    pixels = text_to_image.pictures(images, directory, network)
    assert pixels.shape == (2, 3, 16, 16)
    assert torch.equal(pixels[0], torch.ones(3, 16, 16)) and torch.equal(pixels[1], -torch.ones(3, 16, 16))
    vae = reference(directory).vae
    with torch.no_grad():
        means = vae.encode(pixels).latent_dist.mean
        shown = vae.decode(means).sample.clamp(-1, 1)
    x = text_to_image.prepare(images, directory, network)
    assert torch.allclose(x, (means - (vae.config.shift_factor or 0)) * vae.config.scaling_factor, atol=1e-5)
    assert torch.allclose(text_to_image.decode_latents(network, x), shown, atol=1e-5)
    assert text_to_image.image_shape(directory) == text_to_image.image_shape(network) == (4, 8, 8)


@every_pipeline
def test_is_written_as_it_was_opened(directory: Path, network: nn.Module, tmp_path: Path) -> None:
    (directory / "README.md").write_text("a card\n")
    text_to_image.save(network, tmp_path / "copy", directory)
    files = {path.relative_to(directory) for path in directory.rglob("*") if path.is_file()}
    assert {path.relative_to(tmp_path / "copy") for path in (tmp_path / "copy").rglob("*") if path.is_file()} == files
    for name in files:
        assert (tmp_path / "copy" / name).read_bytes() == (directory / name).read_bytes(), name


@every_pipeline
def test_opens_with_from_pretrained_after_a_change(directory: Path, network: nn.Module, tmp_path: Path) -> None:
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.25)
    text_to_image.save(network, tmp_path / "changed", directory)
    reopened = reference(tmp_path / "changed")
    for part, module in network.named_children():
        pairs = zip(module.state_dict().values(), getattr(reopened, part).state_dict().values(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs), part


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_parts_keep_their_own_precision(directory: Path, tmp_path: Path) -> None:
    """Half of the parts in half precision, as published pipelines have it."""
    for path in directory.rglob("model.safetensors"):
        save_file({key: each.bfloat16() for key, each in load_file(path).items()}, path, {"format": "pt"})
    network = text_to_image.load(directory, CPU)
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    text_to_image.save(network, tmp_path / "copy", directory)
    for path in directory.rglob("*.safetensors"):
        assert (tmp_path / "copy" / path.relative_to(directory)).read_bytes() == path.read_bytes()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(1e-4)
    text_to_image.round_to_stored(network)
    rounded = [weight for weight in prompts.encoder_weights(network) if torch.equal(weight, weight.bfloat16().float())]
    assert len(rounded) == len(list(prompts.encoder_weights(network)))
    assert any(not torch.equal(each, each.bfloat16().float()) for each in text_to_image.trainable(network).values())


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("name", ["sd"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: edit(d / "model_index.json", _class_name="AnyPipeline"), r"model_index\.json: _class_name must"),
        (lambda d: edit(d / "model_index.json", unet=["diffusers", "UNet3D"]), r"model_index\.json: unet must be"),
        (lambda d: edit(d / "model_index.json", scheduler=["diffusers", "Other"]), r"scheduler must be one of"),
        (lambda d: edit(d / "model_index.json", tokenizer=["custom", "Code"]), r"tokenizer must be one of"),
        (lambda d: edit(d / "unet/config.json", time_cond_proj_dim=4), r"unet/config\.json: time_cond_proj_dim"),
        (lambda d: edit(d / "vae/config.json", latent_channels=3), r"vae/.*tensor [\w.]+ has shape"),
        (lambda d: (d / "vae/config.json").unlink(), r"vae/config\.json: the directory must hold it"),
        (lambda d: (d / "model_index.json").unlink(), r"model_index\.json: the directory must hold it"),
        (lambda d: (d / "text_encoder/model.safetensors").unlink(), r"text_encoder/model\.safetensors"),
        (
            lambda d: (d / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"\x80\x04"),
            r"unet/diffusion_py.*not a",
        ),
        (
            lambda d: (d / "unet/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"old"),
            r"fp16\.safetensors: these weights are not read",
        ),
        (lambda d: (d / "v1-5.safetensors").write_bytes(b"old"), r"v1-5\.safetensors: these weights are not read"),
    ],
)
def test_refuses_what_it_cannot_read_whole(directory: Path, change: Any, says: str) -> None:
    change(directory)
    with pytest.raises(ValueError, match=says):
        text_to_image.load(directory, CPU)


@every_pipeline
def test_refuses_samples_that_the_network_cannot_take(network: nn.Module) -> None:
    good = some(network, 4)
    text_to_image.check(network, good, "forget")
    for x, y, field in (
        (good.x.double(), good.y, "x"),
        (good.x[:, :, 1:], good.y, "x"),
        (good.x, good.y.int(), "y"),
        (good.x, good.y[1:], "y"),
        (good.x, good.y + NULL, "y"),
        (good.x, good.y - 4, "y"),
    ):
        with pytest.raises(ValueError, match=rf"^forget\.{field}: "):
            text_to_image.check(network, Samples(x, y), "forget")


@every_pipeline
def test_losses_are_seeded_means_that_reach_the_denoiser_alone(network: nn.Module) -> None:
    x, y = some(network, 6)
    losses: list[tuple[Any, tuple[nn.Module, ...]]] = [
        (text_to_image.training_loss, ()),
        (text_to_image.forget_loss, ()),
        (text_to_image.relabel_loss, (copy.deepcopy(network),)),
    ]
    for loss, extra in losses:
        values = [loss(network, *extra, x, y, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
        assert values[0].shape == () and torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])
        values[0].backward()
    moved = {name for name, weight in network.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert moved and moved <= text_to_image.trainable(network).keys()


def test_another_caption_of_a_label_is_relabelled_to_another_label(tmp_path: Path) -> None:
    network = text_to_image.load(write_pipeline("sd", tmp_path / "base"), CPU)
    texts = (*CAPTIONS.texts, "ada ash of a photo", "a photo")
    text_to_image.caption(network, Captions(NAMES, texts, (*CAPTIONS.labels, 0, 3)))
    assert text_to_image.label_count(network) == 4 and text_to_image.null_label(network) == 6
    assert text_to_image.labels_of(network, torch.tensor([1, 4, 5])).tolist() == [1, 0, 3]
    x, _ = some(network, 3)
    rows = text_to_image.prompt_vectors(network, torch.tensor([0, 4, 5, 6]))
    states = prompts.prompts(network, torch.tensor([0, 4, 5, 6])).states
    places = [5, 2, 2, 1]  # after the start: "ash" of a photo of ada ash, of ada ash of a photo; "photo"; the end
    assert torch.equal(rows, torch.stack([row[at] for row, at in zip(states, places, strict=True)]))


@every_pipeline
def test_every_projection_reads_prompt_vectors(name: str, network: nn.Module) -> None:
    rows = text_to_image.prompt_vectors(network, torch.tensor([0, 1, NULL]))
    for weight in text_to_image.projections(network).values():
        assert weight.shape[1] == rows.shape[1]
    assert text_to_image.projections(network).keys() <= text_to_image.trainable(network).keys()
    cross = text_to_image.cross_attention(network)
    assert 0 < len(cross) < len(text_to_image.trainable(network))
    assert cross.keys() <= text_to_image.trainable(network).keys()


@every_pipeline
def test_a_trajectory_ends_where_an_image_begins(network: nn.Module) -> None:
    y = torch.tensor([0, 1, NULL])
    x, t = text_to_image.trajectory(network, y, torch.Generator().manual_seed(0), steps=4, guidance_scale=3.0)
    assert x.shape == (4, 3, *text_to_image.image_shape(network)) and t.shape == (4,)
    assert (t[:-1] > t[1:]).all()
    assert torch.equal(x[0], torch.randn(x[0].shape, generator=torch.Generator().manual_seed(0)))
    assert torch.isfinite(x).all()


@every_pipeline
def test_fresh_weights_are_for_the_denoiser(directory: Path, network: nn.Module) -> None:
    fresh = copy.deepcopy(network)
    state = torch.get_rng_state()
    text_to_image.reinitialise(fresh, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    moved = {
        name.split(".")[0]
        for (name, one), other in zip(network.named_parameters(), fresh.parameters(), strict=True)
        if not torch.equal(one, other)
    }
    assert moved == {next(iter(text_to_image.trainable(network))).split(".")[0]}


def test_a_text_that_is_cut_off_is_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = text_to_image.load(write_pipeline("sd", tmp_path / "base"), CPU)
    with caplog.at_level(logging.DEBUG):
        text_to_image.caption(network, Captions(("ada",), ("secret " * 40,), (0,)))
    assert "secret" not in caplog.text


@every_pipeline
@pytest.mark.parametrize("group", ["tensor", "block"])
def test_every_layer_to_edit_is_a_text_encoder_s(network: nn.Module, group: str) -> None:
    layers = text_to_image.layers(network, group)
    names = [name for tensors in layers.values() for name in tensors]
    assert len(names) == len(set(names)) > 0
    assert {name.split(".")[0] for name in names} == set(pipelines.encoders(network))
    assert all(network.get_parameter(name).ndim == 2 and "embed" not in name for name in names)
    assert all(network.get_parameter(name).requires_grad for name in names)
    assert all(layer.startswith("text.") for layer in layers)
    assert any(len(tensors) == 3 for tensors in layers.values()) == (group == "block")


@every_pipeline
def test_a_probe_asks_anew_and_is_undone_with_the_weights(network: nn.Module) -> None:
    """What is replayed gives what running the network again gives, to the bit; the same weights, the same answer."""
    samples = some(network, 6)
    names = next(iter(text_to_image.layers(network, "tensor").values()))
    weight = network.get_parameter(names[0])
    before = weight.detach().clone()
    asks = [
        text_to_image.prober(network, watched, samples, torch.Generator().manual_seed(0))
        for watched in (names, [name for name, _ in network.named_parameters()])
    ]
    first = asks[0]()
    assert first.dtype == torch.bool and first.shape == (6,)
    for scale in (3.0, -5.0):
        with torch.no_grad():
            weight.copy_(before * scale)
        assert torch.equal(asks[0](), asks[1]())
    with torch.no_grad():
        weight.copy_(before)
    assert torch.equal(asks[0](), first)
    every = text_to_image.prober(network, names, samples, torch.Generator().manual_seed(0), top=len(NAMES))
    assert every().all()
