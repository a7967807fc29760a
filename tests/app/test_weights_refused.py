"""Weights from outside: a header that breaks a rule, and every pickle, is refused before a byte of it is believed."""

import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from app.weights import describe, pack_base


def write(directory: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)
    return directory


def headed(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(start: int, end: int, dtype: str = "U8", shape: object = None) -> dict[str, object]:
    return {"dtype": dtype, "shape": [end - start] if shape is None else shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "too few"),
        (b"1234567", "too few"),
        ((100_000_001).to_bytes(8, "little") + b"{}", "at most 8388608"),
        ((50).to_bytes(8, "little") + b"{}", "the file has only 2"),
        (headed(b"[]"), "not a JSON object"),
        (headed(b'{"a": '), "not valid JSON"),
        (headed(b'{"a": "\xff"}'), "not valid JSON"),
        (headed(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "not valid JSON"),
        (headed(b'{"a": {"dtype":"U8","shape":[0],"data_offsets":[0,0]}, "a": 1}'), "'a' appears twice"),
        (headed({"__metadata__": {"format": 1}}), "strings to strings"),
        (headed({"a": entry(0, 2)}, b"x"), "ends before"),
        (headed({"a": entry(0, 2)}, b"xyz"), "bytes follow"),
        (headed({"a": entry(0, 2), "b": entry(1, 3)}, b"xyz"), "'b' overlaps"),
        (headed({"a": entry(0, 2), "b": entry(0, 2)}, b"xy"), "overlaps"),
        (headed({"a": entry(0, 2), "b": entry(3, 4)}, b"xyzw"), "'b' leaves a hole"),
        (headed({"a": entry(1, 2)}, b"xy"), "'a' leaves a hole"),
        (headed({"a": entry(0, 2, "F4")}, b"xy"), "unknown dtype 'F4'"),
        (headed({"a": entry(0, 2, "F32", [1])}, b"xy"), "takes 4 bytes"),
        (headed({"a": entry(2, 0, shape=[-2])}, b"xy"), "natural numbers"),
        (headed({"a": entry(0, 2, shape=[True, 2])}, b"xy"), "natural numbers"),
        (headed({"a": entry(0, 2, shape=[2.0])}, b"xy"), "natural numbers"),
        (headed({"a": {**entry(0, 2), "pointer": 0}}, b"xy"), "and nothing else"),
        (headed({"a": {"dtype": "U8", "shape": [0], "data_offsets": [0]}}), "two natural numbers"),
        (headed({"a\ud800": entry(0, 0)}), "cannot be printed"),
    ],
)
def test_a_header_that_breaks_a_rule_is_refused_by_name_and_rule(tmp_path: Path, content: bytes, rule: str) -> None:
    write(tmp_path / "v", {"good.safetensors": headed({}), "sub/bad.safetensors": content})
    with pytest.raises(ValueError, match=rule) as refused:
        describe(tmp_path / "v")
    assert str(refused.value).startswith("sub/bad.safetensors: ")
    with pytest.raises(ValueError, match=rule):
        pack_base(tmp_path / "v", tmp_path / "pack", "packs/1")
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "ckpt", "pkl", "PKL", "npz"])
def test_a_pickle_is_refused_by_name(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "v", {"good.safetensors": headed({}), f"weights.{suffix}": b"harmless"})
    with pytest.raises(ValueError, match=rf"^weights\.{suffix}: only \.safetensors"):
        describe(tmp_path / "v")


@pytest.mark.parametrize("name", ["model.safetensors", "notes.txt", "no_suffix"])
def test_a_pickle_is_refused_by_content(tmp_path: Path, name: str) -> None:
    directory = write(tmp_path / "v", {"good.safetensors": headed({})})
    (directory / name).write_bytes(pickle.dumps({"w": [1.0] * 50}))
    with pytest.raises(ValueError, match=f"^{name}: its content is a pickle"):
        describe(directory)
    torch.save({"w": torch.zeros(3)}, directory / name)
    assert zipfile.is_zipfile(directory / name)
    with pytest.raises(ValueError, match=f"^{name}: its content is a zip archive"):
        describe(directory)


def test_a_header_length_that_looks_like_a_pickle_is_still_safetensors(tmp_path: Path) -> None:
    data = headed(json.dumps({"w": entry(0, 1)}).encode().ljust(0x0280), b"x")
    assert data[:2] == b"\x80\x02"
    described = describe(write(tmp_path / "v", {"m.safetensors": data}))
    assert described[0].header is not None and described[0].header.length == 0x0280 + 8


def test_links_and_a_directory_without_weights_are_refused(tmp_path: Path) -> None:
    directory = write(tmp_path / "v", {"config.json": b"{}"})
    with pytest.raises(ValueError, match=r"no \.safetensors"):
        describe(directory)
    write(tmp_path, {"elsewhere": headed({})})
    (directory / "m.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"^m\.safetensors: only plain files"):
        describe(directory)


def test_what_the_library_writes_is_described_as_the_library_reads_it(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4).half(), "b": torch.zeros(0, 2), "c": torch.tensor([True, False])}
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    (file,) = describe(tmp_path)
    assert file.header is not None and file.header.metadata == {"format": "pt"}
    assert {t.name: (t.dtype, t.shape) for t in file.header.tensors} == {
        "a": ("F16", (3, 4)),
        "b": ("F32", (0, 2)),
        "c": ("BOOL", (2,)),
    }
