"""Weights: bytes come back exactly, from any range of any version, and a version costs what it changed."""

import json
import math
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification

from app.storage import LocalBlobs
from app.weights import (
    CheckpointDamaged,
    Manifest,
    changes,
    decode,
    digest,
    encode,
    from_json,
    materialise,
    open_range,
    pack_base,
    pack_delta,
    packs_of,
    read_tensor,
    to_json,
)
from app.weights.header import DTYPE_BYTES

Content = dict[str, tuple[str, tuple[int, ...], bytes]]


class Store:
    """A folder of blobs, and the versions that a test packs into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = LocalBlobs(folder / "blobs")
        self.versions = 0

    def add(self, directory: Path, parent: Manifest | None = None, longest_chain: int = 32) -> tuple[Manifest, int]:
        """The manifest as it is read back from its stored form, and the bytes that the version costs."""
        self.versions += 1
        name, pack = f"packs/{self.versions}", self.folder / "pack"
        if parent is None:
            manifest = pack_base(directory, pack, name)
        else:
            manifest = pack_delta(parent, self.blobs, directory, pack, name, longest_chain=longest_chain)
        assert pack.exists() == (name in packs_of(manifest))
        cost = self.blobs.put(name, pack) if pack.exists() else 0
        pack.unlink(missing_ok=True)
        stored = encode(manifest)
        assert decode(stored) == manifest
        return decode(stored), cost + len(stored)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def safetensors(content: Content, metadata: dict[str, str] | None = None, padding: int = 0) -> bytes:
    """A safetensors file written by hand, for dtypes and headers that the library does not write."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name, (dtype, shape, data) in content.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + len(data)]}
        position += len(data)
    text = json.dumps(header).encode() + b" " * padding
    return len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in content.values())


def write(directory: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def restored(manifest: Manifest, store: Store) -> dict[str, bytes]:
    with TemporaryDirectory() as target:
        materialise(manifest, store.blobs, Path(target))
        return contents(Path(target))


def change_half(tensors: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """Every tensor with a random half of its elements changed, as SalUn at mask fraction 0.5 leaves it."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.where(torch.rand(tensor.shape, generator=generator) < 0.5, tensor + 1, tensor)
        for name, tensor in tensors.items()
    }


def bound(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    """What a version may cost: per changed tensor the smaller of full and mask + values, + 1 % + 64 KiB."""
    cost = 0
    for name, tensor in after.items():
        changed = int((before[name] != tensor).sum())
        full = tensor.numel() * tensor.element_size()
        cost += min(full, math.ceil(tensor.numel() / 8) + changed * tensor.element_size()) if changed else 0
    return cost * 1.01 + 65536


def many_tensors(count: int = 686) -> dict[str, torch.Tensor]:
    """As many tensors, with names as long, as a Stable Diffusion U-Net has, but small ones."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(64, 64), (64,), (64, 32), (64,)]
    return {
        f"down_blocks.{i % 4}.attentions.{i // 4}.transformer_blocks.0.attn1.to_q.weight": torch.randn(
            shapes[i % 4], generator=generator
        )
        for i in range(count)
    }


def test_a_real_network_comes_back_and_opens_with_from_pretrained(store: Store, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=96, num_hidden_layers=3, num_attention_heads=4, intermediate_size=384)
    base, unlearned = tmp_path / "base", tmp_path / "unlearned"
    network = ViTForImageClassification(config)
    network.save_pretrained(base)
    manifest, _ = store.add(base)
    network.load_state_dict(change_half(network.state_dict(), seed=1))
    network.save_pretrained(unlearned)
    version, cost = store.add(unlearned, manifest)
    limit = bound(load_file(base / "model.safetensors"), load_file(unlearned / "model.safetensors"))
    assert cost <= limit < 0.6 * (base / "model.safetensors").stat().st_size
    assert restored(manifest, store) == contents(base)
    assert restored(version, store) == contents(unlearned)
    materialise(version, store.blobs, tmp_path / "pulled")
    pulled = ViTForImageClassification.from_pretrained(tmp_path / "pulled").state_dict()
    assert all(torch.equal(pulled[name], tensor) for name, tensor in network.state_dict().items())


def test_686_tensors_half_changed_cost_no_more_than_the_bound(store: Store, tmp_path: Path) -> None:
    before = many_tensors()
    (tmp_path / "v").mkdir()
    save_file(before, tmp_path / "v/model.safetensors")
    manifest, _ = store.add(tmp_path / "v")
    for seed in range(3):
        after = change_half(before, seed)
        save_file(after, tmp_path / "v/model.safetensors")
        version, cost = store.add(tmp_path / "v", manifest)
        assert cost <= bound(before, after)
        assert restored(version, store) == contents(tmp_path / "v")
        assert changes(version, manifest)["tensors_changed"] == 686
        before, manifest = after, version


def test_one_changed_tensor_costs_itself_and_the_rest_points_to_the_parent(store: Store, tmp_path: Path) -> None:
    before = many_tensors()
    name = next(iter(before))
    (tmp_path / "v").mkdir()
    save_file(before, tmp_path / "v/model.safetensors")
    manifest, full_cost = store.add(tmp_path / "v")
    after = {**before, name: before[name] + 1}
    save_file(after, tmp_path / "v/model.safetensors")
    version, cost = store.add(tmp_path / "v", manifest)
    assert cost <= bound(before, after) < full_cost / 10
    assert changes(version, manifest) == {
        "tensors_total": 686,
        "tensors_changed": 1,
        "elements_total": sum(tensor.numel() for tensor in before.values()),
        "elements_changed": 64 * 64,
        "bytes_added": 64 * 64 * 4,
    }
    assert packs_of(version) == {"packs/1", "packs/2"}


def test_a_chain_of_versions_restores_each_byte_for_byte(store: Store, tmp_path: Path) -> None:
    base = {"w": torch.randn(300, 70), "b": torch.randn(70).to(torch.bfloat16), "steps": torch.tensor(3)}
    files = {"config.json": b"{}", "unet/x.txt": b"same"}
    versions: list[tuple[Manifest, dict[str, bytes]]] = []
    for number in range(6):
        directory = write(tmp_path / str(number), {**files, "config.json": b'{"version": %d}' % (number // 2)})
        save_file(base, directory / "unet/model.safetensors")
        manifest, _ = store.add(directory, versions[-1][0] if versions else None)
        versions.append((manifest, contents(directory)))
        base = change_half(base, number) if number % 3 else {**base, "b": change_half(base, number)["b"]}
    for manifest, expected in versions:
        assert restored(manifest, store) == expected
    assert len(versions[-1][0].tensor("unet/model.safetensors", "w").layers) > 2


def test_a_long_chain_is_cut_by_a_full_copy(store: Store, tmp_path: Path) -> None:
    tensor = {"w": torch.zeros(1000)}
    (tmp_path / "v").mkdir()
    manifest = None
    depths = []
    for number in range(7):
        tensor["w"][number] = 1
        save_file(tensor, tmp_path / "v/model.safetensors")
        manifest, _ = store.add(tmp_path / "v", manifest, longest_chain=3)
        depths.append(len(manifest.tensor("model.safetensors", "w").layers))
        assert restored(manifest, store) == contents(tmp_path / "v")
    assert depths == [1, 2, 3, 1, 2, 3, 1]
    assert manifest is not None and "packs/3" not in packs_of(manifest)


def test_nothing_changed_stores_no_pack(store: Store, tmp_path: Path) -> None:
    directory = write(tmp_path / "v", {"a.safetensors": safetensors({"w": ("I8", (3,), b"abc")}), "c.json": b"{}"})
    manifest, _ = store.add(directory)
    again, _ = store.add(directory, manifest)
    assert again == manifest
    assert changes(again, manifest)["tensors_changed"] == changes(again, manifest)["bytes_added"] == 0
    grown, _ = store.add(write(directory, {"empty.txt": b""}), manifest)
    assert restored(grown, store) == contents(directory)


def test_a_tensor_whose_mask_would_be_larger_is_stored_in_full_and_only_once(store: Store, tmp_path: Path) -> None:
    bits = np.zeros(700_000, np.uint32)
    manifest, _ = store.add(
        write(tmp_path / "v", {"m.safetensors": safetensors({"w": ("F32", bits.shape, bits.tobytes())})})
    )
    bits += 1
    version, _ = store.add(
        write(tmp_path / "v", {"m.safetensors": safetensors({"w": ("F32", bits.shape, bits.tobytes())})}), manifest
    )
    assert changes(version, manifest)["bytes_added"] == bits.nbytes
    assert changes(version, manifest)["elements_changed"] == len(bits)
    assert restored(version, store) == contents(tmp_path / "v")


def test_shape_and_dtype_changes_are_stored_in_full(store: Store, tmp_path: Path) -> None:
    data = bytes(range(64))
    shapes: Content = {"reshaped": ("F32", (4, 4), data), "retyped": ("F32", (16,), data), "gone": ("U8", (64,), data)}
    manifest, _ = store.add(write(tmp_path / "v", {"m.safetensors": safetensors(shapes)}))
    shapes = {"reshaped": ("F32", (2, 8), data), "retyped": ("BF16", (32,), data), "new": ("U8", (64,), data)}
    version, _ = store.add(write(tmp_path / "v", {"m.safetensors": safetensors(shapes)}), manifest)
    assert restored(version, store) == contents(tmp_path / "v")
    assert [len(tensor.layers) for _, tensor in version.tensors()] == [1, 1, 1]
    assert changes(version, manifest)["tensors_changed"] == 3
    assert packs_of(version) == {"packs/2"}


def test_header_bytes_stay_as_they_were_padding_and_metadata_included(store: Store, tmp_path: Path) -> None:
    content: Content = {"w": ("F16", (2,), b"abcd"), "empty": ("F32", (0, 3), b""), "scalar": ("F64", (), bytes(8))}
    first = safetensors(content, {"format": "pt"}, padding=13)
    second = safetensors(content, {"format": "pt", "unlearned": "yes"}, padding=2)
    manifest, _ = store.add(write(tmp_path / "v", {"m.safetensors": first, "empty.txt": b""}))
    version, _ = store.add(write(tmp_path / "v", {"m.safetensors": second, "another_empty.txt": b""}), manifest)
    assert restored(manifest, store) == {"m.safetensors": first, "empty.txt": b""}
    assert restored(version, store) == {"m.safetensors": second, "empty.txt": b"", "another_empty.txt": b""}
    assert changes(version, manifest)["tensors_changed"] == 0


def test_nan_payloads_and_negative_zero_count_as_what_their_bits_are(store: Store, tmp_path: Path) -> None:
    before = np.zeros(64, np.uint32)
    before[:2] = 0x7FC00001
    after = before.copy()
    after[1], after[2] = 0x7FC00002, 0x80000000
    for number, bits in enumerate((before, after)):
        write(tmp_path / str(number), {"m.safetensors": safetensors({"w": ("F32", (8, 8), bits.tobytes())})})
    manifest, _ = store.add(tmp_path / "0")
    version, _ = store.add(tmp_path / "1", manifest)
    assert changes(version, manifest)["elements_changed"] == 2
    assert changes(version, manifest)["bytes_added"] == 64 // 8 + 2 * 4
    assert np.array_equal(read_tensor(version, store.blobs, "m.safetensors", "w"), after.reshape(8, 8))
    assert np.array_equal(read_tensor(manifest, store.blobs, "m.safetensors", "w"), before.reshape(8, 8))


@st.composite
def histories(draw: st.DrawFn) -> list[dict[str, bytes]]:
    """Up to four versions of a directory with tensors of any dtype, some of whose elements change."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    shapes = st.lists(st.integers(0, 7), max_size=3).map(tuple)
    tensors = draw(st.dictionaries(st.text("abc.é", min_size=1, max_size=5), st.tuples(shapes, st.sampled_from(sorted(DTYPE_BYTES))), max_size=5))  # fmt: skip
    current: Content = {n: (d, s, rng.randbytes(math.prod(s) * DTYPE_BYTES[d])) for n, (s, d) in tensors.items()}
    versions = []
    for number in range(draw(st.integers(1, 4))):
        extra = rng.randbytes(rng.randrange(2))
        versions.append({"m.safetensors": safetensors(current, padding=number % 2), "extra.txt": extra})
        for name, (dtype, shape, data) in current.items():
            fraction = draw(st.sampled_from([0.0, 0.02, 0.5, 1.0]))
            changed = bytes(rng.randrange(256) if rng.random() < fraction else byte for byte in data)
            current[name] = (dtype, shape, changed)
    return versions


@settings(max_examples=150, deadline=None)
@given(histories(), st.data())
def test_any_history_restores_and_any_range_equals_the_slice(versions: list[dict[str, bytes]], data: st.DataObject) -> None:  # fmt: skip
    with TemporaryDirectory() as folder:
        store = Store(Path(folder))
        manifest = None
        for number, files in enumerate(versions):
            manifest, _ = store.add(write(Path(folder) / str(number), files), manifest)
            assert restored(manifest, store) == files
        assert manifest is not None and from_json(json.loads(json.dumps(to_json(manifest)))) == manifest
        whole = versions[-1]["m.safetensors"]
        start = data.draw(st.integers(0, len(whole)))
        end = data.draw(st.integers(start, len(whole)))
        chunks = list(open_range(manifest, store.blobs, "m.safetensors", start, end))
        assert b"".join(chunks) == whole[start:end]


def test_ranges_across_blocks_of_a_masked_tensor(store: Store, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    before = rng.integers(0, 2**16, 1_500_001, dtype=np.uint16)
    versions = [before, np.where(rng.random(before.shape) < 0.3, before + 1, before).astype(np.uint16)]
    versions.append(np.where(rng.random(before.shape) < 0.1, versions[1] + 1, versions[1]).astype(np.uint16))
    manifest = None
    for number, bits in enumerate(versions):
        content: Content = {"a": ("U8", (3,), b"abc"), "w": ("BF16", (1_500_001,), bits.tobytes())}
        directory = write(tmp_path / str(number), {"m.safetensors": safetensors(content)})
        manifest, _ = store.add(directory, manifest)
    assert manifest is not None and len(manifest.tensor("m.safetensors", "w").layers) == 3
    whole = (tmp_path / "2/m.safetensors").read_bytes()
    for start, end in [(0, len(whole)), (1, 2), (1_048_577, 2_500_000), (2_999_999, len(whole)), (777_777, 777_778)]:
        chunks = list(open_range(manifest, store.blobs, "m.safetensors", start, end))
        assert b"".join(chunks) == whole[start:end]
        assert max(map(len, chunks)) <= 1 << 20


def test_a_range_outside_the_file_or_an_unknown_file_is_refused_at_once(store: Store, tmp_path: Path) -> None:
    directory = write(tmp_path / "v", {"m.safetensors": safetensors({"w": ("I8", (3,), b"abc")})})
    manifest, _ = store.add(directory)
    size = len(contents(directory)["m.safetensors"])
    for start, end in [(-1, 2), (3, 2), (0, size + 1), (size + 1, size + 1)]:
        with pytest.raises(ValueError, match=r"m\.safetensors: bytes"):
            open_range(manifest, store.blobs, "m.safetensors", start, end)
    with pytest.raises(LookupError, match=r"other\.txt"):
        open_range(manifest, store.blobs, "other.txt", 0, 1)
    assert list(open_range(manifest, store.blobs, "m.safetensors", size, size)) == []


def test_packing_and_restoring_keep_memory_flat(store: Store, tmp_path: Path) -> None:
    """A tensor of 64 MB; what stays in memory is a few blocks and one mask (2 MB)."""
    bits = np.random.default_rng(0).integers(0, 2**32, 16_000_000, dtype=np.uint32)
    write(tmp_path / "0", {"m.safetensors": safetensors({"w": ("F32", bits.shape, bits.tobytes())})})
    bits[::2] += 1
    write(tmp_path / "1", {"m.safetensors": safetensors({"w": ("F32", bits.shape, bits.tobytes())})})
    tracemalloc.start()
    manifest, _ = store.add(tmp_path / "0")
    version, _ = store.add(tmp_path / "1", manifest)
    materialise(version, store.blobs, tmp_path / "pulled")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000
    assert contents(tmp_path / "pulled") == contents(tmp_path / "1")


def test_the_digest_is_of_the_content_wherever_it_lies(store: Store, tmp_path: Path) -> None:
    first = write(tmp_path / "1", {"m.safetensors": safetensors({"w": ("I8", (9,), b"abcdefghi")})})
    second = write(tmp_path / "2", {"m.safetensors": safetensors({"w": ("I8", (9,), b"abcdefghX")})})
    base, _ = store.add(first)
    delta, _ = store.add(second, base)
    repacked, _ = store.add(second)
    assert delta != repacked and digest(delta) == digest(repacked) != digest(base)


def damage_last_byte(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def damage_first_byte(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize("damage", [damage_first_byte, damage_last_byte, truncate])
def test_a_damaged_pack_is_found_and_the_file_is_named(
    store: Store, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    tensor = {"w": torch.arange(1000.0)}
    (tmp_path / "v").mkdir()
    save_file(tensor, tmp_path / "v/model.safetensors")
    base, _ = store.add(tmp_path / "v")
    tensor["w"][::7] = -1
    save_file(tensor, tmp_path / "v/model.safetensors")
    version, _ = store.add(tmp_path / "v", base)
    damage(store.blobs.root / "packs/2")
    with pytest.raises(CheckpointDamaged, match=r"model\.safetensors"):
        materialise(version, store.blobs, tmp_path / "pulled")
    assert contents(tmp_path / "pulled") == {}
    with pytest.raises(CheckpointDamaged, match=r"model\.safetensors"):
        read_tensor(version, store.blobs, "model.safetensors", "w")
    tensor["w"][0] = 5
    save_file(tensor, tmp_path / "v/model.safetensors")
    with pytest.raises(CheckpointDamaged, match=r"model\.safetensors"):
        pack_delta(version, store.blobs, tmp_path / "v", tmp_path / "pack", "packs/3")
    assert not (tmp_path / "pack").exists()
    materialise(base, store.blobs, tmp_path / "base")


def test_a_damaged_or_unknown_manifest_is_refused(store: Store, tmp_path: Path) -> None:
    directory = write(tmp_path / "v", {"m.safetensors": safetensors({"w": ("I8", (3,), b"abc")})})
    stored = encode(pack_base(directory, tmp_path / "pack", "packs/1"))
    for damaged in (b"", stored[:-9], stored[:20] + b"\0" + stored[21:], b"not gzip"):
        with pytest.raises(ValueError, match="damaged"):
            decode(damaged)
    value = to_json(decode(stored))
    with pytest.raises(ValueError, match="version"):
        from_json({**value, "version": 2})
    with pytest.raises(ValueError, match="name"):
        from_json({**value, "files": [{**value["files"][0], "path": "../../etc/cron"}]})
    with pytest.raises(ValueError, match="malformed"):
        from_json({**value, "files": [{"path": "m.safetensors"}]})
    with pytest.raises(ValueError, match="full"):
        from_json({**value, "layers": [[[], [], [], []]]})
