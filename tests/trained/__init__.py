"""Tiny base networks trained on real images or on the invented identities; `trained` keeps each by digest.

A network is trained once per version of the code that makes it: the digest covers the maker's source, the data's source and the
libraries. `python -m tests.trained` trains them all beforehand. The folder is LETHE_TRAINED, or .lethe/trained.
"""

import hashlib
import inspect
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import diffusers
import torch
import transformers


def trained(name: str, make: Callable[[Path], None], *sources: ModuleType) -> Path:
    """The directory that `make(directory)` filled, now or in an earlier run. `sources`: the modules that decide what it makes."""
    versions = [torch.__version__, diffusers.__version__, transformers.__version__]
    texts = [inspect.getsource(source) for source in sources]
    digest = hashlib.sha256("\0".join([name, *versions, *texts]).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("LETHE_TRAINED", ".lethe/trained")).resolve() / f"{name}-{digest}"
    if not folder.is_dir():
        building = folder.with_name(f".{folder.name}-{os.getpid()}")
        building.mkdir(parents=True)
        try:
            with one_thread():
                make(building)
            if not folder.is_dir():  # another run may have been faster
                building.rename(folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return folder


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums over one thread: the same network on a machine with more of them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
