"""A LoRA beside a pipeline: the family sees the adapted network, the files keep base weights and LoRA apart."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny_pipelines import write_pipeline
from worker.families import directory as directories
from worker.families import lora, pipelines

CPU = torch.device("cpu")
TO_K = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "down_blocks.0.resnets.0.conv1"
Q = "encoder.layers.0.self_attn.q_proj"
RANK, ALPHA = 2, 6


def matrices() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        f"unet.{TO_K}": ((RANK, 16), (8, RANK)),
        f"unet.{CONV}": ((RANK, 8, 3, 3), (8, RANK, 1, 1)),
        f"text_encoder.{Q}": ((RANK, 16), (16, RANK)),
    }
    halves = [
        (f"{name}{end}", shape)
        for name, both in shapes.items()
        for end, shape in zip((lora.DOWN, lora.UP), both, strict=True)
    ]
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in halves}


def write(directory: Path, dtype: torch.dtype = torch.float32, tensors: dict[str, Tensor] | None = None) -> Path:
    write_pipeline("sd", directory)
    for path in directory.glob("*/*.safetensors"):
        save_file({name: each.to(dtype) for name, each in load_file(path).items()}, path, {"format": "pt"})
    settings = {
        "unet.r": RANK,
        "unet.lora_alpha": ALPHA,
        "unet.target_modules": ["attn2.to_k", "resnets.0.conv1"],
        "text_encoder.r": RANK,
        "text_encoder.lora_alpha": RANK,
        "text_encoder.target_modules": ["layers.0.self_attn.q_proj"],
    }
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(settings)}
    save_file(matrices() if tensors is None else tensors, directory / lora.FILE, metadata)
    return directory


def held(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_network_is_the_sum_and_is_written_back_apart(dtype: torch.dtype, tmp_path: Path) -> None:
    base = write(tmp_path / "base", dtype)
    network = pipelines.load(base, CPU)
    stored = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    found, scale = matrices(), ALPHA / RANK
    own = network.get_submodule("unet").state_dict()
    product = found[f"unet.{TO_K}{lora.UP}"] @ found[f"unet.{TO_K}{lora.DOWN}"]
    assert torch.allclose(own[f"{TO_K}.weight"], stored[f"{TO_K}.weight"].float() + scale * product, atol=1e-6)
    untouched = [name for name in stored if name not in (f"{TO_K}.weight", f"{CONV}.weight")]
    assert all(torch.equal(own[name], stored[name].float()) for name in untouched)
    directories.round_to_stored(network)
    pipelines.save(network, tmp_path / "copy", base)
    assert held(tmp_path / "copy") == held(base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_move_of_the_sum_is_a_move_of_the_base(dtype: torch.dtype, tmp_path: Path) -> None:
    base = write(tmp_path / "base", dtype)
    network = pipelines.load(base, CPU)
    unet: Any = network.get_submodule("unet")
    with torch.no_grad():
        unet.get_parameter(f"{TO_K}.weight")[:4].add_(0.5)
    directories.round_to_stored(network)
    pipelines.save(network, tmp_path / "moved", base)
    file = "unet/diffusion_pytorch_model.safetensors"
    assert [name for name, raw in held(base).items() if raw != held(tmp_path / "moved")[name]] == [file]
    then, now = load_file(base / file), load_file(tmp_path / "moved" / file)
    assert [name for name in then if not torch.equal(then[name], now[name])] == [f"{TO_K}.weight"]
    assert torch.equal(then[f"{TO_K}.weight"][4:], now[f"{TO_K}.weight"][4:])
    again = pipelines.load(tmp_path / "moved", CPU).state_dict()
    tolerance = {"rtol": 0.0, "atol": 1e-6}
    assert all(torch.allclose(again[name], tensor, **tolerance) for name, tensor in network.state_dict().items())


def test_plain_diffusers_computes_what_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    base = write(tmp_path / "base")
    network = pipelines.load(base, CPU)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    pipelines.save(network, tmp_path / "unlearned", base)
    plain: Any = StableDiffusionPipeline.from_pretrained(tmp_path / "unlearned", safety_checker=None)
    plain.load_lora_weights(tmp_path / "unlearned")
    x, t, tokens = torch.randn(2, 4, 8, 8), torch.tensor([3, 50]), torch.arange(20).reshape(2, 10)
    ours: Any = network
    with torch.no_grad():
        texts = plain.text_encoder(tokens).last_hidden_state
        assert torch.allclose(ours.text_encoder(tokens).last_hidden_state, texts, atol=1e-4)
        wanted = plain.unet(x, t, texts).sample
        assert torch.allclose(ours.unet(x, t, texts).sample, wanted, atol=1e-4)
        plain.unload_lora_weights()
        assert not torch.allclose(plain.unet(x, t, texts).sample, wanted, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"unet.nowhere.lora_A.weight": torch.zeros(2, 16)}, "adapts no weight"),
        ({"decoder.x.lora_A.weight": torch.zeros(2, 16)}, "adapts no weight"),
        ({f"unet.{TO_K}.alpha": torch.zeros(())}, "is not a matrix"),
        ({f"unet.{TO_K}{lora.DOWN}": torch.zeros(RANK, 9)}, "does not have the shape"),
    ],
)
def test_a_lora_that_does_not_fit_is_refused_by_name(change: dict[str, Tensor], says: str, tmp_path: Path) -> None:
    base = write(tmp_path / "base", tensors=matrices() | change)
    with pytest.raises(ValueError, match=rf"pytorch_lora_weights\.safetensors: tensor \S+ {says}"):
        pipelines.load(base, CPU)


def test_the_lora_keeps_its_own_dtype_and_settings(tmp_path: Path) -> None:
    base = write(tmp_path / "base", tensors={name: tensor.half() for name, tensor in matrices().items()})
    pipelines.save(pipelines.load(base, CPU), tmp_path / "copy", base)
    with safe_open(tmp_path / "copy" / lora.FILE, "pt") as file:
        assert json.loads(file.metadata()["lora_adapter_metadata"])["unet.lora_alpha"] == ALPHA
        assert file.get_slice(f"unet.{TO_K}{lora.DOWN}").get_dtype() == "F16"
