"""The guard on pipelines with a folder per component: what the catalogue allows passes, anything else is refused."""

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.catalog import FAMILIES
from app.errors import Refused
from app.privacy.checkpoint_guard import DirectoryFacts, inspect_directory, unpack_model
from tests.tiny_pipelines import PIPELINES, write_pipeline

FAMILY = FAMILIES["text_to_image"]
UNET = "unet/diffusion_pytorch_model.safetensors"
LORA = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline("sd", tmp_path_factory.mktemp("pipelines") / "sd")


@pytest.fixture
def directory(written: Path, tmp_path: Path) -> Path:
    """A copy of a tiny Stable Diffusion that a test may spoil."""
    return Path(shutil.copytree(written, tmp_path / "sd"))


def inspect(directory: Path) -> DirectoryFacts:
    return inspect_directory(directory, FAMILY, "text_to_image")


def refusal(directory: Path) -> Refused:
    with pytest.raises(Refused) as caught:
        inspect(directory)
    assert caught.value.status == 422
    return caught.value


def alter(directory: Path, file: str, **changes: Any) -> Path:
    content = json.loads((directory / file).read_text()) | changes
    (directory / file).write_text(json.dumps({key: value for key, value in content.items() if value != "absent"}))
    return directory


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_as_saved_passes_with_its_facts(name: str, tmp_path: Path) -> None:
    directory = write_pipeline(name, tmp_path / name)
    facts = inspect(directory)
    held = [path for path in directory.rglob("*") if path.is_file()]
    assert facts.class_name == json.loads((directory / "model_index.json").read_text())["_class_name"]
    assert facts.tensors == sum(len(load_file(path)) for path in held if path.suffix == ".safetensors")
    assert facts.bytes == sum(path.stat().st_size for path in held)
    assert (facts.labels, facts.label_names) == (None, None)


def test_texts_and_a_sentencepiece_model_may_come_along(directory: Path) -> None:
    (directory / "README.md").write_text("# ein Modell, ß\n")
    (directory / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (directory / "unet" / "LICENSE").write_text("as it is\n")
    (directory / "tokenizer" / "spiece.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    (directory / "tokenizer" / "vocab.json").write_text('{"auto_map": 0, "trust_remote_code": 1}')
    assert inspect(directory).class_name == "StableDiffusionPipeline"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("README.md", b"\xff\xfe binary"),
        ("README.md", b"text\0"),
        ("LICENSE", b"\x1f\x8b\x08 an archive"),
        ("tokenizer/merges.txt", b"\x00\x01"),
        ("tokenizer/spiece.model", b"#!/bin/sh"),
    ],
)
def test_a_text_that_is_none_is_refused(file: str, content: bytes, directory: Path) -> None:
    (directory / file).write_bytes(content)
    refused = refusal(directory)
    assert (refused.code, refused.field) == ("file-not-allowed", file)


@pytest.mark.parametrize("content", [pickle.dumps({"a": 1}), b"PK\x03\x04 an archive"])
@pytest.mark.parametrize("file", ["README.md", UNET, "tokenizer/merges.txt", "scheduler/scheduler_config.json"])
def test_a_pickle_is_refused_by_content_in_every_folder(content: bytes, file: str, directory: Path) -> None:
    (directory / file).write_bytes(content)
    assert refusal(directory).code == "pickle-refused"


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("unet/diffusion_pytorch_model.bin", "pickle-refused"),
        ("unet/attention.py", "code-refused"),
        ("pipeline.py", "code-refused"),
        ("config.json", "file-not-allowed"),
        ("scheduler/config.json", "file-not-allowed"),
        ("unet/tokenizer.json", "file-not-allowed"),
        ("tokenizer/model.safetensors", "file-not-allowed"),
        ("tokenizer/chat_template.jinja", "file-not-allowed"),
        ("model.safetensors", "file-not-allowed"),
        ("unet/diffusion_pytorch_model.fp16.safetensors", "weights-files"),
        ("vae/model.safetensors", "weights-files"),
        ("notes.txt", "file-not-allowed"),
    ],
)
def test_a_file_where_it_has_no_purpose_is_refused(file: str, code: str, directory: Path) -> None:
    (directory / file).write_text("{}")
    refused = refusal(directory)
    assert (refused.code, refused.field) == (code, file)


def test_only_plain_files_one_folder_deep_are_read(directory: Path, tmp_path: Path) -> None:
    (directory / "unet" / "deeper").mkdir()
    assert refusal(directory).field == "unet/deeper"
    (directory / "unet" / "deeper").rmdir()
    (directory / UNET).rename(tmp_path / "elsewhere")
    (directory / UNET).symlink_to(tmp_path / "elsewhere")
    assert refusal(directory).field == UNET
    (directory / UNET).unlink()
    (tmp_path / "elsewhere").rename(directory / UNET)
    (directory / "vae").rename(tmp_path / "vae")
    (directory / "vae").symlink_to(tmp_path / "vae")
    assert refusal(directory).field == "vae"


@pytest.mark.parametrize(
    "changes",
    [
        {"_class_name": "DiffusionPipeline"},
        {"_class_name": ["pipeline", "MyPipeline"]},
        {"_class_name": "absent"},
        {"unet": ["diffusers", "UNet2DModel"]},
        {"unet": ["my_module", "UNet2DConditionModel"]},
        {"unet": ["transformers", "UNet2DConditionModel"]},
        {"unet": ["diffusers"]},
        {"unet": {"diffusers": "UNet2DConditionModel"}},
        {"text_encoder": ["transformers", "BertModel"]},
        {"tokenizer": ["transformers", "AutoTokenizer"]},
        {"scheduler": ["diffusers", "KarrasVeScheduler"]},
        {"safety_checker": ["os", "system"]},
        {"prior": ["diffusers", "UNet2DConditionModel"]},
    ],
)
def test_an_index_that_names_anything_else_is_refused(changes: dict[str, Any], directory: Path) -> None:
    refused = refusal(alter(directory, "model_index.json", **changes))
    assert (refused.code, refused.field) == ("class-not-allowed", f"model_index.json: {next(iter(changes))}")


def test_index_and_folders_must_agree(directory: Path, tmp_path: Path) -> None:
    refused = refusal(alter(directory, "model_index.json", text_encoder_2=["transformers", "T5EncoderModel"]))
    assert (refused.code, refused.field) == ("file-not-allowed", "text_encoder_2")
    refused = refusal(alter(directory, "model_index.json", text_encoder_2=[None, None], vae=[None, None]))
    assert (refused.code, refused.field) == ("file-not-allowed", "vae")
    shutil.rmtree(directory / "vae")
    assert "needs vae" in refusal(directory).rule
    (directory / "model_index.json").unlink()
    assert refusal(directory).field == "model_index.json"
    custom = alter(write_pipeline("sd", tmp_path / "custom"), "model_index.json", variant="../elsewhere")
    assert refusal(custom).field == "model_index.json: variant"


@pytest.mark.parametrize(
    ("file", "changes", "code", "where"),
    [
        ("unet/config.json", {"_class_name": "AutoencoderKL"}, "class-not-allowed", "_class_name"),
        ("text_encoder/config.json", {"architectures": ["CLIPTextModelWithProjection"]}, "class-not-allowed", "architectures"),
        ("text_encoder/config.json", {"model_type": "bert"}, "class-not-allowed", "model_type"),
        ("text_encoder/config.json", {"text_config": {"model_type": "timm_wrapper"}}, "class-not-allowed", "text_config.model_type"),
        ("text_encoder/config.json", {"backbone_config": {"model_type": "clip"}}, "class-not-allowed", "backbone_config.model_type"),
        ("text_encoder/config.json", {"text_config": {"architectures": ["Evil"]}}, "class-not-allowed", "text_config.architectures"),
        ("text_encoder/config.json", {"text_config": {"auto_map": {}}}, "code-refused", "auto_map"),
        ("text_encoder/config.json", {"_attn_implementation": "someone/kernels"}, "code-refused", "_attn_implementation"),
        ("text_encoder/config.json", {"tokenizer_class": "Evil"}, "class-not-allowed", "tokenizer_class"),
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "class-not-allowed", "_class_name"),
        ("scheduler/scheduler_config.json", {"prediction_type": "noise"}, "config-value", "prediction_type"),
        ("tokenizer/tokenizer_config.json", {"tokenizer_class": "BertTokenizer"}, "class-not-allowed", "tokenizer_class"),
        ("tokenizer/tokenizer_config.json", {"auto_map": {"AutoTokenizer": "x.Y"}}, "code-refused", "auto_map"),
        ("tokenizer/tokenizer_config.json", {"chat_template": "{{ x }}"}, "code-refused", "chat_template"),
        ("tokenizer/tokenizer_config.json", {"vocab_file": "/etc/passwd"}, "config-value", "vocab_file"),
        ("model_index.json", {"custom_pipeline": "x"}, "code-refused", "custom_pipeline"),
    ],
)  # fmt: skip
def test_what_a_component_names_is_held_to_the_list(
    file: str, changes: dict[str, Any], code: str, where: str, directory: Path
) -> None:
    refused = refusal(alter(directory, file, **changes))
    assert (refused.code, refused.field) == (code, f"{file}: {where}")


@pytest.mark.parametrize(
    ("name", "folder", "changes", "tensor"),
    [
        (
            "sd",
            "unet",
            {"cross_attention_dim": 24},
            "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight",
        ),
        ("sd", "unet", {"in_channels": 9}, "conv_in.weight"),
        ("sd", "unet", {"block_out_channels": [8, 16, 16, 16]}, "down_blocks"),
        ("sd", "vae", {"latent_channels": 8}, "encoder.conv_out.weight"),
        ("sd", "text_encoder", {"hidden_size": 32}, "*embeddings.token_embedding.weight"),
        ("sd", "text_encoder", {"num_hidden_layers": 3}, "*encoder.layers"),
        ("sdxl", "text_encoder_2", {"projection_dim": 8}, "text_projection.weight"),
        ("sd3", "transformer", {"joint_attention_dim": 16}, "context_embedder.weight"),
        ("sd3", "text_encoder_3", {"d_model": 8}, "encoder.block.0.layer.0.SelfAttention.q.weight"),
        ("flux", "transformer", {"num_single_layers": 2}, "single_transformer_blocks"),
        ("flux", "transformer", {"in_channels": 4}, "x_embedder.weight"),
    ],
)
def test_a_config_of_another_component_names_the_tensor(
    name: str, folder: str, changes: dict[str, Any], tensor: str, tmp_path: Path
) -> None:
    refused = refusal(alter(write_pipeline(name, tmp_path / name), f"{folder}/config.json", **changes))
    assert (refused.code, refused.field) == ("config-mismatch", f"{folder}/config.json: {tensor}")


def shard(directory: Path, file: str = UNET, count: int = 2) -> list[Path]:
    """Split one file into shards with an index, as save_pretrained would."""
    whole = directory / file
    tensors, stem = load_file(whole), whole.name.removesuffix(".safetensors")
    shards = [f"{stem}-{number + 1:05}-of-{count:05}.safetensors" for number in range(count)]
    placed = {name: shards[position % count] for position, name in enumerate(sorted(tensors))}
    for name in shards:
        mine = {key: tensor for key, tensor in tensors.items() if placed[key] == name}
        save_file(mine, whole.parent / name, {"format": "pt"})
    index = {"metadata": {"total_size": sum(each.nbytes for each in tensors.values())}, "weight_map": placed}
    whole.with_name(f"{whole.name}.index.json").write_text(json.dumps(index))
    whole.unlink()
    return [whole.parent / name for name in shards]


def test_shards_with_their_index_pass(written: Path, directory: Path) -> None:
    shard(directory)
    assert inspect(directory).tensors == inspect(written).tensors


def drop_entry(index: dict[str, Any]) -> None:
    index["weight_map"].popitem()


def add_entry(index: dict[str, Any]) -> None:
    index["weight_map"]["stranger"] = next(iter(index["weight_map"].values()))


def swap_entry(index: dict[str, Any]) -> None:
    files = sorted(set(index["weight_map"].values()))
    name = next(iter(index["weight_map"]))
    index["weight_map"][name] = files[files.index(index["weight_map"][name]) - 1]


def lead_outside(index: dict[str, Any]) -> None:
    index["weight_map"]["conv_in.bias"] = "../vae/diffusion_pytorch_model.safetensors"


def lead_nowhere(index: dict[str, Any]) -> None:
    index["weight_map"]["conv_in.bias"] = "diffusion_pytorch_model-00009-of-00009.safetensors"


def lose_map(index: dict[str, Any]) -> None:
    del index["weight_map"]


@pytest.mark.parametrize("change", [drop_entry, add_entry, swap_entry, lead_outside, lead_nowhere, lose_map])
def test_an_index_that_does_not_fit_its_shards_is_refused(
    change: Callable[[dict[str, Any]], None], directory: Path
) -> None:
    shard(directory)
    path = directory / f"{UNET}.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    assert refusal(directory).code == "weights-files"


def test_a_tensor_in_two_shards_and_a_shard_too_many_are_refused(directory: Path) -> None:
    first, second = shard(directory)
    before = first.read_bytes()
    save_file(load_file(first) | dict(list(load_file(second).items())[:1]), first)
    assert refusal(directory).code == "weights-files"
    first.write_bytes(before)
    shutil.copyfile(first, first.with_name("diffusion_pytorch_model-00003-of-00003.safetensors"))
    assert refusal(directory).field == "unet/diffusion_pytorch_model-00003-of-00003.safetensors"


def lora(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    return {f"{layer}.lora_A.weight": torch.zeros(2, 16), f"{layer}.lora_B.weight": torch.zeros(16, 2)} | changes


def test_a_lora_may_lie_beside_the_index_and_nowhere_else(written: Path, directory: Path) -> None:
    settings = {"unet.r": 2, "unet.lora_alpha": 8, "unet.use_dora": False, "unet.target_modules": ["to_k"]}
    save_file(lora(), directory / LORA, {"lora_adapter_metadata": json.dumps(settings)})
    assert inspect(directory).tensors == inspect(written).tensors + 2
    (directory / LORA).rename(directory / "unet" / LORA)
    assert refusal(directory).field == f"unet/{LORA}"


@pytest.mark.parametrize(
    "settings",
    [
        {"unet.r": 2, "unet.lora_alpha": 2, "unet.megatron_core": "os"},
        {"unet.r": 2, "unet.lora_alpha": 2, "unet.use_dora": True},
        {"unet.r": "4", "unet.lora_alpha": 2},
        {"unet.r": 2, "unet.lora_alpha": -1},
        {"text_encoder.r": 2, "text_encoder.lora_alpha": 2},
        [],
        "{",
    ],
)
def test_a_lora_of_another_kind_is_refused(settings: Any, directory: Path) -> None:
    text = settings if isinstance(settings, str) else json.dumps(settings)
    save_file(lora(), directory / LORA, {"lora_adapter_metadata": text})
    assert refusal(directory).code == "lora-format"


@pytest.mark.parametrize(
    "tensors",
    [
        lora(stranger=torch.zeros(1)),
        lora(**{"unet.conv_in.lora_A.weight": torch.zeros(2, 4)}),
        {name: torch.zeros(3, 3) if "lora_A" in name else tensor for name, tensor in lora().items()},
    ],
)
def test_a_lora_of_halves_or_other_tensors_is_refused(tensors: dict[str, torch.Tensor], directory: Path) -> None:
    save_file(tensors, directory / LORA)
    assert refusal(directory).code == "lora-format"


@pytest.mark.parametrize("top", ["", "my-model/", "./my-model/"])
def test_an_uploaded_pipeline_is_unpacked_byte_for_byte(top: str, written: Path, tmp_path: Path) -> None:
    held = {path.relative_to(written).as_posix(): path.read_bytes() for path in written.rglob("*") if path.is_file()}
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        for name in reversed(held):
            opened.writestr(top + name, held[name])
    target = tmp_path / "new"
    unpack_model(archive, target)
    assert {
        path.relative_to(target).as_posix(): path.read_bytes() for path in target.rglob("*") if path.is_file()
    } == held
    assert inspect(target) == inspect(written)
