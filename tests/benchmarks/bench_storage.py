"""What a stored version costs against its bound, and how long packing and restoring take.

The network has 686 tensors in bfloat16, as a Stable Diffusion U-Net has, and 45 million elements. Each version is
packed against the one before: half of the elements of every tensor changed (four times in a row), one tensor changed,
every element changed, nothing changed. The bound of a version is, per changed tensor, the smaller of its bytes and mask
plus changed values, + 1 % + 64 KiB; `of_bound` is the cost (pack + stored manifest) in percent of it. Run as
`python -m tests.benchmarks.bench_storage`; prints one line of JSON and exits with 1 if a version is over its bound.
"""

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import bfloat16, from_numpy

from app.storage import LocalBlobs
from app.weights import Manifest, changes, encode, materialise, open_range, pack_base, pack_delta

TENSORS = 686
SHAPES = [(320, 640), (320,), (256, 224), (1280,)]
FILE = "unet/diffusion_pytorch_model.safetensors"
SCENARIOS = [("half", 0.5)] * 4 + [("one_tensor", 1.0), ("all", 1.0), ("nothing", 0.0)]

Network = dict[str, NDArray[np.int16]]


def first_network(rng: np.random.Generator) -> Network:
    return {
        f"down_blocks.{i % 4}.attentions.{i // 4}.transformer_blocks.0.attn1.to_q.weight": rng.integers(
            -(2**15), 2**15, SHAPES[i % 4], dtype=np.int16
        )
        for i in range(TENSORS)
    }


def changed_network(network: Network, scenario: str, fraction: float, rng: np.random.Generator) -> Network:
    touched = list(network)[:1] if scenario == "one_tensor" else list(network)
    after = dict(network)
    for name in touched:
        flip = rng.random(network[name].shape) < fraction
        after[name] = np.where(flip, network[name] ^ 1, network[name])
    return after


def bound(before: Network, after: Network) -> float:
    cost = 0
    for name, now in after.items():
        changed = int(np.count_nonzero(now != before[name]))
        cost += min(now.nbytes, (now.size + 7) // 8 + changed * now.itemsize) if changed else 0
    return cost * 1.01 + 65536


def write(network: Network, directory: Path) -> None:
    (directory / "unet").mkdir(parents=True, exist_ok=True)
    (directory / "unet/config.json").write_text("{}")
    save_file({name: from_numpy(bits).view(bfloat16) for name, bits in network.items()}, directory / FILE)


def restore_seconds(manifest: Manifest, blobs: LocalBlobs, directory: Path, target: Path) -> float:
    began = time.perf_counter()
    materialise(manifest, blobs, target)
    seconds = time.perf_counter() - began
    if (target / FILE).read_bytes() != (directory / FILE).read_bytes():
        raise RuntimeError("the restored file differs")
    return seconds


def first_byte_seconds(manifest: Manifest, blobs: LocalBlobs) -> float:
    """From the call to the first bytes of a range in the middle of the file."""
    size = manifest.file(FILE).size
    began = time.perf_counter()
    next(open_range(manifest, blobs, FILE, size // 2, size))
    return time.perf_counter() - began


def measure(folder: Path) -> dict[str, object]:
    rng = np.random.default_rng(0)
    blobs, directory, pack = LocalBlobs(folder / "blobs"), folder / "network", folder / "pack"
    network = first_network(rng)
    write(network, directory)
    began = time.perf_counter()
    manifest = pack_base(directory, pack, "packs/0")
    base_seconds = time.perf_counter() - began
    full = blobs.put("packs/0", pack)
    versions = []
    for number, (scenario, fraction) in enumerate(SCENARIOS, start=1):
        after = changed_network(network, scenario, fraction, rng)
        write(after, directory)
        began = time.perf_counter()
        version = pack_delta(manifest, blobs, directory, pack, f"packs/{number}")
        seconds = time.perf_counter() - began
        stored = len(encode(version))
        cost = stored + (blobs.put(f"packs/{number}", pack) if pack.exists() else 0)
        figures = {
            "scenario": scenario,
            "cost": cost,
            "manifest": stored,
            "of_bound": round(100 * cost / bound(network, after), 2),
            "of_full": round(100 * cost / full, 2),
            "pack_seconds": round(seconds, 3),
            "restore_seconds": round(restore_seconds(version, blobs, directory, folder / "pulled"), 3),
            "first_byte_seconds": round(first_byte_seconds(version, blobs), 5),
        }
        versions.append(figures | changes(version, manifest))
        pack.unlink(missing_ok=True)
        network, manifest = after, version
    return {"tensors": TENSORS, "full": full, "base_seconds": round(base_seconds, 3), "versions": versions}


def main() -> int:
    with TemporaryDirectory() as folder:
        figures = measure(Path(folder))
    print(json.dumps(figures))
    versions = figures["versions"]
    return 1 if not isinstance(versions, list) or any(version["of_bound"] > 100 for version in versions) else 0


if __name__ == "__main__":
    sys.exit(main())
