"""Uploaded imagefolders: labels, ids, and every way in which an upload is wrong."""

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping

import numpy as np
import pytest
from PIL import Image

from app.errors import Refused
from app.privacy.archive import Limits
from app.privacy.imagefolder import read_imagefolder
from app.privacy.images import DecodedSet, ImageLimits, decode, digest_of, index_of

RNG = np.random.default_rng(0)


def picture(form: str = "PNG", size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, size, dtype=np.uint8)).save(buffer, form)
    return buffer.getvalue()


def zipped(files: Mapping[str, bytes | str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def read(archive: bytes, private: bool = False, **limits: object) -> DecodedSet:
    return read_imagefolder(io.BytesIO(archive), lambda png, digest: None, private=private, **limits)  # type: ignore[arg-type]


def refusal(files: Mapping[str, bytes | str], private: bool = False, **limits: object) -> Refused:
    with pytest.raises(Refused) as caught:
        read(zipped(files), private, **limits)
    return caught.value


def labelled(decoded: DecodedSet) -> dict[str, str]:
    return {sample.sample_id: decoded.labels[sample.label] for sample in decoded.samples}


def lines(*rows: Mapping[str, object]) -> str:
    return "\n".join(json.dumps(row) for row in rows)


def test_class_folders_are_labels_and_paths_are_ids() -> None:
    decoded = read(zipped({"dog/2.jpg": picture("JPEG"), "cat/1.PNG": picture(), "cat/2.webp": picture("WEBP")}))
    assert decoded.labels == ["cat", "dog"]
    assert labelled(decoded) == {"dog/2": "dog", "cat/1": "cat", "cat/2": "cat"}


def test_a_tar_gz_is_read_like_a_zip() -> None:
    content, buffer = picture(), io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo("cat/1.png")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    assert read(buffer.getvalue()).samples == read(zipped({"cat/1.png": content})).samples


def test_number_folders_are_ordered_by_value() -> None:
    numbers = read(zipped({f"{label}/a.png": picture() for label in (10, 9, 2, 0)}))
    mixed = read(zipped({f"{label}/a.png": picture() for label in ("10", "9", "x")}))
    assert (numbers.labels, mixed.labels) == (["0", "2", "9", "10"], ["10", "9", "x"])


@pytest.mark.parametrize("above", ["", "train/", "digits/", "digits/test/"])
def test_folders_above_the_class_do_not_become_labels(above: str) -> None:
    decoded = read(zipped({f"{above}3/1.png": picture(), f"{above}4/1.png": picture()}))
    assert decoded.labels == ["3", "4"] and {sample.sample_id for sample in decoded.samples} == {
        f"{above}3/1",
        f"{above}4/1",
    }


def test_a_class_may_be_called_train() -> None:
    assert read(zipped({"car/1.png": picture(), "train/1.png": picture()})).labels == ["car", "train"]


def test_each_sample_keeps_its_pixels() -> None:
    contents = {f"cat/{at}.png": picture() for at in range(4)}
    kept: list[tuple[bytes, str]] = []
    decoded = read_imagefolder(
        io.BytesIO(zipped(contents)), lambda png, digest: kept.append((png, digest)), private=False
    )
    for sample, (png, digest), content in zip(decoded.samples, kept, contents.values(), strict=True):
        assert np.array_equal(decode(png, "x"), decode(content, "x"))
        assert sample.digest == digest == digest_of(decode(content, "x"))
    assert len({sample.digest for sample in decoded.samples}) == 4


def test_json_lines_give_labels_and_ids_from_their_own_folder() -> None:
    rows = lines(
        {"file_name": "a.png", "label": 10, "id": "p-7"}, {"file_name": "sub/b.png", "label": 9, "text": "more"}
    )
    decoded = read(zipped({"train/a.png": picture(), "train/sub/b.png": picture(), "train/metadata.jsonl": rows}))
    assert decoded.labels == ["9", "10"]
    assert labelled(decoded) == {"p-7": "10", "train/sub/b": "9"}


def test_a_csv_gives_labels_and_ids() -> None:
    table = '\ufefffile_name,label,id\na.png,"dog, big",7\nb.png,cat,\n'
    decoded = read(zipped({"metadata.csv": table, "a.png": picture(), "b.png": picture()}))
    assert labelled(decoded) == {"7": "dog, big", "b": "cat"}


def test_metadata_without_labels_leaves_them_to_the_folders() -> None:
    rows = lines({"file_name": "cat/1.png", "text": "a cat"})
    assert labelled(read(zipped({"metadata.jsonl": rows, "cat/1.png": picture()}))) == {"cat/1": "cat"}


def test_captions_are_kept_with_their_images_in_one_line() -> None:
    rows = lines(
        {"file_name": "cat/1.png", "text": " a cat,\n asleep "},
        {"file_name": "cat/2.png", "caption": "Käthe"},
        {"file_name": "cat/3.png", "text": "this", "caption": "that"},
        {"file_name": "cat/4.png", "text": None},
        {"file_name": "cat/5.png", "text": " "},
    )
    decoded = read(zipped({"metadata.jsonl": rows, **{f"cat/{at}.png": picture() for at in range(1, 7)}}))
    assert [sample.text for sample in decoded.samples] == ["a cat, asleep", "Käthe", "this", None, None, None]
    entries = index_of(decoded, lambda digest: [digest])["samples"]
    assert [entry.get("text") for entry in entries] == [sample.text for sample in decoded.samples]
    assert "text" not in entries[3] and entries[0]["text"] == "a cat, asleep"
    table = "file_name,label,text\na.png,cat,one\nb.png,cat,\n"
    by_csv = read(zipped({"metadata.csv": table, "a.png": picture(), "b.png": picture()}))
    assert [sample.text for sample in by_csv.samples] == ["one", None]


@pytest.mark.parametrize("text", [3, ["x"], True, "x" * 2001, "a\u0000b", "\ud800", "\u202e"])
def test_a_caption_that_is_no_plain_text_names_its_line_and_not_itself(text: object) -> None:
    row = lines({"file_name": "a.png", "label": "x"}, {"file_name": "b.png", "label": "x", "text": text})
    caught = refusal({"metadata.jsonl": row, "a.png": picture(), "b.png": picture()}, private=True)
    assert caught.code == "metadata-format" and caught.field.endswith("line 2")
    assert str(text) not in caught.detail.replace("2000", "")


def test_a_private_set_calls_samples_by_number() -> None:
    rows = lines({"file_name": "a.png", "label": "x", "id": "Jane"}, {"file_name": "b.png", "label": "x", "id": "Jane"})
    decoded = read(zipped({"metadata.jsonl": rows, "a.png": picture(), "b.png": picture()}), private=True)
    assert [sample.sample_id for sample in decoded.samples] == ["0", "1"]


@pytest.mark.parametrize(
    "files", [{}, {"cat/": b""}, {"metadata.jsonl": ""}, {"__MACOSX/a.png": b"x", ".DS_Store": b"x"}]
)
def test_no_image_at_all_is_refused(files: Mapping[str, bytes | str]) -> None:
    refused = refusal(files)
    assert (refused.code, refused.field, refused.status) == ("images-none", "archive", 422)


@pytest.mark.parametrize("name", ["README.md", "cat/1.gif", "cat/1.svg", "cat/1", "metadata.parquet", "cat/x.py"])
def test_a_file_of_another_kind_is_refused(name: str) -> None:
    refused = refusal({"cat/1.png": picture(), name: b"x"})
    assert refused.code == "file-type" and name in refused.field


def test_an_image_without_a_label_is_refused() -> None:
    assert refusal({"1.png": picture()}).code == "label-missing"
    assert refusal({"train/1.png": picture()}).code == "label-missing"
    row = lines({"file_name": "1.png", "label": "cat"})
    missing = refusal({"metadata.jsonl": row, "1.png": picture(), "2.png": picture()})
    assert missing.code == "label-missing" and "2.png" in missing.field


def test_two_splits_in_one_set_are_refused() -> None:
    assert refusal({"train/cat/1.png": picture(), "test/cat/1.png": picture()}).code == "split-mixed"
    rows = lines({"file_name": "train/1.png", "label": "a"}, {"file_name": "test/1.png", "label": "a"})
    assert refusal({"metadata.jsonl": rows, "train/1.png": picture(), "test/1.png": picture()}).code == "split-mixed"


def test_two_samples_of_one_id_are_refused() -> None:
    assert refusal({"cat/1.png": picture(), "cat/1.jpg": picture("JPEG")}).code == "sample-duplicate"
    rows = lines({"file_name": "a.png", "label": 1, "id": 5}, {"file_name": "b.png", "label": 1, "id": "5"})
    assert refusal({"metadata.jsonl": rows, "a.png": picture(), "b.png": picture()}).code == "sample-duplicate"


@pytest.mark.parametrize(
    ("metadata", "code", "line"),
    [
        ("{", "metadata-format", 1),
        ('{"file_name": "a.png"}\n[1]', "metadata-format", 2),
        ('{"label": 1}', "metadata-format", 1),
        ('{"file_name": 3}', "metadata-format", 1),
        ('{"file_name": "a.png", "label": true}', "metadata-format", 1),
        ('{"file_name": "a.png", "label": 1.5}', "metadata-format", 1),
        ('{"file_name": "a.png", "label": [1]}', "metadata-format", 1),
        ('{"file_name": "a.png", "label": ""}', "metadata-format", 1),
        ('{"file_name": "a.png", "label": "%s"}' % ("x" * 201), "metadata-format", 1),
        ("[" * 60_000, "metadata-format", 1),
        ("[" * 100_000, "metadata-too-large", 1),
        ('{"file_name": "../a.png", "label": 1}', "metadata-path", 1),
        ('{"file_name": "b.png", "label": 1}', "metadata-unmatched", 1),
        ('{"file_name": "a.png", "label": 1}\n{"file_name": "./a.png", "label": 2}', "metadata-duplicate", 2),
    ],
)
def test_metadata_that_cannot_be_followed_names_its_line(metadata: str, code: str, line: int) -> None:
    refused = refusal({"metadata.jsonl": metadata, "a.png": picture()})
    assert refused.code == code and refused.field.endswith(f"line {line}")


def test_a_csv_that_is_no_csv_is_refused() -> None:
    assert refusal({"metadata.csv": 'file_name,label\n"a.png,1\n', "a.png": picture()}).code == "metadata-format"
    assert refusal({"metadata.csv": "label\n1\n", "a.png": picture()}).code == "metadata-format"
    assert refusal({"metadata.csv": b"\xff\xfe\x00", "a.png": picture()}).code == "metadata-encoding"


def test_a_damaged_image_is_named_by_its_file_or_only_by_its_position() -> None:
    files = {"Jane Roe/1.png": picture(), "Jane Roe/2.png": picture()[:60]}
    assert refusal(files).field == "archive: entry 2 (Jane Roe/2.png)"
    private = refusal(files, private=True)
    assert (private.code, private.field) == ("image-damaged", "archive: entry 2")
    assert "Jane" not in str(private) + repr(vars(private))


@pytest.mark.parametrize(
    "files",
    [
        {"Jane.gif": b"x"},
        {"Jane.png": picture()},
        {"Jane.zip": b"x"},
        {"Jane/1.png": picture(), "Jane/1.jpg": picture("JPEG"), "../Jane": b""},
        {"metadata.jsonl": '{"file_name": "Jane.png", "label": 1}', "cat/a.png": picture()},
        {"metadata.jsonl": '{"file_name": "Jane.png", "label": ["Jane"]}', "Jane.png": picture()},
        {"metadata.csv": 'file_name,label\n"Jane.png,Jane', "Jane.png": picture()},
    ],
)
def test_no_refusal_of_a_private_set_tells_a_name(files: Mapping[str, bytes | str]) -> None:
    refused = refusal(files, private=True)
    assert "Jane" not in str(refused) + repr(vars(refused)) + repr(refused.marshal())


def test_limits_on_entries_pixels_and_the_whole_set() -> None:
    many = {f"cat/{at}.png": picture() for at in range(5)}
    assert refusal(many, limits=Limits(entries=4)).code == "archive-too-many-entries"
    assert refusal(many, image_limits=ImageLimits(pixels=63)).code == "image-too-large"
    refused = refusal(many, image_limits=ImageLimits(encoded_bytes=300))
    assert (refused.code, refused.status) == ("images-too-large", 413)
