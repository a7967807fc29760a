"""Reading an uploaded zip or tar(.gz) from a stranger, one member at a time, nothing unpacked.

Every rule is checked against what is really read, never only against what a header declares. A refusal names the member
and the rule; for a private archive (a forget set) it names the member's position instead, because file names tell who
someone is. The caller gives a seekable file: memory for a forget set, a private temporary file for anything else.
"""

import gzip
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from app.errors import Refused

_PIECE = 1 << 20
_DIRECTORY, _DIRECTORY_ENTRY = 64 << 20, 1024  # bytes of a zip's table of contents, in all and for an entry
_GROWTH_FLOOR = 4 << 20  # small members compress freely: a ratio says something only about big ones
_NESTED_SUFFIXES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".jar", ".whl", ".lz4")
_NESTED_HEADS = (
    b"PK\x03\x04",
    b"PK\x05\x06",
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ",
    b"7z\xbc\xaf",
    b"Rar!",
    b"\x28\xb5\x2f\xfd",
)
_JUNK = {".DS_Store", "Thumbs.db", "desktop.ini"}
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    tarfile.TarError,
    gzip.BadGzipFile,
    ValueError,
    NotImplementedError,
    RuntimeError,
)  # what the standard library raises on damaged input


@dataclass(frozen=True)
class Limits:
    """Ceilings of one archive. Ratio: bytes out per byte in, beyond the first 4 MiB."""

    entries: int = 100_000
    entry_bytes: int = 64 << 20
    total_bytes: int = 4 << 30
    ratio: int = 100
    name_length: int = 512


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class Member:
    """One regular file of an archive. `label` is how a message may call it."""

    name: str
    position: int
    label: str
    source: Readable
    limit: int

    def pieces(self) -> Iterator[bytes]:
        """The content in pieces, counted as it comes."""
        left = self.limit
        with _damage_refused(self.label):
            while piece := self.source.read(min(_PIECE, left + 1)):
                left -= len(piece)
                if left < 0:
                    raise Refused(
                        "archive-too-large",
                        self.label,
                        f"A file may have at most {self.limit} bytes.",
                        "Send a smaller file.",
                        413,
                    )
                yield piece

    def read(self) -> bytes:
        return b"".join(self.pieces())


def entries(
    source: BinaryIO, limits: Limits = Limits(), *, field: str = "archive", private: bool = False
) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file in archive order; nested archives refused by name and by content."""
    for member in members(source, limits, field=field, private=private):
        refuse_nested_name(member)
        content = member.read()
        if content.startswith(_NESTED_HEADS) or content[257:262] == b"ustar":
            raise _nested(member.label)
        yield member.name, content


def members(
    source: BinaryIO, limits: Limits = Limits(), *, field: str = "archive", private: bool = False
) -> Iterator[Member]:
    """The files of an archive in its order, system litter left out. Use each member before asking for the next."""
    names = _Names(limits, field, private)
    source.seek(0)
    head = source.read(512)
    source.seek(0)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        yield from _zip_members(source, names)
    elif head.startswith(b"\x1f\x8b"):
        with gzip.GzipFile(fileobj=source) as unpacked:
            yield from _tar_members(_TarStream(unpacked, source, names), names)
    elif head[257:262] == b"ustar":
        yield from _tar_members(_TarStream(source, None, names), names)
    else:
        raise Refused(
            "archive-format",
            field,
            "The upload is not a zip, tar or tar.gz archive.",
            "Pack the folder as one of these.",
        )


def refuse_nested_name(member: Member) -> None:
    if member.name.lower().endswith(_NESTED_SUFFIXES):
        raise _nested(member.label)


class _Names:
    """The rules on names and counts that both kinds of archive share."""

    def __init__(self, limits: Limits, field: str, private: bool) -> None:
        self.limits, self.field, self.private = limits, field, private
        self.seen: set[str] = set()
        self.position = 0

    def label(self, name: str) -> str:
        shown = name[:200].encode("unicode_escape").decode("ascii")
        return f"{self.field}: entry {self.position}" + ("" if self.private else f" ({shown})")

    def clean(self, name: str) -> tuple[str, str]:
        """The member's name with `/` between its parts, and its label."""
        self.position += 1
        label = self.label(name)
        if self.position > self.limits.entries:
            raise self.too_many()
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts or "\\" in name or name[1:2] == ":":
            raise Refused(
                "archive-path",
                label,
                "A name must be relative, with / between folders and without `..`.",
                "Pack the folder again with plain relative names.",
            )
        if len(name) > self.limits.name_length or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
            raise Refused(
                "archive-path",
                label,
                f"A name has at most {self.limits.name_length} characters, none of them a control character.",
                "Rename the file.",
            )
        clean = "/".join(parts)
        if (known := _folded(parts)) in self.seen:
            raise Refused(
                "archive-duplicate",
                label,
                "Two entries have the same name, or one file name in other letters (A and a, or other Unicode forms).",
                "Keep one of them, or rename it.",
            )
        self.seen.add(known)
        return clean, label

    def too_many(self) -> Refused:
        return Refused(
            "archive-too-many-entries",
            self.field,
            f"At most {self.limits.entries} entries are read.",
            "Split the upload.",
            413,
        )

    def too_large(self, label: str, limit: int) -> Refused:
        return Refused("archive-too-large", label, f"At most {limit} bytes are unpacked.", "Send less at a time.", 413)

    def ratio(self, label: str) -> Refused:
        return Refused(
            "archive-ratio",
            label,
            f"Content that unpacks to more than {self.limits.ratio} times its size is refused.",
            "Store the files without compression.",
            413,
        )


def _zip_members(source: BinaryIO, names: _Names) -> Iterator[Member]:
    directory = _ZipDirectory(source, names)
    with _damage_refused(names.field):
        archive = zipfile.ZipFile(directory)  # type: ignore[type-var]
    directory.opening = False
    with archive:
        checked = [_checked(info, names) for info in archive.infolist()]
        if sum(info.file_size for _, _, info in checked) > names.limits.total_bytes:
            raise names.too_large(names.field, names.limits.total_bytes)
        packed = sum(info.compress_size for _, _, info in checked)
        if sum(info.file_size for _, _, info in checked) > _GROWTH_FLOOR + names.limits.ratio * packed:
            raise names.ratio(names.field)
        if packed + 30 * len(checked) > directory.size:
            raise Refused("archive-overlap", names.field, "Entries share their bytes.", "Pack the folder again.")
        for position, (name, label, info) in enumerate(checked, start=1):
            if info.is_dir() or _is_junk(name):
                continue
            try:
                opened = archive.open(info)
            except _BROKEN:
                raise Refused(
                    "archive-mismatch",
                    label,
                    "The archive's table of contents says another thing than the entry itself.",
                    "Pack the folder again.",
                ) from None
            with opened:
                yield Member(name, position, label, opened, names.limits.entry_bytes)


def _checked(info: zipfile.ZipInfo, names: _Names) -> tuple[str, str, zipfile.ZipInfo]:
    name, label = names.clean(info.orig_filename)
    if info.flag_bits & 0x41:
        raise Refused("archive-encrypted", label, "Encrypted entries are not read.", "Pack without a password.")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _special(label)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refused(
            "archive-compression", label, "Only stored and deflated entries are read.", "Pack as a plain zip."
        )
    if info.file_size > names.limits.entry_bytes:
        raise names.too_large(label, names.limits.entry_bytes)
    if info.file_size > _GROWTH_FLOOR + names.limits.ratio * info.compress_size:
        raise names.ratio(label)
    return name, label, info


def _tar_members(stream: "_TarStream", names: _Names) -> Iterator[Member]:
    with _damage_refused(names.field):
        archive = tarfile.TarFile(fileobj=stream)  # type: ignore[arg-type]  # a reader of our own
    while True:
        with _damage_refused(names.field):
            info = archive.next()
        if info is None:
            break
        name, label = names.clean(info.name)
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or info.issparse():
            raise _special(label)
        if info.size < 0:
            raise Refused("archive-damaged", label, "An entry has a negative size.", "Pack the folder again.")
        if info.size > names.limits.entry_bytes:
            raise names.too_large(label, names.limits.entry_bytes)
        opened = archive.extractfile(info)
        if opened is not None and not _is_junk(name):
            yield Member(name, names.position, label, opened, names.limits.entry_bytes)
    if stream.last != bytes(512):
        raise Refused("archive-damaged", names.field, "The archive ends in the middle.", "Send it again.")
    with _damage_refused(names.field):
        while stream.read(_PIECE):  # a gzip checks its digest at its end
            continue


class _ZipDirectory:
    """A zip's file while `zipfile` opens it: its table of contents is read at once, so its size is capped here."""

    def __init__(self, source: BinaryIO, names: _Names) -> None:
        self.source, self.names, self.opening = source, names, True
        self.size = source.seek(0, 2)
        self.seek, self.tell, self.seekable = source.seek, source.tell, source.seekable

    def read(self, size: int = -1) -> bytes:
        if self.opening and size > (128 << 10) + min(_DIRECTORY, self.names.limits.entries * _DIRECTORY_ENTRY):
            raise self.names.too_many()
        content = self.source.read(size)
        if self.opening and content.count(b"PK\x01\x02") > self.names.limits.entries:
            raise self.names.too_many()
        return content


class _TarStream:
    """A tar's bytes, forward only, counted: total size, growth under gzip, and no header of unreasonable size."""

    def __init__(self, source: Readable, packed: BinaryIO | None, names: _Names) -> None:
        self.source, self.packed, self.names = source, packed, names
        self.position, self.last = 0, b""
        self.ceiling = names.limits.total_bytes + 2048 * names.limits.entries

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= 2 * _PIECE:
            raise Refused(
                "archive-damaged", self.names.field, "A header claims an unreasonable size.", "Pack it again."
            )
        pieces, left = [], size
        while left and (piece := self.source.read(left)):
            pieces.append(piece)
            left -= len(piece)
        self.last = b"".join(pieces)
        self.position += len(self.last)
        if self.position > self.ceiling:
            raise self.names.too_large(self.names.field, self.names.limits.total_bytes)
        if self.packed and self.position > _GROWTH_FLOOR + self.names.limits.ratio * self.packed.tell():
            raise self.names.ratio(self.names.field)
        return self.last

    def seek(self, position: int, whence: int = 0) -> int:
        if whence or position < self.position:
            raise tarfile.StreamError("a tar is read forward only")
        while self.position < position and self.read(min(_PIECE, position - self.position)):
            continue
        return self.position

    def tell(self) -> int:
        return self.position


@contextmanager
def _damage_refused(label: str) -> Iterator[None]:
    """Damage found while reading becomes a refusal; `from None`, because the library's texts quote file names."""
    try:
        yield
    except _BROKEN:
        raise Refused(
            "archive-damaged", label, "The archive is damaged or cut off.", "Pack it and send it again."
        ) from None


def _folded(parts: list[str]) -> str:
    """A name as a disk may see it that knows no case or Unicode forms; folders keep their case, since labels may be letters."""
    *folders, last = (unicodedata.normalize("NFC", part) for part in parts or [""])
    return "/".join([*folders, last.casefold()])


def _is_junk(name: str) -> bool:
    *folders, last = name.split("/")
    return "__MACOSX" in folders or last in _JUNK or last.startswith("._")


def _special(label: str) -> Refused:
    return Refused(
        "archive-link",
        label,
        "Links, devices, sparse and other special entries are refused.",
        "Pack regular files only.",
    )


def _nested(label: str) -> Refused:
    return Refused("archive-nested", label, "An archive inside the archive is not opened.", "Unpack it first.")
