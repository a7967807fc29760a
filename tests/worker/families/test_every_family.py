"""What every family keeps to: strict opening, writing without a changed bit, and losses that mean what they say."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests import tiny
from worker.families import Samples, other_labels

CPU = torch.device("cpu")
every_network = pytest.mark.parametrize("name", tiny.NETWORKS)


@pytest.fixture
def directory(name: str, tmp_path: Path) -> Path:
    return tiny.write(name, tmp_path / "base")


@pytest.fixture
def family(name: str) -> ModuleType:
    return tiny.FAMILIES[tiny.NETWORKS[name]]


@pytest.fixture
def network(name: str, family: ModuleType, directory: Path) -> nn.Module:
    opened: nn.Module = family.load(directory, CPU)
    tiny.tell(name, opened)
    return opened


@every_network
def test_a_network_is_written_as_it_was_opened(
    family: ModuleType, directory: Path, network: nn.Module, tmp_path: Path
) -> None:
    (directory / "README.md").write_text("a card\n")
    family.save(network, tmp_path / "copy", directory)
    names = sorted(path.name for path in directory.iterdir())
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == names
    for name in names:
        assert (tmp_path / "copy" / name).read_bytes() == (directory / name).read_bytes(), name


@every_network
def test_opens_with_from_pretrained_after_a_change(
    family: ModuleType, directory: Path, network: nn.Module, tmp_path: Path
) -> None:
    with torch.no_grad():
        for weight in family.trainable(network).values():
            weight.add_(0.25)
    family.save(network, tmp_path / "changed", directory)
    reopened = type(network).from_pretrained(tmp_path / "changed")  # type: ignore[attr-defined]
    for one, other in zip(network.state_dict().values(), reopened.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@every_network
def test_half_precision_trains_in_float32_and_is_written_back_as_it_was(
    family: ModuleType, directory: Path, tmp_path: Path
) -> None:
    path = directory / family.WEIGHTS
    halves = {
        key: tensor.bfloat16() if tensor.is_floating_point() else tensor for key, tensor in load_file(path).items()
    }
    save_file(halves, path, {"format": "pt"})
    network = family.load(directory, CPU)
    assert {weight.dtype for weight in family.trainable(network).values()} == {torch.float32}
    family.save(network, tmp_path / "copy", directory)
    assert (tmp_path / "copy" / family.WEIGHTS).read_bytes() == path.read_bytes()


@every_network
def test_shards_are_read_and_written_back_each_as_it_was(family: ModuleType, directory: Path, tmp_path: Path) -> None:
    path = directory / family.WEIGHTS
    tensors, stem = load_file(path), path.name.removesuffix(".safetensors")
    shards = [f"{stem}-0000{number}-of-00002.safetensors" for number in (1, 2)]
    placed = {key: shards[at % 2] for at, key in enumerate(tensors)}
    for name in shards:
        mine = {key: tensor for key, tensor in tensors.items() if placed[key] == name}
        save_file(mine, path.parent / name, {"format": "pt"})
    path.with_name(f"{path.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    path.unlink()
    family.save(family.load(directory, CPU), tmp_path / "copy", directory)
    names = sorted(each.name for each in directory.iterdir())
    assert sorted(each.name for each in (tmp_path / "copy").iterdir()) == names
    for name in names:
        assert (tmp_path / "copy" / name).read_bytes() == (directory / name).read_bytes(), name


def drop(tensors: dict[str, torch.Tensor], name: str) -> None:
    del tensors[name]


def add(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors["stranger"] = torch.zeros(1)


def stretch(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[name] = torch.zeros(tensors[name].numel() + 1)


@every_network
@pytest.mark.parametrize(
    ("change", "says"), [(drop, "is missing"), (add, "is not part of the network"), (stretch, "has shape")]
)
def test_refuses_weights_that_do_not_fit(
    family: ModuleType, directory: Path, change: Callable[..., None], says: str
) -> None:
    path = directory / family.WEIGHTS
    tensors = load_file(path)
    victim = sorted(key for key in tensors if key.endswith("bias"))[0]
    change(tensors, victim)
    save_file(tensors, path, {"format": "pt"})
    named = "stranger" if change is add else r"[\w.]+bias"
    with pytest.raises(ValueError, match=rf"{family.WEIGHTS}: tensor {named} {says}"):
        family.load(directory, CPU)


@every_network
@pytest.mark.parametrize("content", [None, b"", b"\x80\x04pickle", b"{}"])
def test_refuses_what_is_not_a_safetensors_file(family: ModuleType, directory: Path, content: bytes | None) -> None:
    path = directory / family.WEIGHTS
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=family.WEIGHTS):
        family.load(directory, CPU)


@every_network
@pytest.mark.parametrize("content", [None, "not json", "[]", "{}"])
def test_refuses_a_config_that_says_nothing(family: ModuleType, directory: Path, content: str | None) -> None:
    path = directory / "config.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ValueError, match=r"config\.json: "):
        family.load(directory, CPU)


@every_network
def test_refuses_a_class_outside_its_list(family: ModuleType, directory: Path) -> None:
    edit(directory / "config.json", _class_name="PriorTransformer", architectures=["BertModel"])
    with pytest.raises(ValueError, match=r"config\.json: (_class_name|architectures) must"):
        family.load(directory, CPU)


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@every_network
def test_prepares_images_of_any_size_and_kind(family: ModuleType, directory: Path, network: nn.Module) -> None:
    white, black = np.full((20, 30), 255, np.uint8), np.zeros((5, 5, 3), np.uint8)
    x = family.prepare([white, black], directory, network)
    assert x.dtype == torch.float32
    assert tuple(x.shape) == (2, *family.image_shape(network))
    assert torch.allclose(x[0], torch.ones(()), atol=1e-6)
    assert torch.allclose(x[1], -torch.ones(()), atol=1e-6)
    assert family.image_shape(directory) == family.image_shape(network)


@every_network
def test_refuses_samples_that_the_network_cannot_take(family: ModuleType, network: nn.Module) -> None:
    good = tiny.samples(network, family, 4)
    family.check(network, good, "forget")
    wrong = {
        r"forget\.x": [Samples(good.x.double(), good.y), Samples(good.x[:, :, 1:], good.y), Samples(good.x[0], good.y)],
        r"forget\.y": [
            Samples(good.x, good.y.int()),
            Samples(good.x, good.y[1:]),
            *[Samples(good.x, good.y + tiny.LABELS)] * (family.label_count(network) > 0),
            Samples(good.x, good.y - tiny.LABELS),
            Samples(good.x[:0], good.y[:0]),
        ],
    }
    for field, samples in wrong.items():
        for each in samples:
            with pytest.raises(ValueError, match=f"^{field}: "):
                family.check(network, each, "forget")


@every_network
@pytest.mark.parametrize("relabel", ["uniform", "next"])
def test_losses_are_seeded_means_that_reach_the_weights(family: ModuleType, network: nn.Module, relabel: str) -> None:
    x, y = tiny.samples(network, family, 6)
    losses: list[tuple[Any, tuple[Any, ...]]] = [(family.training_loss, ())]
    if family.label_count(network) > 0:
        losses.append((family.relabel_loss, (network,)))
    for loss, extra in losses:
        options = (relabel,) if extra else ()
        values = [loss(network, *extra, x, y, torch.Generator().manual_seed(seed), *options) for seed in (0, 0)]
        assert values[0].shape == ()
        assert torch.equal(values[0], values[1])
        gradients = torch.autograd.grad(values[0], list(family.trainable(network).values()), allow_unused=True)
        assert sum(float(each.abs().sum()) for each in gradients if each is not None) > 0


@every_network
def test_fresh_weights_are_seeded_and_owe_nothing_to_the_old(family: ModuleType, directory: Path) -> None:
    state = torch.get_rng_state()
    networks = [family.load(directory, CPU) for _ in range(3)]
    with torch.no_grad():
        for tensor in networks[1].state_dict().values():
            tensor.fill_(7)
    for each, seed in zip(networks, (0, 0, 1), strict=True):
        family.reinitialise(each, torch.Generator().manual_seed(seed))
    flat = [torch.cat([tensor.flatten().float() for tensor in each.state_dict().values()]) for each in networks]
    assert torch.equal(flat[0], flat[1])
    assert not torch.equal(flat[0], flat[2])
    assert torch.equal(torch.get_rng_state(), state)


@every_network
def test_counts_labels_without_the_null_class(family: ModuleType, network: nn.Module) -> None:
    assert family.label_count(network) == (0 if hasattr(family, "reconstruct") else tiny.LABELS)
    tables = family.label_tables(network)
    assert tables.keys() <= family.trainable(network).keys()
    assert all(table.shape[0] == tiny.LABELS + 1 for table in tables.values())


def test_another_label_is_never_the_label_itself_and_every_other_comes() -> None:
    y = torch.arange(4).repeat(500)
    other = other_labels(y, 4, "uniform", torch.Generator().manual_seed(0))
    assert not (other == y).any()
    for label in range(4):
        shares = other[y == label].bincount(minlength=4) / 500
        assert all(abs(float(share) - 1 / 3) < 0.08 for at, share in enumerate(shares) if at != label)
    assert torch.equal(other_labels(y, 4, "next", torch.Generator())[:4], torch.tensor([1, 2, 3, 0]))


@pytest.mark.parametrize("name", ["unet"])
def test_a_directory_without_its_scheduler_is_refused(family: ModuleType, directory: Path) -> None:
    (directory / "scheduler_config.json").unlink()
    with pytest.raises(ValueError, match=r"scheduler_config\.json: the directory must hold it"):
        family.load(directory, CPU)


@pytest.mark.parametrize("name", ["unet"])
def test_the_directory_is_left_alone_by_opening(family: ModuleType, directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory, tmp_path / "before")
    family.load(directory, CPU)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "before").iterdir()
    }
