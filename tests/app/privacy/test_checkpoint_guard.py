"""The guard for model directories, on real tiny networks whose config, weights or files were altered."""

import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)

from app.catalog import FAMILIES
from app.errors import Refused
from app.privacy.archive import Limits
from app.privacy.checkpoint_guard import WEIGHTS, DirectoryFacts, inspect_directory, unpack_model
from tests import tiny


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: tiny.write(name, tmp_path / name)


def inspect(directory: Path, family: str = "") -> DirectoryFacts:
    family = family or tiny.NETWORKS[directory.name]
    return inspect_directory(directory, FAMILIES[family], family)


def refusal(directory: Path, family: str = "") -> Refused:
    with pytest.raises(Refused) as caught:
        inspect(directory, family)
    assert caught.value.status == 422
    return caught.value


def weights_of(directory: Path) -> Path:
    return directory / WEIGHTS[FAMILIES[tiny.NETWORKS[directory.name]].library]


def alter(directory: Path, file: str = "config.json", **changes: Any) -> Path:
    content = json.loads((directory / file).read_text()) | changes
    (directory / file).write_text(json.dumps({key: value for key, value in content.items() if value != "absent"}))
    return directory


def reweigh(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    tensors = load_file(weights_of(directory))
    change(tensors)
    save_file(tensors, weights_of(directory))
    return directory


@pytest.mark.parametrize("name", tiny.NETWORKS)
def test_a_directory_as_saved_passes_with_the_facts_that_the_network_has(
    name: str, write: Callable[[str], Path]
) -> None:
    directory = write(name)
    family = tiny.FAMILIES[tiny.NETWORKS[name]]
    network = family.load(directory, torch.device("cpu"))
    facts = inspect(directory)
    assert facts.class_name == type(network).__name__
    known = FAMILIES[tiny.NETWORKS[name]].labels_from == "weights"
    assert facts.labels == (family.label_count(network) if known else None)
    assert facts.image_shape == family.image_shape(directory)
    assert facts.tensors == len(load_file(weights_of(directory)))
    assert facts.bytes == sum(path.stat().st_size for path in directory.iterdir())
    assert facts.label_names is None


def test_label_names_are_read_in_the_order_of_their_numbers(write: Callable[[str], Path]) -> None:
    directory = alter(write("vit"), id2label={"3": "d", "0": "a", "2": "c", "1": "b"})
    assert inspect(directory).label_names == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "network",
    [
        lambda: DeiTForImageClassification(
            DeiTConfig(
                hidden_size=8,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=8,
                image_size=8,
                patch_size=4,
            )
        ),
        lambda: ConvNextForImageClassification(
            ConvNextConfig(hidden_sizes=[4, 8, 8, 8], depths=[1, 1, 1, 1], image_size=32)
        ),
        lambda: ResNetForImageClassification(
            ResNetConfig(embedding_size=4, hidden_sizes=[8, 16], depths=[1, 2], image_size=32)  # type: ignore[call-arg]
        ),
    ],
)
def test_other_classifiers_pass_and_a_wrong_label_count_does_not(network: Callable[[], Any], tmp_path: Path) -> None:
    network().save_pretrained(tmp_path / "other")
    assert inspect(tmp_path / "other", "image_classifier").labels == 2
    alter(tmp_path / "other", id2label={str(number): f"n{number}" for number in range(7)})
    refused = refusal(tmp_path / "other", "image_classifier")
    assert refused.code == "config-mismatch" and "classifier" in refused.field


@pytest.mark.parametrize(
    ("name", "changes", "tensor"),
    [
        ("unet", {"block_out_channels": [8, 24]}, "mid_block.resnets.0.conv1.weight"),
        ("unet", {"block_out_channels": [16, 16]}, "conv_in.weight"),
        ("unet", {"in_channels": 3, "out_channels": 3}, "conv_in.weight"),
        ("unet", {"layers_per_block": 2}, "down_blocks.0.resnets.1.conv1.weight"),
        ("unet", {"num_class_embeds": 11}, "class_embedding.weight"),
        ("unet", {"down_block_types": ["DownBlock2D", "DownBlock2D"]}, "down_blocks.1.attentions"),
        ("unet", {"up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D"]}, "up_blocks.1.attentions"),
        ("unet", {"add_attention": False}, "mid_block.attentions"),
        ("unet", {"time_embedding_dim": 64}, "time_embedding.linear_1.weight"),
        ("unet", {"time_embedding_type": "fourier"}, "time_embedding.linear_1.weight"),
        ("dit", {"num_attention_heads": 4}, "pos_embed.proj.weight"),
        ("dit", {"patch_size": 4}, "pos_embed.proj.weight"),
        ("dit", {"num_layers": 2}, "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"),
        ("dit", {"num_embeds_ada_norm": 10}, "transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight"),
        ("dit", {"out_channels": 1}, "proj_out_2.weight"),
        ("vit", {"hidden_size": 32}, "vit.embeddings.patch_embeddings.projection.weight"),
        ("vit", {"num_hidden_layers": 0}, "vit.encoder.layer"),
        ("vit", {"intermediate_size": 64}, "vit.encoder.layer.0.intermediate.dense.weight"),
        ("vit", {"patch_size": 2}, "vit.embeddings.patch_embeddings.projection.weight"),
        ("vit", {"num_channels": 1}, "vit.embeddings.patch_embeddings.projection.weight"),
        ("vit", {"id2label": {"0": "a", "1": "b"}}, "classifier.weight"),
        ("vit", {"id2label": "absent"}, "classifier.weight"),
        ("resnet", {"embedding_size": 4}, "resnet.embedder.embedder.convolution.weight"),
        ("resnet", {"hidden_sizes": [8, 32]}, "classifier.1.weight"),
        ("resnet", {"depths": [1, 2]}, "resnet.encoder.stages.1.layers.1.layer.0.convolution.weight"),
        ("resnet", {"layer_type": "bottleneck"}, "resnet.encoder.stages.0.layers.0.layer.0.convolution.weight"),
        ("resnet", {"num_channels": 1}, "resnet.embedder.embedder.convolution.weight"),
    ],
)
def test_a_config_of_another_network_names_the_tensor(
    name: str, changes: dict[str, Any], tensor: str, write: Callable[[str], Path]
) -> None:
    refused = refusal(alter(write(name), **changes))
    assert (refused.code, refused.field) == ("config-mismatch", f"config.json: {tensor}")
    assert "the config implies" in refused.rule and "the weights" in refused.rule


HEADS = {
    "unet": "conv_out.weight",
    "dit": "proj_out_2.weight",
    "resnet": "classifier.1.weight",
    "vit": "classifier.weight",
    "mae": "decoder.decoder_pred.weight",
    "vq": "quantize.embedding.weight",
    "kl": "decoder.conv_out.weight",
    "inpainting": "conv_out.weight",
}


@pytest.mark.parametrize("name", HEADS)
def test_weights_that_lost_a_tensor_or_changed_its_shape_are_refused(name: str, write: Callable[[str], Path]) -> None:
    directory = write(name)
    shape = list(load_file(weights_of(directory))[HEADS[name]].shape)
    refused = refusal(reweigh(directory, lambda tensors: tensors.update({HEADS[name]: torch.zeros(2, 2)})))
    assert refused.field == f"config.json: {HEADS[name]}"
    assert f"implies shape {shape}, the weights hold [2, 2]" in refused.rule
    assert "no such tensor" in refusal(reweigh(directory, lambda tensors: tensors.__delitem__(HEADS[name]))).rule


def test_weights_with_more_blocks_than_the_config_are_refused(write: Callable[[str], Path]) -> None:
    extra = {"down_blocks.2.resnets.0.conv1.weight": torch.zeros(1)}
    assert refusal(reweigh(write("unet"), lambda tensors: tensors.update(extra))).field == "config.json: down_blocks"


@pytest.mark.parametrize(
    ("name", "changes", "key"),
    [
        ("unet", {"block_out_channels": "8"}, "block_out_channels"),
        ("unet", {"block_out_channels": [8, -16]}, "block_out_channels"),
        ("unet", {"block_out_channels": [8, 16, 16]}, "block_out_channels"),
        ("unet", {"layers_per_block": 10**9}, "layers_per_block"),
        ("unet", {"sample_size": None}, "sample_size"),
        ("unet", {"sample_size": [8, "8"]}, "sample_size"),
        ("unet", {"num_class_embeds": None}, "num_class_embeds"),
        ("unet", {"num_class_embeds": 2}, "num_class_embeds"),
        ("unet", {"class_embed_type": "timestep"}, "block_out_channels"),
        ("unet", {"out_channels": 2}, "in_channels"),
        ("dit", {"in_channels": 4}, "in_channels"),
        ("dit", {"num_layers": 10**12}, "num_layers"),
        ("dit", {"num_attention_heads": True}, "num_attention_heads"),
        ("vit", {"num_attention_heads": 3}, "num_attention_heads"),
        ("vit", {"num_attention_heads": 0}, "num_attention_heads"),
        ("vit", {"patch_size": 0}, "patch_size"),
        ("vit", {"image_size": 16}, "image_size"),
        ("vit", {"id2label": {"0": "a", "2": "b"}}, "id2label"),
        ("vit", {"id2label": {"0": "a"}}, "id2label"),
        ("vit", {"id2label": ["a", "b"]}, "id2label"),
        ("resnet", {"depths": [1]}, "depths"),
    ],
)
def test_a_config_value_that_makes_no_network_names_its_key(
    name: str, changes: dict[str, Any], key: str, write: Callable[[str], Path]
) -> None:
    if changes.get("patch_size") == 0:
        changes = {"patch_size": [0, 0]}
    refused = refusal(alter(write(name), **changes))
    assert (refused.code, refused.field) == ("config-value", f"config.json: {key}")


@pytest.mark.parametrize(
    ("name", "changes", "where"),
    [
        ("unet", {"_class_name": "UNet2DConditionModel"}, "_class_name"),
        ("unet", {"_class_name": "os.system"}, "_class_name"),
        ("unet", {"_class_name": "absent"}, "_class_name"),
        ("unet", {"_class_name": ["UNet2DModel"]}, "_class_name"),
        ("vit", {"architectures": ["ViTModel"]}, "architectures"),
        ("vit", {"architectures": ["ViTForImageClassification", "Evil"]}, "architectures"),
        ("vit", {"architectures": "absent"}, "architectures"),
        ("vit", {"model_type": "resnet"}, "model_type"),
        ("vit", {"model_type": "absent"}, "model_type"),
    ],
)
def test_a_class_outside_the_family_is_refused(
    name: str, changes: dict[str, Any], where: str, write: Callable[[str], Path]
) -> None:
    refused = refusal(alter(write(name), **changes))
    assert (refused.code, refused.field) == ("class-not-allowed", f"config.json: {where}")


def test_a_network_of_one_family_is_not_of_another(write: Callable[[str], Path]) -> None:
    assert refusal(write("vit"), "masked_autoencoder").code == "class-not-allowed"
    assert refusal(write("unet"), "inpainting_diffusion").field == "config.json: num_class_embeds"
    refused = refusal(write("unet"), "image_classifier")
    assert (refused.code, refused.field) == ("file-not-allowed", "scheduler_config.json")


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize(
    "key", ["auto_map", "custom_pipeline", "trust_remote_code", "quantization_config", "transformers_weights"]
)
def test_a_key_that_brings_in_code_is_refused_at_any_depth(file: str, key: str, write: Callable[[str], Path]) -> None:
    directory = alter(write("vit"), file, nested=[{"deep": {key: "evil--module.Class"}}])
    refused = refusal(directory)
    assert (refused.code, refused.field) == ("code-refused", f"{file}: {key}")


@pytest.mark.parametrize("value", ["PNDMScheduler", "absent", 3])
def test_a_scheduler_that_is_not_on_the_list_is_refused(value: object, write: Callable[[str], Path]) -> None:
    refused = refusal(alter(write("unet"), "scheduler_config.json", _class_name=value))
    assert (refused.code, refused.field) == ("class-not-allowed", "scheduler_config.json: _class_name")


def test_companions_are_required_and_checked(write: Callable[[str], Path]) -> None:
    directory = alter(write("unet"), "scheduler_config.json", prediction_type="noise")
    assert refusal(directory).code == "config-value"
    (directory / "scheduler_config.json").unlink()
    assert refusal(directory).field == "scheduler_config.json"
    refused = refusal(alter(write("vit"), "preprocessor_config.json", image_processor_type="os.system"))
    assert refused.field == "preprocessor_config.json: image_processor_type"
    alter(
        tiny.write("vit", directory.parent / "vit"),
        "preprocessor_config.json",
        image_processor_type="ViTImageProcessorFast",
    )
    assert inspect(directory.parent / "vit").labels == tiny.LABELS


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, b"\xff\xfe", '{"a": ' * 90_000])
@pytest.mark.parametrize("file", ["config.json", "scheduler_config.json"])
def test_json_that_does_not_parse_to_an_object_is_refused(
    content: str | bytes, file: str, write: Callable[[str], Path]
) -> None:
    directory = write("unet")
    (directory / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    refused = refusal(directory)
    assert (refused.code, refused.field) == ("config-format", file)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "x.ckpt", "x.pkl", "X.PTH", "x.npz", "tf_model.h5"])
def test_a_pickle_is_refused_by_name(name: str, write: Callable[[str], Path]) -> None:
    directory = write("vit")
    (directory / name).write_bytes(b"")
    refused = refusal(directory)
    assert (refused.code, refused.field) == ("pickle-refused", name)


@pytest.mark.parametrize("name", ["model.safetensors", "preprocessor_config.json"])
@pytest.mark.parametrize("torch_zip", [True, False])
def test_a_pickle_is_refused_by_content(name: str, torch_zip: bool, write: Callable[[str], Path]) -> None:
    directory = write("vit")
    if torch_zip:
        torch.save({"classifier.weight": torch.zeros(4)}, directory / name)
    else:
        (directory / name).write_bytes(pickle.dumps({"a": 1}))
    refused = refusal(directory)
    assert (refused.code, name in refused.field) == ("pickle-refused", True)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("modeling.py", "code-refused"),
        ("lib.so", "code-refused"),
        ("model_index.json", "file-not-allowed"),
        ("tokenizer.json", "file-not-allowed"),
        ("chat_template.jinja", "file-not-allowed"),
        ("adapter_config.json", "file-not-allowed"),
        (".hidden.safetensors", "file-not-allowed"),
        ("model.safetensors.index.json", "weights-files"),
        ("pytorch_lora_weights.safetensors", "file-not-allowed"),
        ("model.fp16.safetensors", "weights-files"),
    ],
)
def test_a_file_without_a_purpose_is_refused(name: str, code: str, write: Callable[[str], Path]) -> None:
    directory = write("vit")
    (directory / name).write_text("{}")
    refused = refusal(directory)
    assert (refused.code, refused.field) == (code, name)


def test_folders_and_links_in_a_directory_are_refused(write: Callable[[str], Path], tmp_path: Path) -> None:
    directory = write("vit")
    (directory / "unet").mkdir()
    (directory / "unet" / "config.json").write_text("{}")
    assert refusal(directory).field == "unet"
    shutil.rmtree(directory / "unet")
    (directory / "model.safetensors").rename(tmp_path / "elsewhere")
    (directory / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    refused = refusal(directory)
    assert (refused.code, refused.field) == ("file-not-allowed", "model.safetensors")


@pytest.mark.parametrize(
    ("file", "code"), [("config.json", "file-not-allowed"), ("model.safetensors", "weights-files")]
)
def test_a_directory_without_config_or_weights_is_refused(file: str, code: str, write: Callable[[str], Path]) -> None:
    directory = write("vit")
    (directory / file).unlink()
    refused = refusal(directory)
    assert (refused.code, refused.field) == (code, file)


@pytest.mark.parametrize("cut", [4, 100, -10])
def test_damaged_safetensors_are_refused(cut: int, write: Callable[[str], Path]) -> None:
    directory = write("vit")
    content = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(content[:cut])
    refused = refusal(directory)
    assert (refused.code, refused.field) == (
        "safetensors-header" if cut > 0 else "safetensors-layout",
        "model.safetensors",
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn])
def test_weights_that_cannot_train_are_refused(dtype: torch.dtype, write: Callable[[str], Path]) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["classifier.weight"] = tensors["classifier.weight"].to(dtype)

    refused = refusal(reweigh(write("vit"), change))
    assert refused.code == "weights-dtype" and "classifier" in refused.field + refused.rule


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("which", ["", "classifier"])
def test_half_precision_throughout_or_here_and_there_passes(
    dtype: torch.dtype, which: str, write: Callable[[str], Path]
) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items() if name.startswith(which)})

    assert inspect(reweigh(write("vit"), change)).labels == tiny.LABELS


def tar_of(files: Mapping[str, bytes]) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer


def zip_of(files: Mapping[str, bytes]) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer


every_archive = pytest.mark.parametrize("pack", [tar_of, zip_of])


@every_archive
@pytest.mark.parametrize("top", ["", "my-model/", "./"])
def test_an_uploaded_directory_is_unpacked_byte_for_byte(
    pack: Callable[[Mapping[str, bytes]], io.BytesIO], top: str, write: Callable[[str], Path], tmp_path: Path
) -> None:
    directory = write("unet")
    unpack_model(pack({top + path.name: path.read_bytes() for path in directory.iterdir()}), tmp_path / "new")
    assert {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()} == {
        path.name: path.read_bytes() for path in directory.iterdir()
    }
    assert inspect(tmp_path / "new", "class_diffusion") == inspect(directory)


@every_archive
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("pytorch_model.bin", "pickle-refused"),
        ("modeling_vit.py", "code-refused"),
        ("notes.txt", "file-not-allowed"),
        ("a/b/c/config.json", "file-not-allowed"),
        (".git/config.json", "file-not-allowed"),
        ("unet/lib.so", "code-refused"),
        ("unet/weights.ckpt", "pickle-refused"),
        ("config.json/config.json", "file-not-allowed"),
        ("../config.json", "archive-path"),
        ("/config.json", "archive-path"),
        ("scheduler_config.json", "archive-too-large"),
    ],
)
def test_a_refused_upload_leaves_nothing_behind(
    pack: Callable[[Mapping[str, bytes]], io.BytesIO], name: str, code: str, tmp_path: Path
) -> None:
    last = os.urandom(1001 if code == "archive-too-large" else 10)
    archive = pack({"config.json": b"{}", "model.safetensors": b"x" * 900, name: last})
    with pytest.raises(Refused) as caught:
        unpack_model(archive, tmp_path / "new", Limits(entry_bytes=1000))
    assert caught.value.code == code and "entry 3" in caught.value.field
    assert list(tmp_path.iterdir()) == []


def test_a_cut_upload_leaves_nothing_behind(tmp_path: Path) -> None:
    whole = tar_of({"config.json": b"{}", "model.safetensors": os.urandom(100_000)}).getvalue()
    with pytest.raises(Refused) as caught:
        unpack_model(io.BytesIO(whole[:60_000]), tmp_path / "new")
    assert caught.value.code == "archive-damaged" and list(tmp_path.iterdir()) == []


def test_unpacking_never_touches_a_folder_that_exists(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("mine")
    with pytest.raises(FileExistsError):
        unpack_model(zip_of({"config.json": b"{}"}), tmp_path)
    assert (tmp_path / "config.json").read_text() == "mine"
