"""Decoding single images, and the kept form of a set."""

import io
import struct
import time
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from app.errors import Refused
from app.privacy.images import (
    DecodedSet,
    ImageLimits,
    Sample,
    decode,
    digest_of,
    encode,
    index_of,
    read_index,
    read_set,
    set_pieces,
)

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (9, 7, 3), dtype=np.uint8)
GREY = COLOUR[:, :, 0].copy()


def saved(pixels: np.ndarray, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def refusal(content: bytes, limits: ImageLimits = ImageLimits()) -> Refused:
    with pytest.raises(Refused) as caught:
        decode(content, "archive: entry 3", limits)
    assert caught.value.field == "archive: entry 3"
    return caught.value


def write_set(decoded: DecodedSet, pictures: list[np.ndarray]) -> bytes:
    pieces = ([encode(picture)[:40], encode(picture)[40:]] for picture in pictures)
    return b"".join(set_pieces(pieces, lambda: index_of(decoded, lambda digest: [f"keyed {digest}"])))


@pytest.mark.parametrize("pixels", [COLOUR, GREY])
def test_png_and_lossless_webp_keep_every_pixel(pixels: np.ndarray) -> None:
    decoded = decode(saved(pixels, "PNG"), "x")
    assert decoded.dtype == np.uint8 and np.array_equal(decoded, pixels)
    webp = decode(saved(COLOUR, "WEBP", lossless=True), "x")
    assert np.array_equal(webp, COLOUR)


def test_jpeg_decodes_to_its_shape() -> None:
    assert decode(saved(COLOUR, "JPEG"), "x").shape == (9, 7, 3)
    assert decode(saved(GREY, "JPEG"), "x").shape == (9, 7)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "CMYK", "YCbCr"])
def test_every_mode_becomes_grey_or_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    picture = Image.new(mode, (5, 4))
    picture.save(buffer, "JPEG" if mode in ("CMYK", "YCbCr") else "PNG" if mode != "PA" else "WEBP")
    assert decode(buffer.getvalue(), "x").shape in ((4, 5), (4, 5, 3))


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    deep = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    assert decode(saved(deep, "PNG"), "x").tolist() == [[0, 0, 1, 128, 255]]


def test_a_turned_photograph_is_kept_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rows are columns
    assert np.array_equal(decode(saved(COLOUR, "PNG", exif=exif), "x"), np.rot90(COLOUR, -1))


def test_no_metadata_survives_re_encoding() -> None:
    notes, exif = PngImagePlugin.PngInfo(), Image.Exif()
    notes.add_text("Author", "Jane Roe")
    exif[0x010E] = "Jane Roe"
    content = saved(COLOUR, "PNG", pnginfo=notes, exif=exif, icc_profile=b"Jane Roe's profile", dpi=(72, 72))
    again = encode(decode(content, "x"))
    kinds = [again[at - 4 : at] for at in range(12, len(again)) if again[at - 4 : at].isalpha()]
    assert b"Jane" in content and b"Jane" not in again and not {b"tEXt", b"eXIf", b"iCCP", b"pHYs"} & set(kinds)
    assert np.array_equal(decode(again, "x"), COLOUR)


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "PPM", "ICO"])
def test_other_formats_are_refused(form: str) -> None:
    assert refusal(saved(COLOUR, form)).code == "image-format"


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\x80\x04\x95", b"<svg/>"])
def test_what_is_no_image_is_refused(content: bytes) -> None:
    assert refusal(content).code in ("image-format", "image-damaged")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_image_is_refused(form: str) -> None:
    content = saved(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8), form)
    for share in (0.5, 0.9):
        refused = refusal(content[: int(len(content) * share)])
        assert (refused.code, refused.status) == ("image-damaged", 422)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_random_damage_never_escapes_as_another_error(form: str) -> None:
    whole = saved(COLOUR, form)
    for _ in range(300):
        broken = bytearray(whole)
        for at in RNG.integers(0, len(whole), 3):
            broken[at] = RNG.integers(256)
        try:
            assert decode(bytes(broken), "x").dtype == np.uint8
        except Refused as refused:
            assert refused.code.startswith("image-")


def bomb(side: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))

    header = struct.pack(">LLBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8_000, 12_000, 60_000])
def test_an_image_that_unfolds_to_too_many_pixels_is_refused_undecoded(side: int) -> None:
    began = time.perf_counter()
    refused = refusal(bomb(side))
    assert (refused.code, refused.status) == ("image-too-large", 413)
    assert time.perf_counter() - began < 0.5


def test_the_pixel_ceiling_is_a_setting() -> None:
    assert refusal(saved(GREY, "PNG"), ImageLimits(pixels=62)).code == "image-too-large"
    assert decode(saved(GREY, "PNG"), "x", ImageLimits(pixels=63)).shape == (9, 7)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_an_animation_is_refused(form: str) -> None:
    buffer = io.BytesIO()
    frames = [Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(3)]
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:])
    assert refusal(buffer.getvalue()).code == "image-animated"


def test_equal_pictures_have_one_digest_whatever_their_file() -> None:
    png, webp = decode(saved(COLOUR, "PNG"), "x"), decode(saved(COLOUR, "WEBP", lossless=True), "x")
    as_colour = decode(saved(np.stack([GREY] * 3, axis=-1), "PNG"), "x")
    assert digest_of(png) == digest_of(webp) == digest_of(decode(encode(png), "x"))
    assert digest_of(GREY) == digest_of(as_colour)
    assert len({digest_of(GREY), digest_of(COLOUR), digest_of(GREY.T), digest_of(255 - GREY)}) == 4


def a_set(count: int) -> tuple[DecodedSet, list[np.ndarray]]:
    pixels = [RNG.integers(0, 256, (8, 8), dtype=np.uint8) for _ in range(count)]
    samples = [Sample(f"é/{at}", at % 2, digest_of(image)) for at, image in enumerate(pixels)]
    return DecodedSet(["cat", "dög"], samples), pixels


def test_a_set_is_read_as_it_was_written() -> None:
    decoded, pixels = a_set(5)
    stored = write_set(decoded, pixels)
    index, images = read_set(stored)
    assert index == read_index(io.BytesIO(stored)) and index["labels"] == ["cat", "dög"]
    assert [(row["id"], row["label"], row["fingerprint"]) for row in index["samples"]] == [
        (sample.sample_id, sample.label, f"keyed {sample.digest}") for sample in decoded.samples
    ]
    assert all(np.array_equal(found, wanted) for found, wanted in zip(images, pixels, strict=True))


def test_chosen_positions_come_in_the_order_asked_for_and_may_be_written_to() -> None:
    decoded, pixels = a_set(5)
    chosen = list(read_set(write_set(decoded, pixels), [3, 0])[1])
    chosen[0][0, 0] ^= 255
    assert len(chosen) == 2 and not np.array_equal(chosen[0], pixels[3]) and np.array_equal(chosen[1], pixels[0])


def test_equal_sets_have_equal_bytes_and_no_names_outside_the_index() -> None:
    decoded, pixels = a_set(3)
    stored = write_set(decoded, pixels)
    assert stored == write_set(decoded, pixels)
    with zipfile.ZipFile(io.BytesIO(stored)) as archive:
        assert archive.namelist() == ["000000.png", "000001.png", "000002.png", "index.json"]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}


def test_a_set_of_the_size_of_digits_opens_fast() -> None:
    stored = write_set(*a_set(1797))
    best = min(timed(stored) for _ in range(3))
    assert best < 0.5


def timed(stored: bytes) -> float:
    began = time.perf_counter()
    assert sum(1 for _ in read_set(stored)[1]) == 1797
    return time.perf_counter() - began
