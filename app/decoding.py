"""The server's side of decoding: hands an upload to a confined process and believes its answer no more than the upload.

The process is app/privacy/decoder.py: one for this server's life, with an empty environment, which forks a child of a few
milliseconds' age for each upload. A child that is refused something, dies or falls silent becomes a refusal.
"""

import os
import select
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import structlog
from pydantic import BaseModel, ConfigDict, Field

from app.decoder_process import decoder_process, end
from app.errors import Refused, Unavailable
from app.privacy.checkpoint_guard import DirectoryFacts
from app.privacy.images import DecodedSet, Sample
from app.settings import Settings

PIECE = 1 << 20
LINE = 16 << 20  # of the answer: facts of a directory, with its labels
BYTES_PER_TURN = 4 << 20  # of an archive, for each LETHE_DECODER_SECONDS of processor time
_PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">L4s", 13, b"IHDR")

log = structlog.get_logger()


class BrokenAnswer(Exception):
    """The child ended before its answer did, or answered what no decoder answers."""


class Line(BaseModel):
    """One line of the answer, of one kind; the last has `peak_kb` besides."""

    model_config = ConfigDict(extra="forbid", strict=True)
    confined: bool | None = None
    image: int | None = Field(None, ge=45)
    digest: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    label: str | None = None
    sample: tuple[str, int, str | None] | None = None
    facts: DirectoryFacts | None = None
    refused: tuple[str, str, str, str, int] | None = None
    failed: str | None = None
    end: bool | None = None
    peak_kb: int | None = None


class Decoders:
    """At most `decoders` uploads are read at a time, each in a child of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._free = threading.BoundedSemaphore(settings.decoders)

    def start(self) -> None:
        """Let the process import what it needs before the first upload comes."""
        decoder_process().start()

    def stop(self) -> None:
        """End the process; an upload that comes after all starts it again."""
        decoder_process().stop()

    @contextmanager
    def images(self, archive: BinaryIO, private: bool) -> Iterator["ArrivingSet"]:
        """An imagefolder, from an open file that the child gets too. A refusal comes here, or while pictures are taken."""
        settings = self._settings
        turns = 1 + archive.seek(0, os.SEEK_END) // BYTES_PER_TURN
        archive.seek(0)
        job = {"verb": "images", "private": private, "entries": settings.max_entries, "pixels": settings.max_pixels}
        with self._answer(job, "archive", turns, archive.fileno()) as answer:
            yield ArrivingSet(answer, settings.max_pixels, settings.max_entries)

    def model(self, directory: Path, family: str) -> DirectoryFacts:
        """Check a model directory against its family: its JSON and its weights' headers are read in the child."""
        job = {"verb": "model", "directory": str(directory.absolute()), "family": family}
        with self._answer(job, "source", 1) as answer:
            facts = answer.line().facts
            if facts is None or answer.line().end is None:
                raise BrokenAnswer("no answer of a decoder")
            return facts

    @contextmanager
    def _answer(self, job: dict[str, Any], field: str, turns: int, *files: int) -> Iterator["Answer"]:
        """The child's answer to a job; the child is gone when the block ends, however it ends."""
        seconds = self._settings.decoder_seconds
        job |= {"memory": self._settings.decoder_memory_mb << 20, "seconds": max(1, round(seconds * turns))}
        if not self._free.acquire(timeout=seconds):
            raise Unavailable("A decoder")
        try:
            reading, writing = os.pipe()
            with open(reading, "rb", buffering=0) as pipe:
                try:
                    child = decoder_process().give(job, [writing, *files])
                finally:
                    os.close(writing)
                answer = Answer(pipe, field, seconds, seconds * turns)
                try:
                    yield answer
                except BrokenAnswer as broken:
                    raise answer.failure(broken) from None
                finally:
                    end(child)
        finally:
            self._free.release()


class Answer:
    """What a child writes, read with patience for `silence` seconds a time and `seconds` in all."""

    def __init__(self, pipe: BinaryIO, field: str, silence: float, seconds: float) -> None:
        self._pipe, self._field, self._silence = pipe, field, silence
        self._until = time.monotonic() + seconds
        self._held = bytearray()
        self.pictures = 0
        os.set_blocking(pipe.fileno(), False)
        self._poll = select.poll()
        self._poll.register(pipe, select.POLLIN)
        if not self._first().confined:
            log.warning("decoder.calls_not_filtered")

    def line(self) -> Line:
        """The next line; Refused where it is a refusal."""
        while (stop := self._held.find(b"\n")) < 0:
            if len(self._held) > LINE:
                raise BrokenAnswer("no answer of a decoder")
            self._held += self._more()
        try:
            found = Line.model_validate_json(bytes(self._held[:stop]))
        except ValueError:
            raise BrokenAnswer("no line of an answer") from None
        del self._held[: stop + 1]
        if found.peak_kb is not None:
            log.info("decoder.read", peak_mb=found.peak_kb >> 10, pictures=self.pictures)
        if found.refused is not None:
            code, field, rule, remedy, status = found.refused
            raise Refused(code, field, rule, remedy, status if status in (413, 422) else 422)
        if found.failed == "memory":
            raise self._memory()
        if found.failed is not None:
            raise BrokenAnswer(found.failed)
        return found

    def pieces(self, size: int) -> Iterator[bytes]:
        """The next `size` bytes."""
        while size:
            if not self._held:
                self._held += self._more()
            piece = bytes(self._held[:size])
            del self._held[:size]
            size -= len(piece)
            yield piece

    def failure(self, broken: BrokenAnswer) -> Refused:
        log.warning("decoder.failed", error=str(broken))
        where = f"{self._field}: image {self.pictures + 1}" if self._field == "archive" else self._field
        return Refused(
            "decoder-failed",
            where,
            "The process that reads it came to an end over it: it is damaged in an unusual way, or needs too much.",
            "Save it anew, or leave it out.",
        )

    def _first(self) -> Line:
        try:
            return self.line()
        except BrokenAnswer:
            raise Unavailable("The decoder") from None

    def _more(self) -> bytes:
        left = min(self._silence, self._until - time.monotonic())
        if left <= 0 or not self._poll.poll(left * 1000):
            raise Refused(
                "decoding-time",
                f"{self._field}: image {self.pictures + 1}" if self._field == "archive" else self._field,
                f"Reading it takes longer than {self._silence:g} seconds.",
                "Send smaller images, or ask the operator to raise LETHE_DECODER_SECONDS.",
            )
        if not (piece := self._pipe.read(PIECE)):
            raise BrokenAnswer("ended early")
        return piece

    def _memory(self) -> Refused:
        return Refused(
            "decoding-memory",
            self._field,
            "Reading it takes more memory than a decoder may have.",
            "Send less at a time, or ask the operator to raise LETHE_DECODER_MEMORY_MB.",
            413,
        )


class ArrivingSet:
    """A set on its way: first its pictures, then what is known of them."""

    def __init__(self, answer: Answer, pixels: int, most: int) -> None:
        self._answer, self._pixels, self._most = answer, pixels, most
        self._next = answer.line()  # so that what is refused at once has left no trace
        self._digests: list[str] = []

    def pictures(self) -> Iterator[Iterator[bytes]]:
        """Each picture as the pieces of a PNG, which must be taken before the next."""
        while self._next.image is not None and self._next.digest is not None:
            if len(self._digests) >= self._most:
                raise BrokenAnswer("no answer of a decoder")
            self._digests.append(self._next.digest)
            yield _plain_png(self._answer, self._next.image, self._pixels)
            self._answer.pictures += 1
            self._next = self._answer.line()

    def decoded(self) -> DecodedSet:
        """Labels and samples, once the pictures are taken."""
        labels, samples = [], []
        while self._next.label is not None:
            labels.append(self._next.label)
            self._next = self._answer.line()
        for digest in self._digests:
            if self._next.sample is None:
                raise BrokenAnswer("no answer of a decoder")
            name, label, text = self._next.sample
            if not 0 <= label < len(labels):
                raise BrokenAnswer("no answer of a decoder")
            samples.append(Sample(name, label, digest, text))
            self._next = self._answer.line()
        if self._next.end is None:
            raise BrokenAnswer("no answer of a decoder")
        return DecodedSet(labels, samples)


def _plain_png(answer: Answer, size: int, pixels: int) -> Iterator[bytes]:
    """A PNG of 8-bit grey or RGB and nothing but pixels, or BrokenAnswer: later readers decode it unconfined."""
    head = b"".join(answer.pieces(33))
    width, height, *kind = struct.unpack(">LLBBBBB", head[16:29])
    if head[:16] != _PNG or not 0 < width * height <= pixels or kind not in ([8, 0, 0, 0, 0], [8, 2, 0, 0, 0]):
        raise BrokenAnswer("no answer of a decoder")
    yield head
    left, name = size - 33, b""
    while left:
        start = b"".join(answer.pieces(8))
        length, name = struct.unpack(">L4s", start)
        left -= 12 + length
        if name not in (b"IDAT", b"IEND") or left < 0 or (name == b"IEND") != (left == 0):
            raise BrokenAnswer("no answer of a decoder")
        yield start
        yield from answer.pieces(length + 4)
    if name != b"IEND":
        raise BrokenAnswer("no answer of a decoder")
