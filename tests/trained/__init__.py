"""Tiny base networks trained on real images or on the invented identities; `trained` keeps each by digest.

A network is trained once per version of the code that makes it: the digest covers the maker's source, the data's source and the
libraries. `python -m tests.trained` trains them all beforehand. The folder is LETHE_TRAINED, or .lethe/trained.
"""

import hashlib
import inspect
import os
import shutil
from collections.abc import Callable
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
            make(building)
            building.rename(folder)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise
    return folder
