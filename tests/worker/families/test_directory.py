"""Directories: every layout that the libraries write is read into float32 and written back as it was."""

import copy
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    T5Config,
    T5EncoderModel,
    ViTForImageClassification,
)

from tests import tiny
from worker.families import directory as directories

WIDTHS: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
KINDS: dict[str, Any] = {
    "vit": ViTForImageClassification,
    "unet": UNet2DModel,
    "vae": AutoencoderKL,
    "clip_text": CLIPTextModel,
    "t5": T5EncoderModel,
    "llava": LlavaForConditionalGeneration,
    "llava_tied": LlavaForConditionalGeneration,
}
every_kind = pytest.mark.parametrize("name", KINDS)


def build(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    if name in ("vit", "unet"):
        return tiny.write(name, folder)
    if name == "vae":
        network: Any = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2)
    elif name == "clip_text":
        network = CLIPTextModel(CLIPTextConfig(**WIDTHS, vocab_size=20, eos_token_id=1, bos_token_id=0))
    elif name == "t5":
        network = T5EncoderModel(T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, vocab_size=20))
    else:
        tied = name == "llava_tied"
        text = LlamaConfig(**WIDTHS, vocab_size=20, num_key_value_heads=2, tie_word_embeddings=tied)
        vision = CLIPVisionConfig(**WIDTHS, patch_size=4, image_size=8)
        network = LlavaForConditionalGeneration(
            LlavaConfig(text_config=text, vision_config=vision, image_token_index=3, tie_word_embeddings=tied)
        )
    network.save_pretrained(folder)
    return folder


def open_one(name: str, folder: Path) -> nn.Module:
    kind = KINDS[name]
    if kind.__module__.startswith("diffusers"):
        return directories.open_diffusers(kind, folder)
    return directories.open_transformers(kind, folder)


def stem_of(name: str) -> str:
    return "diffusion_pytorch_model" if name in ("unet", "vae") else "model"


def held(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rewrite(folder: Path, name: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], **extra: str) -> None:
    path = folder / f"{stem_of(name)}.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt", **extra})


def shard(folder: Path, name: str, count: int = 3) -> None:
    stem = stem_of(name)
    tensors = load_file(folder / f"{stem}.safetensors")
    files = [f"{stem}-{number + 1:05}-of-{count:05}.safetensors" for number in range(count)]
    placed = {key: files[at % count] for at, key in enumerate(tensors)}
    for file in files:
        save_file({key: tensors[key] for key in tensors if placed[key] == file}, folder / file, {"format": "pt"})
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    (folder / f"{stem}.safetensors").unlink()


def halve(dtype: torch.dtype, every: int = 1) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {
        key: tensor.to(dtype) if tensor.is_floating_point() and at % every == 0 else tensor
        for at, (key, tensor) in enumerate(tensors.items())
    }


def reorder(folder: Path, name: str) -> None:
    """The header in another order than the bytes, with spaces at its end, as other writers leave it."""
    path = folder / f"{stem_of(name)}.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    declared = json.loads(raw[8 : 8 + length])
    header = json.dumps(dict(reversed(declared.items()))).encode() + b" " * 9
    path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])


LAYOUTS: dict[str, Callable[[Path, str], None]] = {
    "as_saved": lambda folder, name: None,
    "half": lambda folder, name: rewrite(folder, name, halve(torch.float16)),
    "bfloat": lambda folder, name: rewrite(folder, name, halve(torch.bfloat16)),
    "mixed": lambda folder, name: rewrite(folder, name, halve(torch.float16, every=2)),
    "metadata": lambda folder, name: rewrite(folder, name, lambda tensors: tensors, step="7", note="ä"),
    "reordered": reorder,
    "sharded": shard,
}


@every_kind
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_unchanged_network_is_written_back_byte_for_byte(name: str, layout: str, tmp_path: Path) -> None:
    base = build(name, tmp_path / "base")
    LAYOUTS[layout](base, name)
    (base / "README.md").write_text("a card\n")
    state = torch.get_rng_state()
    network = open_one(name, base)
    assert torch.equal(torch.get_rng_state(), state)
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    assert not network.training
    assert all(weight.is_contiguous() and weight.requires_grad for weight in network.parameters())
    before = held(base)
    directories.save({"": network}, tmp_path / "copy", base)
    assert held(tmp_path / "copy") == held(base) == before


@every_kind
@pytest.mark.parametrize("layout", ["as_saved", "bfloat", "sharded"])
def test_only_what_changed_differs_and_the_library_opens_it(name: str, layout: str, tmp_path: Path) -> None:
    base = build(name, tmp_path / "base")
    LAYOUTS[layout](base, name)
    network = copy.deepcopy(open_one(name, base))
    moved, weight = next((key, each) for key, each in network.named_parameters() if each.ndim == 2)
    with torch.no_grad():
        weight.add_(0.5)
    directories.round_to_stored(network)
    directories.save({"": network}, tmp_path / "changed", base)
    files = [path.name for path in directories.weight_files(base, stem_of(name))]
    then, now = (directories.read_weights(folder / file for file in files) for folder in (base, tmp_path / "changed"))
    assert list(then) == list(now)
    different = [key for key in then if not torch.equal(then[key], now[key])]
    assert [network.__dict__["stored_names"][key] for key in different] == [moved]
    reopened = KINDS[name].from_pretrained(tmp_path / "changed", torch_dtype=torch.float32)
    for key, tensor in network.state_dict().items():
        assert torch.equal(reopened.state_dict()[key], tensor), key


def test_the_weights_are_those_that_the_library_reads(tmp_path: Path) -> None:
    for name, kind in KINDS.items():
        base = build(name, tmp_path / name)
        ours, theirs = open_one(name, base).state_dict(), kind.from_pretrained(base).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_tied_weights_stay_tied_whether_stored_once_or_twice(tmp_path: Path) -> None:
    base = build("llava_tied", tmp_path / "base")
    stored = load_file(base / "model.safetensors")
    assert "language_model.lm_head.weight" not in stored
    twice = stored | {"language_model.lm_head.weight": stored["language_model.model.embed_tokens.weight"].clone()}
    for tensors in (stored, twice):
        save_file(tensors, base / "model.safetensors", {"format": "pt"})
        network: Any = copy.deepcopy(open_one("llava_tied", base))
        assert network.lm_head.weight is network.model.language_model.embed_tokens.weight
        with torch.no_grad():
            network.lm_head.weight.add_(1)
        directories.save({"": network}, tmp_path / "copy", base)
        written = load_file(tmp_path / "copy" / "model.safetensors")
        assert written.keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert torch.equal(written[key], tensor + ("lm_head" in key or "embed_tokens" in key)), key


def test_names_of_older_files_are_read_and_kept(tmp_path: Path) -> None:
    text = build("clip_text", tmp_path / "text")
    rewrite(text, "clip_text", lambda tensors: {f"text_model.{key}": tensor for key, tensor in tensors.items()}
            | {"text_model.embeddings.position_ids": torch.arange(77).expand(1, -1).contiguous()})  # fmt: skip
    vae = build("vae", tmp_path / "vae")
    old = {new: name for name, new in directories.RENAMED.items()}
    rewrite(vae, "vae", lambda tensors: {
        next((key.replace(new, name) for new, name in old.items() if new in key), key): tensor
        for key, tensor in tensors.items()
    })  # fmt: skip
    for name, base in (("clip_text", text), ("vae", vae)):
        network = open_one(name, base)
        theirs = KINDS[name].from_pretrained(base).state_dict()
        assert all(torch.equal(theirs[key], tensor) for key, tensor in network.state_dict().items())
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(1)
        directories.save({"": network}, tmp_path / f"{name}-changed", base)
        then = load_file(base / f"{stem_of(name)}.safetensors")
        now = load_file(tmp_path / f"{name}-changed" / f"{stem_of(name)}.safetensors")
        for key, tensor in then.items():
            assert torch.equal(now[key], tensor if key.endswith("position_ids") else tensor + 1), key


def test_several_networks_of_one_directory_are_written_each_to_its_folder(tmp_path: Path) -> None:
    base = tmp_path / "base"
    parts = {"text_encoder": "clip_text", "text_encoder_2": "clip_text", "vae": "vae"}
    for folder, name in parts.items():
        build(name, base / folder)
    (base / "model_index.json").write_text("{}")
    networks = {folder: open_one(name, base / folder) for folder, name in parts.items()}
    with torch.no_grad():
        next(networks["text_encoder_2"].parameters()).add_(1)
    directories.save(networks, tmp_path / "copy", base)
    then, now = held(base), held(tmp_path / "copy")
    assert [file for file in then if then[file] != now[file]] == ["text_encoder_2/model.safetensors"]
    assert then.keys() == now.keys()


def test_a_round_to_what_the_file_holds_is_what_is_read_again(tmp_path: Path) -> None:
    base = build("vit", tmp_path / "base")
    rewrite(base, "vit", halve(torch.bfloat16, every=2))
    network = open_one("vit", base)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1.2345)
    directories.round_to_stored(network)
    directories.save({"": network}, tmp_path / "copy", base)
    again = open_one("vit", tmp_path / "copy").state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in network.state_dict().items())
    with safe_open(tmp_path / "copy" / "model.safetensors", "pt") as file:
        names = list(file.keys())
        assert {file.get_slice(name).get_dtype() for name in names} == {"F32", "BF16"}


def test_a_changed_tensor_without_a_place_in_the_files_is_not_lost_in_silence(tmp_path: Path) -> None:
    base = build("vit", tmp_path / "base")
    network = open_one("vit", base)
    files = directories.weight_files(base, "model")
    with pytest.raises(ValueError, match=r"tensor vit\.layers\S+ has no place in the files"):
        directories.save_like(network.state_dict(), files, tmp_path / "copy", base)
    with pytest.raises(ValueError, match="another shape"):
        directories.write_like({"classifier.bias": torch.zeros(9)}, tmp_path / "one", files[0])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "model-00002-of-00003.safetensors").unlink(), "does not hold it"),
        (lambda folder: (folder / "model.safetensors.index.json").unlink(), "the directory must hold it"),
        (lambda folder: shutil.copyfile(*sorted(folder.glob("model-*"))[:2]), "is also in another shard"),
        (lambda folder: (folder / "model-00003-of-00003.safetensors").write_bytes(b"{}"), "not a safetensors file"),
    ],
)
def test_broken_shards_are_refused_by_name(spoil: Callable[[Path], Any], says: str, tmp_path: Path) -> None:
    base = build("vit", tmp_path / "base")
    shard(base, "vit")
    spoil(base)
    with pytest.raises(ValueError, match=rf"model\S*\.safetensors: .*{says}"):
        open_one("vit", base)


class Pieces(io.BytesIO):
    """Remembers how much was written at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def write(self, piece: Any) -> int:
        self.sizes.append(len(memoryview(piece).cast("B")))
        return super().write(piece)


def test_a_huge_tensor_is_converted_and_written_piece_by_piece() -> None:
    big, file = torch.randn(2 * directories.BLOCK + 5), Pieces()
    directories.write_tensor(big, "BF16", file)
    assert file.sizes == [2 * directories.BLOCK, 2 * directories.BLOCK, 10]
    assert torch.equal(torch.frombuffer(file.getbuffer(), dtype=torch.bfloat16), big.bfloat16())
