"""The confined process: what it may not do, and what becomes of an upload over which it ends."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app import decoding
from app.decoder_process import decoder_process
from app.decoding import BrokenAnswer, Decoders
from app.errors import LetheError, Refused, Unavailable
from app.privacy.images import index_of, read_set, set_pieces
from app.settings import Settings
from tests import hostile, pictures
from tests.running import children, until

CONFINED = """
import os, resource, socket, sys, ctypes
from app.privacy.confine import confine
root = os.open("/", os.O_RDONLY)
filtered = confine(1 << 30, 5, opens_files=FILES)
libc = ctypes.CDLL(None, use_errno=True)
def tried(action):
    try:
        action()
        return "done"
    except BaseException as error:
        return type(error).__name__
print([filtered] + [tried(action) for action in (
    lambda: open("/etc/hostname"),
    lambda: open("/dev/shm/lethe-confined", "w"),
    lambda: socket.socket(),
    lambda: os.fork(),
    lambda: os.execv("/bin/true", ["true"]),
    lambda: os.kill(os.getppid(), 0),
    lambda: os.unlink("/dev/shm/none"),
    lambda: bytes(2 << 30),
)])
"""


def confined(files: bool) -> list[object]:
    program = CONFINED.replace("FILES", str(files))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    found: list[object] = json.loads(done.stdout.replace("'", '"').replace("True", "true"))
    return found


def test_a_confined_process_opens_nothing_starts_nothing_and_signals_nobody() -> None:
    refused = "PermissionError"
    assert confined(files=False) == [True, *[refused] * 7, "MemoryError"]


def test_one_that_reads_files_cannot_write_one() -> None:
    refused = "PermissionError"
    assert confined(files=True) == [True, "done", *[refused] * 6, "MemoryError"]


def test_the_process_that_waits_has_an_empty_environment_and_no_file_of_ours() -> None:
    decoders = Decoders(Settings())
    read(decoders, pictures.imagefolder())
    starter = decoder_process()._process
    assert starter is not None
    names = {entry.partition(b"=")[0] for entry in Path(f"/proc/{starter.pid}/environ").read_bytes().split(b"\0")}
    assert names <= {b"", b"PYTHONPATH", b"OPENBLAS_NUM_THREADS", b"LC_CTYPE"}
    files = {os.readlink(path).partition(":")[0] for path in Path(f"/proc/{starter.pid}/fd").iterdir()}
    assert sum(name == "socket" for name in files) == 1 and not any("lethe" in name for name in files)


@contextmanager
def opened(body: bytes) -> Iterator[io.BufferedRandom]:
    with tempfile.TemporaryFile() as file:
        file.write(body)
        file.flush()
        yield file  # type: ignore[misc]


def read(decoders: Decoders, body: bytes) -> bytes:
    """The set as it would be kept."""
    with opened(body) as file, decoders.images(file, private=False) as arriving:
        return b"".join(set_pieces(arriving.pictures(), lambda: index_of(arriving.decoded(), lambda digest: [digest])))


def problem(decoders: Decoders, body: bytes) -> LetheError:
    with pytest.raises(LetheError) as caught:
        read(decoders, body)
    return caught.value


def test_pixels_come_back_as_they_were_under_ordinal_names() -> None:
    content = hostile.saved("PNG")
    index, (kept, *more) = read_set(read(Decoders(Settings()), hostile.image(content)))
    with Image.open(io.BytesIO(content)) as image:
        assert np.array_equal(kept, np.array(image)) and not more
    assert [(entry["id"], entry["file"]) for entry in index["samples"]] == [("0/a", "000000.png")]


SIDE = 6000


@pytest.fixture(scope="module")
def large() -> bytes:
    """An image that takes 144 MB and a good part of a second to decode."""
    return hostile.image(hostile.png_of(SIDE, SIDE, data=zlib.compress(bytes((3 * SIDE + 1) * SIDE), 1)))


def test_an_image_that_takes_more_memory_than_a_decoder_has_is_refused(large: bytes) -> None:
    refused = problem(Decoders(Settings(decoder_memory_mb=256)), large)
    assert (refused.code, refused.status) == ("decoding-memory", 413) and isinstance(refused, Refused)
    assert refused.field == "archive: entry 1 (0/a.png)" and "LETHE_DECODER_MEMORY_MB" in refused.remedy


def test_an_image_that_takes_longer_than_a_decoder_has_is_refused(large: bytes) -> None:
    refused = problem(Decoders(Settings(decoder_seconds=0.2)), large)
    assert isinstance(refused, Refused) and (refused.code, refused.field) == ("decoding-time", "archive: image 1")


def test_a_decoder_that_is_killed_refuses_the_image_it_was_at(large: bytes) -> None:
    decoders = Decoders(Settings())
    read(decoders, pictures.imagefolder())
    starter = decoder_process()._process
    assert starter is not None

    def kill() -> None:
        os.kill(until(lambda: at_work(starter.pid), "a decoder is at work", every=0.001)[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    refused = problem(decoders, large)
    killer.join()
    assert isinstance(refused, Refused) and (refused.code, refused.status) == ("decoder-failed", 422)
    assert read(decoders, pictures.imagefolder())


def at_work(pid: int) -> list[int]:
    """Decoders below the process that hold an image: a waiting one takes half of that."""
    found = {}
    for child in children(pid):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
            found[child] = Path(f"/proc/{child}/status").read_text()
    return [child for child, status in found.items() if int((re.findall(r"VmRSS:\s+(\d+)", status) or [0])[0]) > 80_000]


def test_a_process_that_was_killed_is_started_again() -> None:
    decoders = Decoders(Settings())
    decoders.start()
    starter = decoder_process()._process
    assert starter is not None
    starter.kill()
    starter.wait()
    assert read(decoders, pictures.imagefolder())


def test_more_uploads_than_decoders_wait_and_then_are_told_to_come_again() -> None:
    decoders = Decoders(Settings(decoders=1, decoder_seconds=0.3))
    with opened(pictures.imagefolder()) as file, decoders.images(file, private=False):
        assert isinstance(problem(decoders, pictures.imagefolder()), Unavailable)
    assert read(decoders, pictures.imagefolder())


class Told:
    """An answer that says what a test wants it to."""

    def __init__(self, content: bytes) -> None:
        self.left = io.BytesIO(content)

    def pieces(self, size: int) -> Iterator[bytes]:
        yield self.left.read(size)


@pytest.mark.parametrize(
    "content",
    [
        hostile.png_of(8, 8, (b"tEXt", b"Note\0Jane")),
        hostile.png_of(8, 8, (b"iCCP", b"x")),
        hostile.png_of(9000, 9000),
        hostile.png_of(8, 8, colour=3),
        hostile.saved("GIF"),
        hostile.png_of(8, 8) + b"\0\0\0\0IEND\0\0\0\0",
    ],
)
def test_an_answer_that_is_no_plain_png_is_not_believed(content: bytes) -> None:
    with pytest.raises(BrokenAnswer):
        list(decoding._plain_png(Told(content), len(content), 50_000_000))  # type: ignore[arg-type]
    good = hostile.png_of(8, 8)
    assert b"".join(decoding._plain_png(Told(good), len(good), 64)) == good  # type: ignore[arg-type]


@pytest.mark.parametrize("end", [lambda process: process.kill(), lambda process: process.stdin.close()])
def test_the_process_ends_with_its_server(end: Callable[[subprocess.Popen[bytes]], None]) -> None:
    program = "from app.decoder_process import decoder_process; decoder_process().start()\nprint(decoder_process()._process.pid, flush=True); input()"
    server = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout
    starter = int(server.stdout.readline())
    end(server)
    server.wait()
    until(lambda: not Path(f"/proc/{starter}").exists() or "Z" in Path(f"/proc/{starter}/stat").read_text(), "gone")
    server.stdout.close()
