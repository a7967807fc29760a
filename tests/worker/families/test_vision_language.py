"""A vision-language network: what is asked and answered, what may move, and that its files keep their own names."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from tests.trained import identities
from tests.trained import vision_language as maker
from worker.families import Captions, Samples, vision_language

CPU = torch.device("cpu")
NAMES = identities.NAMES[:4]
SIZE, PATCH = 16, 8


def captions(prompt: str = maker.PROMPT, own: tuple[str, ...] = ()) -> Captions:
    texts = tuple(prompt.replace("{}", name) for name in NAMES)
    return Captions(NAMES, texts + own, (*range(4), *(0 for _ in own)), prompt)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    words = maker.tokenizer(NAMES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = maker.network(len(words), width=16, tower_layers=3, size=SIZE, patch=PATCH)
    maker.write(model, words, tmp_path / "base", SIZE)
    return tmp_path / "base"


@pytest.fixture
def network(directory: Path) -> nn.Module:
    opened: nn.Module = vision_language.load(directory, CPU)
    vision_language.caption(opened, captions())
    return opened


def samples(count: int = 6) -> Samples:
    generator = torch.Generator().manual_seed(0)
    return Samples(torch.randn(count, 3, SIZE, SIZE, generator=generator), torch.arange(count) % 4)


def test_a_moved_weight_is_written_under_the_file_s_own_name(
    network: nn.Module, directory: Path, tmp_path: Path
) -> None:
    weights = vision_language.trainable(network)
    with torch.no_grad():
        weights["model.vision_tower.encoder.layers.0.mlp.fc1.weight"].add_(1)
    vision_language.save(network, tmp_path / "new", directory)
    with (
        safe_open(directory / "model.safetensors", "pt") as old,
        safe_open(tmp_path / "new/model.safetensors", "pt") as new,
    ):
        names = list(old.keys())
        changed = [name for name in names if not torch.equal(old.get_tensor(name), new.get_tensor(name))]
    assert changed == ["vision_tower.encoder.layers.0.mlp.fc1.weight"]


def test_what_no_answer_can_show_may_not_move(network: nn.Module) -> None:
    """The projector reads the layer before the last, so the last has no say."""
    assert {name.split(".layers.")[1][0] for name in vision_language.trainable(network) if ".layers." in name} == {
        "0",
        "1",
    }
    x, y = samples()
    loss = vision_language.training_loss(network, x, y, torch.Generator())
    gradients = torch.autograd.grad(loss, list(vision_language.trainable(network).values()))
    assert all(bool(gradient.abs().sum() > 0) for gradient in gradients)
    offered = {name for names in vision_language.layers(network, "tensor").values() for name in names}
    assert offered <= set(vision_language.trainable(network))
    assert offered == {name for names in vision_language.layers(network, "block").values() for name in names}


def test_a_probe_is_the_network_s_own_greedy_answer(network: nn.Module) -> None:
    """Whatever the network says first is asked for; then the probe must find every answer right, and no other."""
    x, _ = samples()
    ids, _ = vision_language.conversation(network, torch.zeros(len(x), dtype=torch.int64))
    model: Any = network
    question = torch.tensor(network.__dict__["question"]).expand(len(x), -1)
    said = model.generate(
        input_ids=question, pixel_values=x, do_sample=False, max_new_tokens=3, min_new_tokens=3, pad_token_id=0
    )
    network.__dict__["answers"] = said[:, question.shape[1] :].tolist()
    network.__dict__["captions"] = Captions(NAMES, tuple("abcdef"), (0,) * 6)
    names = vision_language.layers(network, "tensor")["vision.1.self_attn.q_proj"]
    own = vision_language.prober(network, names, Samples(x, torch.arange(6)), torch.Generator())
    assert own().all()
    network.__dict__["answers"] = [[token + 1 for token in answer] for answer in network.__dict__["answers"]]
    other = vision_language.prober(network, names, Samples(x, torch.arange(6)), torch.Generator())
    assert not other().any()


def test_a_probe_sees_a_change_of_its_layer(network: nn.Module) -> None:
    x, y = samples()
    name = "model.vision_tower.encoder.layers.1.mlp.fc2.weight"
    weight = vision_language.trainable(network)[name]
    ids, _ = vision_language.conversation(network, y)
    with torch.no_grad():
        weight.mul_(50)
        fresh = vision_language.see(network, x)
        whole: Any = network
        direct = whole(input_ids=ids, pixel_values=x).logits
    assert torch.allclose(vision_language.speak(network, fresh, ids), direct, atol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "rule"),
    [("who is this ? {}", "must hold <image> once"), ("<image> <image> {}", "must hold <image> once")],
)
def test_a_prompt_shows_the_image_once_before_the_answer(network: nn.Module, prompt: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        vision_language.caption(network, captions(prompt))


def test_a_sample_s_own_text_is_an_answer_to_the_same_question(network: nn.Module) -> None:
    vision_language.caption(network, captions(own=("ada ash ada",)))
    assert network.__dict__["answers"][4][:2] == network.__dict__["answers"][0][:2]
    assert len(network.__dict__["answers"][4]) == len(network.__dict__["answers"][0]) + 1
    vision_language.check(network, Samples(samples(1).x, torch.tensor([4])), "forget")
    with pytest.raises(ValueError, match=r"forget\.y: labels must lie in 0\.\.4"):
        vision_language.check(network, Samples(samples(1).x, torch.tensor([5])), "forget")


def test_a_directory_with_a_missing_tensor_is_named(directory: Path) -> None:
    with safe_open(directory / "model.safetensors", "pt") as file:
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names if "linear_1.bias" not in name}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.safetensors: tensor .*linear_1\.bias is missing"):
        vision_language.load(directory, CPU)
