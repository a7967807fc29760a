"""CLIP and SigLIP: losses against the library's own, false negatives, tokens, and what may be replayed."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import SiglipModel

from tests import tiny
from tests.tiny_pipelines import CAPTIONS, NAMES
from worker.families import Captions, Samples, clip

CPU = torch.device("cpu")


@pytest.fixture(params=["clip", "siglip"])
def network(request: pytest.FixtureRequest, tmp_path: Path) -> nn.Module:
    return tiny.opened(request.param, tmp_path)


def four(network: nn.Module) -> Samples:
    return Samples(tiny.samples(network, clip, 4).x, torch.arange(4))


def test_the_loss_is_the_librarys_where_all_texts_differ(network: Any) -> None:
    x, y = four(network)
    theirs = network(input_ids=network.__dict__["tokens"], pixel_values=x, return_loss=True)
    ours = clip.training_loss(network, x, y, torch.Generator())
    assert torch.allclose(ours, theirs.loss, atol=1e-5)
    assert torch.allclose(
        clip.predict(network, x) + getattr(network, "logit_bias", 0), theirs.logits_per_image, atol=1e-5
    )


def test_equal_texts_of_a_batch_are_no_negatives(network: Any) -> None:
    """Two images of one text: each is told from the other text, neither from the other image."""
    images, texts = clip.image_features(network, four(network).x[:2]), clip.text_features(network, torch.tensor([0, 1]))
    own = torch.zeros(2, dtype=torch.int64)
    scores = network.logit_scale.exp() * images @ texts.T
    if isinstance(network, SiglipModel):
        signed = (scores + network.logit_bias) * torch.tensor([1.0, -1.0])
        expected = -F.logsigmoid(signed).sum(1).mean()
    else:
        expected = F.cross_entropy(scores, own) / 2
    assert torch.allclose(clip.contrast(network, images, texts, own), expected, atol=1e-6)


def test_a_batch_of_one_text_is_told_from_other_prompts(network: Any) -> None:
    x = four(network).x
    y = torch.full((4,), 2)
    loss = clip.training_loss(network, x, y, torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    assert sum(float(each.abs().sum()) for each in gradients if each is not None) > 0
    assert 2 not in clip.other_prompts(network, torch.tensor(2), torch.Generator()).tolist()


def test_the_forget_loss_looks_at_pairs_only(network: Any) -> None:
    x, y = four(network)
    cosines = torch.cosine_similarity(clip.image_features(network, x), clip.text_features(network, y))
    assert torch.allclose(clip.forget_loss(network, x, y, torch.Generator()), 1 - cosines.mean(), atol=1e-6)


def test_relabelling_contrasts_with_another_labels_text_while_the_own_stands_among_the_negatives(network: Any) -> None:
    x, y = four(network)
    images, texts = clip.image_features(network, x[:2]), clip.text_features(network, torch.arange(3))
    expected = clip.contrast(network, images, texts, torch.tensor([1, 2]))  # 0 is image 0's own text, and no target
    loss = clip.relabel_loss(network, network, x[:2], y[:2], torch.Generator(), "next")
    assert torch.allclose(loss, expected, atol=1e-6)


def test_captions_are_texts_of_a_label_and_a_label_is_its_prompt(network: Any) -> None:
    clip.caption(network, Captions(NAMES, (*CAPTIONS.texts, "ada ash of a photo"), (0, 1, 2, 3, 0)))
    assert clip.label_count(network) == 4
    assert clip.labels_of(network, torch.tensor([4, 1])).tolist() == [0, 1]
    clip.check(network, Samples(four(network).x, torch.tensor([4, 1, 2, 3])), "forget")
    with pytest.raises(ValueError, match=r"forget\.y: labels must lie in 0\.\.4"):
        clip.check(network, Samples(four(network).x, torch.tensor([5, 1, 2, 3])), "forget")


def test_a_directory_needs_its_tokenizer_and_its_image_rules(network: Any, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"preprocessor_config\.json: the directory must hold it"):
        clip.load(tmp_path, CPU)


def test_a_tokenizer_with_code_of_its_own_is_not_opened(tmp_path: Path) -> None:
    directory = tiny.write("clip", tmp_path)
    (directory / "evil.py").write_text("raise SystemExit('ran')\n")
    (directory / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.Evil", null]}}')
    try:
        clip.load(directory, CPU)
    except ValueError as error:
        assert "tokenizer" in str(error)


@pytest.mark.parametrize("group", ["tensor", "block"])
def test_a_probe_sees_every_change_of_its_tensors_as_the_whole_network_does(network: Any, group: str) -> None:
    samples = tiny.samples(network, clip, 12)
    for names in clip.layers(network, group).values():
        probe = clip.prober(network, names, samples, torch.Generator())
        origin = {name: network.get_parameter(name).detach().clone() for name in names}
        for size in (0.0, 1.0, 5.0):
            with torch.no_grad():
                for name, anchor in origin.items():
                    noise = torch.randn(anchor.shape, generator=torch.Generator().manual_seed(0))
                    network.get_parameter(name).copy_(anchor + size * noise)
            whole = clip.predict(network, samples.x).argmax(1) == samples.y
            assert torch.equal(probe(), whole), names
        with torch.no_grad():
            for name, anchor in origin.items():
                network.get_parameter(name).copy_(anchor)


def test_layers_are_weight_matrices_of_both_towers(network: Any) -> None:
    found = clip.layers(network, "tensor")
    assert {layer.split(".")[0] for layer in found} == {"vision", "text"}
    names = [name for each in found.values() for name in each]
    assert all(network.get_parameter(name).ndim >= 2 for name in names)
    assert not any("bias" in name or "norm" in name or "embedding" in name or "scale" in name for name in names)
    joined = clip.layers(network, "block")
    assert sorted(len(each) for each in joined.values())[-1] == 3
    assert sorted(name for each in joined.values() for name in each) == sorted(names)
