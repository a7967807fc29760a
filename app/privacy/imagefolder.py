"""An uploaded imagefolder to a `DecodedSet`: which image has which label and which id.

Labels come from `metadata.jsonl` or `metadata.csv` (`file_name`, `label`, optionally `id` and a caption, `text` or
`caption`; `file_name` counts from the metadata file's own folder) or else from the folder that holds the image, as in
Hugging Face's imagefolder. The archive is read once, from front to end, and every image is decoded and re-encoded as it passes. In a private set (role forget)
samples are called by their ordinal, and no message or id carries a name from the archive.
"""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from app.errors import Refused
from app.privacy.archive import Limits, Member, members, refuse_nested_name
from app.privacy.images import DecodedSet, ImageLimits, Sample, decode, digest_of, encode

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"})
METADATA = ("metadata.jsonl", "metadata.csv")
METADATA_BYTES, LINE_BYTES = 32 << 20, 64 << 10
NAME_LENGTH = 200
TEXT_LENGTH = 2000


@dataclass(frozen=True)
class _Image:
    path: PurePosixPath
    where: str
    digest: str


@dataclass(frozen=True)
class _Row:
    where: str
    label: str | None
    sample_id: str | None
    text: str | None


def read_imagefolder(
    source: BinaryIO,
    keep: Callable[[bytes, str], None],
    *,
    private: bool,
    limits: Limits = Limits(),
    image_limits: ImageLimits = ImageLimits(),
    field: str = "archive",
) -> DecodedSet:
    """Decode a zip or tar(.gz) of images; `keep` gets each one's PNG and digest as it passes, in the samples' order. Refused
    names the entry (its position, when private) and the rule."""
    images: list[_Image] = []
    rows: dict[PurePosixPath, _Row] = {}
    encoded = 0
    for member in members(source, limits, field=field, private=private):
        path = PurePosixPath(member.name)
        if path.name.lower() in METADATA:
            for file, row in _metadata(member, path):
                if len(rows) >= limits.entries:
                    raise _metadata_too_large(row.where, f"At most {limits.entries} rows are read.")
                if rows.setdefault(file, row) is not row:
                    raise Refused("metadata-duplicate", row.where, "The file is described twice.", "Keep one row.")
            continue
        png, digest = _decoded(member, path, image_limits)
        encoded += len(png)
        if encoded > image_limits.encoded_bytes:
            raise Refused(
                "images-too-large",
                field,
                f"Decoded and packed again the images take more than {image_limits.encoded_bytes} bytes.",
                "Send fewer at a time.",
                413,
            )
        keep(png, digest)
        images.append(_Image(path, member.label, digest))
    if not images:
        raise Refused("images-none", field, "The archive holds no image.", "Add PNG, JPEG or WEBP files.")
    return _labelled(images, rows, private, field)


def _decoded(member: Member, path: PurePosixPath, limits: ImageLimits) -> tuple[bytes, str]:
    """The image's PNG and digest."""
    refuse_nested_name(member)
    if path.suffix.lower() not in SUFFIXES:
        raise Refused(
            "file-type",
            member.label,
            f"Only {', '.join(SUFFIXES)} and {', '.join(METADATA)} are read.",
            "Leave the file out.",
        )
    pixels = decode(member.read(), member.label, limits)
    return encode(pixels), digest_of(pixels)


def _metadata(member: Member, path: PurePosixPath) -> Iterator[tuple[PurePosixPath, _Row]]:
    """Each row as (the image's path in the archive, what it says)."""
    content = bytearray()
    for piece in member.pieces():
        content += piece
        if len(content) > METADATA_BYTES:
            raise _metadata_too_large(member.label, f"At most {METADATA_BYTES} bytes of metadata are read.")
    parse = _json_lines if path.suffix.lower() == ".jsonl" else _csv_lines
    for number, row in parse(_lines(content, member.label), member.label):
        where = f"{member.label} line {number}"
        file = row.get("file_name")
        if not isinstance(file, str) or not file:
            raise Refused("metadata-format", where, "A row needs `file_name`.", "Name the image it describes.")
        if file.startswith("/") or ".." in PurePosixPath(file).parts:
            raise Refused(
                "metadata-path",
                where,
                "`file_name` leaves the metadata's folder.",
                "Name the image from the folder that the metadata file lies in.",
            )
        label, sample_id = _name(row.get("label"), where), _name(row.get("id"), where)
        yield path.parent / file, _Row(where, label, sample_id, _caption(row, where))


def _lines(content: bytearray, where: str) -> Iterator[str]:
    """The lines, decoded one by one: what a line unfolds to in memory is many times its size."""
    for number, line in enumerate(BytesIO(content), start=1):
        if len(line) > LINE_BYTES:
            raise _metadata_too_large(f"{where} line {number}", f"A line has at most {LINE_BYTES} bytes.")
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise Refused("metadata-encoding", where, "Metadata must be UTF-8.", "Save it as UTF-8.") from None


def _metadata_too_large(where: str, rule: str) -> Refused:
    return Refused("metadata-too-large", where, rule, "Leave columns out.", 413)


def _json_lines(lines: Iterator[str], where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_no_number)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise Refused(
                "metadata-format",
                f"{where} line {number}",
                "The line is not a JSON object.",
                "Write one object per line.",
            )
        yield number, row


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _csv_lines(lines: Iterator[str], where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(lines, strict=True)
    try:
        for row in reader:
            yield reader.line_num, {key: value or None for key, value in row.items()}
    except csv.Error:
        raise Refused(
            "metadata-format",
            f"{where} line {reader.line_num}",
            "The line is not valid CSV.",
            "Save it as comma-separated values.",
        ) from None


def _name(value: object, where: str) -> str | None:
    """A label or id as text: strings and integers only."""
    if value is None:
        return None
    text = str(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or not 0 < len(text) <= NAME_LENGTH:
        raise Refused(
            "metadata-format",
            where,
            f"`label` and `id` must be integers or texts of at most {NAME_LENGTH} characters.",
            "Correct the row.",
        )
    return text


def _caption(row: dict[str, Any], where: str) -> str | None:
    """What the row says of its image, in one line: `text`, as Hugging Face calls it, or `caption`."""
    value = row.get("text") if row.get("text") is not None else row.get("caption")
    if value is None:
        return None
    text = " ".join(value.split()) if isinstance(value, str) else None
    if text is None or len(text) > TEXT_LENGTH or not text.isprintable():
        raise Refused(
            "metadata-format",
            where,
            f"`text` must be printable text of at most {TEXT_LENGTH} characters.",
            "Correct the row.",
        )
    return text or None


def _labelled(images: list[_Image], rows: dict[PurePosixPath, _Row], private: bool, field: str) -> DecodedSet:
    for path in rows.keys() - {image.path for image in images}:
        raise Refused(
            "metadata-unmatched",
            rows[path].where,
            "The row names an image that the archive does not hold.",
            "Add the image or remove the row; `file_name` counts from the metadata file's folder.",
        )
    names = _label_names(images, rows, field)
    labels = _ordered(set(names))
    number = {name: index for index, name in enumerate(labels)}
    samples, seen = [], set()
    for ordinal, (image, name) in enumerate(zip(images, names, strict=True)):
        row = rows.get(image.path)
        own = row.sample_id if row and row.sample_id is not None else str(image.path.with_suffix(""))
        sample_id = str(ordinal) if private else own
        if sample_id in seen:
            raise Refused(
                "sample-duplicate",
                image.where,
                "Two images have the same id.",
                "Rename one: an id is `id` of the metadata, or the path without its ending.",
            )
        seen.add(sample_id)
        samples.append(Sample(sample_id, number[name], image.digest, row.text if row else None))
    return DecodedSet(labels, samples)


def _label_names(images: list[_Image], rows: dict[PurePosixPath, _Row], field: str) -> list[str]:
    """Each image's label: its row's, or its folder's when no metadata carries labels."""
    by_row = any(row.label is not None for row in rows.values())
    names, splits = [], set()
    for image in images:
        folders = image.path.parts[:-1]
        if by_row:
            row = rows.get(image.path)
            if row is None or row.label is None:
                raise Refused("label-missing", image.where, "The metadata has no label for this image.", "Add its row.")
            names.append(row.label)
        elif folders:
            names.append(folders[-1])
            folders = folders[:-1]
        else:
            raise Refused(
                "label-missing",
                image.where,
                "The image has neither a class folder nor a metadata row.",
                "Put it into a folder named after its label, or add metadata.jsonl.",
            )
        splits |= {part for part in folders if part in SPLITS}
    if len(splits) > 1:
        raise Refused(
            "split-mixed", field, "The archive holds more than one split.", "Upload each split as a set of its own."
        )
    if not by_row and set(names) <= SPLITS:
        raise Refused(
            "label-missing",
            field,
            "The only folders are splits, so no image has a label.",
            "Add a folder per class below, or metadata.jsonl.",
        )
    return names


def _ordered(names: set[str]) -> list[str]:
    """Numbers by value when all names are numbers (so 10 follows 9), else by text."""
    if all(name.isascii() and name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)
