"""The archive guard against archives as an attacker would build them."""

import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import Refused
from app.privacy.archive import Limits, entries

SMALL = Limits(entries=10, entry_bytes=8 << 20, total_bytes=12 << 20, ratio=50)
TREE = {"cat/1.png": b"first", "dog/2.png": b"", "dog/3.png": os.urandom(3000)}
Pack = Callable[[Mapping[str, bytes]], bytes]


def zipped(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(files: Mapping[str, bytes]) -> bytes:
    return tar_of(*((tarfile.TarInfo(name), content) for name, content in files.items()))


def tar_of(*infos: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for info, content in infos:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def gzipped(files: Mapping[str, bytes]) -> bytes:
    return gzip.compress(tarred(files))


def read(archive: bytes, limits: Limits = SMALL, private: bool = False) -> dict[str, bytes]:
    return dict(entries(io.BytesIO(archive), limits, private=private))


def refusal(archive: bytes, limits: Limits = SMALL, private: bool = False) -> Refused:
    with pytest.raises(Refused) as caught:
        read(archive, limits, private)
    return caught.value


every_kind = pytest.mark.parametrize("pack", [zipped, tarred, gzipped])


@every_kind
def test_files_come_in_order_with_their_content(pack: Pack) -> None:
    assert list(read(pack(TREE)).items()) == list(TREE.items())


@every_kind
def test_litter_of_desktop_systems_is_left_out(pack: Pack) -> None:
    litter = {"__MACOSX/cat/._1.png": b"x", "cat/.DS_Store": b"x", "cat/._1.png": b"x", "Thumbs.db": b"x"}
    assert read(pack(litter | TREE)) == TREE


@every_kind
def test_folders_and_leading_dots_do_not_show(pack: Pack) -> None:
    assert read(pack({"./cat/1.png": b"first"})) == {"cat/1.png": b"first"}


def test_a_packed_folder_of_a_real_disk_is_read(tmp_path: os.PathLike[str]) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        folder = os.path.join(tmp_path, "cat")
        os.mkdir(folder)
        with open(os.path.join(folder, "1.png"), "wb") as file:
            file.write(b"first")
        archive.add(tmp_path, arcname=".")
    assert read(buffer.getvalue()) == {"cat/1.png": b"first"}


@every_kind
@pytest.mark.parametrize(
    "name", ["../up.png", "cat/../../up.png", "/etc/up.png", "cat\\up.png", "C:up.png", "//up.png"]
)
def test_a_name_that_leaves_the_folder_is_refused(pack: Pack, name: str) -> None:
    refused = refusal(pack({"cat/1.png": b"x", name: b"x"}))
    assert (refused.code, refused.status) == ("archive-path", 422)
    assert refused.field.startswith("archive: entry 2 (")


@every_kind
@pytest.mark.parametrize("name", ["a\n.png", "x" * 600])
def test_a_name_that_cannot_be_shown_is_refused(pack: Pack, name: str) -> None:
    refused = refusal(pack({name: b"x"}))
    assert refused.code == "archive-path"
    assert "\n" not in str(refused) and len(refused.field) < 260


@every_kind
def test_a_name_of_a_screenshot_with_odd_spaces_is_fine(pack: Pack) -> None:
    assert list(read(pack({"cat/at 1.00\u202fPM\u00a0é.png": b"x"}))) == ["cat/at 1.00\u202fPM\u00a0é.png"]


def test_links_devices_and_sparse_entries_are_refused() -> None:
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE)
    for kind in kinds:
        info = tarfile.TarInfo("cat/1.png")
        info.type, info.linkname = kind, "/etc/passwd"
        assert refusal(tar_of((info, b""))).code == "archive-link", kind
    sparse = tarfile.TarInfo("cat/1.png")
    sparse.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.map": "0,1", "GNU.sparse.size": "4000000"}
    assert refusal(tar_of((sparse, b"x"))).code == "archive-link"


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_a_link_or_device_in_a_zip_is_refused(kind: int) -> None:
    info = zipfile.ZipInfo("cat/1.png")
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    assert refusal(buffer.getvalue()).code == "archive-link"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_same_name_twice_is_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("cat/1.png", b"one")
        archive.writestr("cat/./1.png", b"two")
    twice = tar_of((tarfile.TarInfo("cat/1.png"), b"one"), (tarfile.TarInfo("./cat/1.png"), b"two"))
    for archive_bytes in (buffer.getvalue(), twice, gzip.compress(twice)):
        refused = refusal(archive_bytes)
        assert refused.code == "archive-duplicate" and "entry 2" in refused.field


@every_kind
def test_more_entries_than_allowed_are_refused(pack: Pack) -> None:
    refused = refusal(pack({f"cat/{number}.png": b"x" for number in range(11)}))
    assert (refused.code, refused.status) == ("archive-too-many-entries", 413)


def test_a_table_of_contents_of_millions_is_refused_before_it_is_parsed() -> None:
    many = zipped({f"{number}": b"" for number in range(50)})
    assert refusal(many, Limits(entries=49)).code == "archive-too-many-entries"
    start = len(many)
    huge = many + bytes(40 << 20)
    huge += struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(huge) - start, start, 0)
    assert refusal(huge).code == "archive-too-many-entries"


@every_kind
def test_a_file_or_a_sum_beyond_its_limit_is_refused(pack: Pack) -> None:
    random = os.urandom(5 << 20)
    large = refusal(pack({"a.png": random}), Limits(entry_bytes=4 << 20))
    together = refusal(pack({"a.png": random, "b.png": random, "c.png": random}))
    assert (large.code, large.status) == (together.code, together.status) == ("archive-too-large", 413)


@pytest.mark.parametrize("pack", [zipped, gzipped])
def test_content_that_swells_is_refused(pack: Pack) -> None:
    refused = refusal(pack({"a.png": bytes(7 << 20)}))
    assert (refused.code, refused.status) == ("archive-ratio", 413)


def test_small_files_that_swell_together_are_refused() -> None:
    assert refusal(zipped({f"{n}.png": bytes(1 << 20) for n in range(9)})).code == "archive-ratio"


def test_a_zip_that_lies_about_its_size_is_refused() -> None:
    honest = zipped({"a.png": bytes(1 << 20)})
    claimed = honest.replace(struct.pack("<L", 1 << 20), struct.pack("<L", 100))
    assert claimed != honest and refusal(claimed).code == "archive-damaged"


def test_a_zip_whose_entries_share_bytes_is_refused() -> None:
    honest = zipped({"a.png": os.urandom(9000)}, zipfile.ZIP_STORED)
    at = honest.index(b"PK\x01\x02")
    end = honest.index(b"PK\x05\x06")
    record = honest[at:end]
    second = record.replace(b"a.png", b"b.png")
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 2, 2, 2 * len(record), at, 0)
    refused = refusal(honest[:at] + record + second + tail)
    assert (refused.code, refused.rule) == ("archive-overlap", "Entries share their bytes.")


def test_a_tar_header_of_gigabytes_is_refused_unread() -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 3 << 30
    refused = refusal(info.tobuf() + bytes(4096))
    assert (refused.code, refused.rule) == ("archive-damaged", "A header claims an unreasonable size.")


def test_a_chain_of_tar_headers_without_end_is_refused() -> None:
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1
    chain = (info.tobuf() + b"x" + bytes(511)) * 3000
    assert refusal(chain).code == "archive-damaged"


@every_kind
@pytest.mark.parametrize("name", ["inner.zip", "inner.tar.gz", "inner.7z", "INNER.RAR"])
def test_a_nested_archive_is_refused_by_name(pack: Pack, name: str) -> None:
    assert refusal(pack({name: b"x"})).code == "archive-nested"


@every_kind
@pytest.mark.parametrize("inner", [zipped(TREE), tarred(TREE), gzipped(TREE)])
def test_a_nested_archive_is_refused_by_content(pack: Pack, inner: bytes) -> None:
    assert refusal(pack({"cat/1.png": inner})).code == "archive-nested"


def test_an_encrypted_entry_is_refused() -> None:
    honest = bytearray(zipped({"a.png": b"x" * 50}, zipfile.ZIP_STORED))
    at = honest.index(b"PK\x01\x02")
    honest[6] |= 1
    honest[at + 8] |= 1
    assert refusal(bytes(honest)).code == "archive-encrypted"


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_rare_zip_compression_is_refused(method: int) -> None:
    assert refusal(zipped({"a.png": b"x"}, method)).code == "archive-compression"


@pytest.mark.parametrize("content", [b"", b"hello", bytes(2000), b"\x89PNG\r\n\x1a\n", b"BZh91AY", os.urandom(999)])
def test_what_is_no_archive_is_refused(content: bytes) -> None:
    refused = refusal(content)
    assert (refused.code, refused.field) == ("archive-format", "archive")


@every_kind
@given(st.data())
def test_an_archive_cut_anywhere_is_refused_or_was_whole(pack: Pack, data: st.DataObject) -> None:
    whole = pack(TREE)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    try:
        assert read(cut) == TREE  # only the padding behind a tar's end may be missing
        assert pack is tarred
    except Refused as refused:
        assert refused.code in ("archive-damaged", "archive-format")


@every_kind
@given(st.data())
def test_a_changed_byte_gives_a_refusal_or_plain_files(pack: Pack, data: st.DataObject) -> None:
    changed = bytearray(pack(TREE))
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        assert len(read(bytes(changed))) <= 3
    except Refused as refused:
        assert refused.code.startswith("archive-")


@every_kind
def test_no_refusal_of_a_private_archive_quotes_a_name(pack: Pack) -> None:
    name = "Jane Roe/../passport.png"
    refused = refusal(pack({"cat/1.png": b"x", name: b"x"}), private=True)
    assert refused.field == "archive: entry 2"
    assert "Jane" not in str(refused) and "passport" not in repr(vars(refused))


def test_a_private_zip_with_a_damaged_entry_does_not_quote_the_library() -> None:
    honest = bytearray(zipped({"Jane Roe.png": b"x" * 50}, zipfile.ZIP_STORED))
    honest[30] ^= 1  # the local header now has another name than the table of contents
    refused = refusal(bytes(honest), private=True)
    assert refused.code == "archive-mismatch" and "Roe" not in str(refused)
    assert refused.__suppress_context__


def test_deflate_with_trailing_surprise_is_damage() -> None:
    body = zlib.compress(b"x" * 100)[2:-4]
    broken = bytearray(zipped({"a.png": b"x" * 100}))
    at = broken.index(body)
    broken[at : at + len(body)] = bytes(len(body))
    assert refusal(bytes(broken)).code == "archive-damaged"
