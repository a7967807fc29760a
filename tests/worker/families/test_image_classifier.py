"""Image classifiers: every class on the list, preprocessing as the directory says, answers and features."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import ConvNextConfig, DeiTConfig, RegNetConfig, ResNetConfig, SwinConfig, ViTConfig
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tests import tiny
from worker.families import Samples, image_classifier

CPU = torch.device("cpu")
TRANSFORMER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CONFIGS: dict[str, Any] = {
    "ConvNext": ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2),
    "DeiT": DeiTConfig(**TRANSFORMER, patch_size=8),
    "RegNet": RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=8),
    "ResNet": ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
    "Swin": SwinConfig(patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4),
    "ViT": ViTConfig(**TRANSFORMER, patch_size=8),
}


@pytest.mark.parametrize("name", image_classifier.CLASSES)
def test_every_class_on_the_list_opens_answers_and_is_written_back(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name.removesuffix("ForImageClassification")]
    config.num_labels, config.image_size = 5, 32
    image_classifier.CLASSES[name](config).save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "preprocessor_config.json").write_text('{"size": 32}')
    network = image_classifier.load(tmp_path / "base", CPU)
    x = torch.randn(3, 3, 32, 32)
    image_classifier.check(network, Samples(x, torch.zeros(3, dtype=torch.int64)), "retain")
    logits = image_classifier.predict(network, x, batch_size=2)
    head: Any = network.classifier
    with torch.no_grad():
        again = head(image_classifier.features(network, x, batch_size=2))
    assert logits.shape == (3, 5)
    assert torch.allclose(again, logits, atol=1e-5)
    image_classifier.save(network, tmp_path / "copy", tmp_path / "base")
    for path in (tmp_path / "base").iterdir():
        assert (tmp_path / "copy" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize(
    ("processor", "rules"),
    [
        (ViTImageProcessorPil, {"size": {"height": 24, "width": 16}, "resample": 3, "image_mean": [0.4, 0.5, 0.6]}),
        (ViTImageProcessorPil, {"size": {"height": 8, "width": 8}, "do_normalize": False, "resample": 0}),
        (ConvNextImageProcessorPil, {"size": {"shortest_edge": 24}, "crop_pct": 0.875, "resample": 2}),
    ],
)
def test_prepares_as_transformers_does(processor: Any, rules: dict[str, Any], tmp_path: Path) -> None:
    directory = tiny.write("resnet", tmp_path / "base")
    theirs = processor(**rules)
    theirs.save_pretrained(directory)
    network = image_classifier.load(directory, CPU)
    images = [np.random.default_rng(seed).integers(0, 256, (40, 30, 3), dtype=np.uint8) for seed in range(3)]
    ours = image_classifier.prepare(images, directory, network)
    expected = theirs([Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]
    assert ours.shape == expected.shape
    assert torch.allclose(ours, expected, atol=1e-5)


def test_a_size_must_come_from_somewhere(tmp_path: Path) -> None:
    directory = tiny.write("resnet", tmp_path / "base")
    (directory / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: size must"):
        image_classifier.load(directory, CPU)
    config = json.loads((directory / "config.json").read_text()) | {"image_size": 16}
    (directory / "config.json").write_text(json.dumps(config))
    assert image_classifier.image_shape(image_classifier.load(directory, CPU)) == (3, 16, 16)


def test_losses_are_cross_entropies(tmp_path: Path) -> None:
    network = image_classifier.load(tiny.write("vit", tmp_path), CPU)
    x, y = tiny.samples(network, image_classifier, 10)
    logits = image_classifier.predict(network, x)
    generator = torch.Generator()
    ordinary = image_classifier.training_loss(network, x, y, generator)
    relabelled = image_classifier.relabel_loss(network, network, x, y, generator, "next")
    assert torch.allclose(ordinary, F.cross_entropy(logits, y))
    assert torch.allclose(relabelled, F.cross_entropy(logits, (y + 1) % tiny.LABELS))


def test_mixed_precision_trains_in_float32_and_is_kept_tensor_by_tensor(tmp_path: Path) -> None:
    directory = tiny.write("vit", tmp_path / "base")
    tensors = load_file(directory / "model.safetensors")
    tensors["classifier.bias"] = tensors["classifier.bias"].half()
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    network = image_classifier.load(directory, CPU)
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    image_classifier.save(network, tmp_path / "copy", directory)
    copied = (tmp_path / "copy" / "model.safetensors").read_bytes()
    assert copied == (directory / "model.safetensors").read_bytes()
