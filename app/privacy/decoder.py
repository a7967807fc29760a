"""The process that reads what strangers uploaded: `python -m app.privacy.decoder`, started by app/decoding.py.

It starts with an empty environment, imports what decoding needs, and then waits, knowing nothing of the service. For every
upload it forks a child that gives up its rights (`confine`), reads that one upload and ends. The server sends a job with open
files: the pipe for the answer and, for a set, the archive. It gets back a handle of the child, with which it can kill it.

The answer: JSON, one object a line; `{"image": n, "digest": ...}` is followed by the n bytes of a PNG. The last line says
`end`, or why the upload is refused, and how much memory it took. An answer that stops before that is a child that died.
"""

import json
import os
import resource
import socket
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, MpoImagePlugin, TiffImagePlugin, WebPImagePlugin  # a confined child can import nothing any more

from app import catalog
from app.errors import Refused
from app.privacy.archive import Limits
from app.privacy.checkpoint_guard import inspect_directory
from app.privacy.confine import confine, end_with
from app.privacy.imagefolder import read_imagefolder
from app.privacy.images import ImageLimits

PRELOADED = (MpoImagePlugin, TiffImagePlugin, WebPImagePlugin)
CODECS = ("cp437", "utf-8-sig", "unicode_escape", "latin-1")
MESSAGE = 1 << 16
Job = dict[str, Any]
Tell = Callable[..., None]


def main() -> None:
    """Fork a child for every job, until the server's end of the socket closes."""
    os.umask(0o077)
    warnings.simplefilter("ignore")
    Image.preinit()
    for codec in CODECS:
        "".encode(codec)
    control, own = socket.socket(fileno=0), os.getpid()
    while True:
        message, files, _, _ = socket.recv_fds(control, MESSAGE, 2)
        if not message:
            return
        _reap()
        child = os.fork()
        if child == 0:
            end_with(own)
            control.close()
            _answer(json.loads(message), *files)
        handle = os.pidfd_open(child)
        socket.send_fds(control, [b"started"], [handle])
        for file in (handle, *files):
            os.close(file)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return


def _answer(job: Job, answer: int, archive: int | None = None) -> None:
    """One job in a confined process, which ends here."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):  # what a library prints may quote the upload
        os.dup2(nowhere, standard)
    with os.fdopen(answer, "wb") as out, os.fdopen(archive if archive is not None else nowhere, "rb") as source:

        def tell(message: Job, content: bytes = b"") -> None:
            out.write(json.dumps(message).encode() + b"\n")
            out.write(content)
            if content or "confined" in message:  # the server counts pictures, to say at which one a child died
                out.flush()

        filtered = confine(job["memory"], job["seconds"], opens_files=job["verb"] == "model")
        tell({"confined": filtered})
        try:
            _VERBS[job["verb"]](job, source, tell)
            last: Job = {"end": True}
        except Refused as refused:
            last = {"refused": [refused.code, refused.field, refused.rule, refused.remedy, refused.status]}
        except MemoryError:
            last = {"failed": "memory"}
        except Exception as error:  # noqa: BLE001  (the last line of defence; the message may hold personal data)
            last = {"failed": f"{type(error).__name__} at {_where(error)}"}
        tell(last | {"peak_kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss})
        out.flush()
        os._exit(0)


def _images(job: Job, source: BinaryIO, tell: Tell) -> None:
    decoded = read_imagefolder(
        source,
        lambda png, digest: tell({"image": len(png), "digest": digest}, png),
        private=job["private"],
        limits=Limits(entries=job["entries"]),
        image_limits=ImageLimits(pixels=job["pixels"]),
    )
    for label in decoded.labels:
        tell({"label": label})
    for sample in decoded.samples:
        tell({"sample": [sample.sample_id, sample.label, sample.text]})


def _model(job: Job, source: BinaryIO, tell: Tell) -> None:
    family = job["family"]
    tell({"facts": asdict(inspect_directory(Path(job["directory"]), catalog.FAMILIES[family], family))})


_VERBS: dict[str, Callable[[Job, BinaryIO, Tell], None]] = {"images": _images, "model": _model}


def _where(error: BaseException) -> str:
    """File and line of the innermost frame: enough to find the fault, nothing of the data."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}" if trace else "?"


if __name__ == "__main__":
    main()
