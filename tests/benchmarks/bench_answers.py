"""Evaluating a second version of a base beside evaluating the first. `python -m tests.benchmarks.bench_answers`.

first: nothing is kept, so base and version (and reference) are drawn; their sets are sealed and stored, as a job does.
second: the base's set (and the reference's) is opened, and the version alone is drawn.
Both run from opening the sets to the finished report and the sealed sets, on tiny networks with the catalogue's counts of
images. `_reference`: measured against a third network. `_rows`: the version has another label row, so 500 more images are
drawn of it, with the base's row put back. That both reports are equal is asserted before anything is timed. CPU
seconds of one thread; medians of interleaved rounds. Exits with 1 if a ratio misses the target of 1.8; `_rows` has none.
"""

import base64
import copy
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from app.catalog import FAMILIES
from app.privacy.sealing import new_data_key
from app.storage import LocalBlobs
from tests import tiny
from tests.tiny_pipelines import NAMES
from worker import answer_set, evaluate
from worker.families import Samples, image_classifier
from worker.load import Material

ROUNDS, STEPS, TARGET = 3, 10, 1.8
CASES = {
    "text_to_image": ("sd", False, False),
    "class_diffusion": ("unet", False, False),
    "class_diffusion_rows": ("unet", True, False),
    "class_diffusion_reference": ("unet", False, True),
}


def opened(kind: str, folder: Path, seed: int) -> Any:
    family = tiny.FAMILIES[tiny.EVERY[kind]]
    network = tiny.opened(kind, folder, seed)
    return SimpleNamespace(network=network, family=family, directory=folder, digest=str(seed))


def judge_of(family: str, folder: Path) -> Any:
    tiny.write("vit", folder)
    if family == "text_to_image":
        config = json.loads((folder / "config.json").read_text()) | {"id2label": dict(enumerate(NAMES))}
        (folder / "config.json").write_text(json.dumps(config))
    network = image_classifier.load(folder, torch.device("cpu"))
    return SimpleNamespace(network=network, family=image_classifier, directory=folder, digest="judge")


def scene(folder: Path, kind: str, rows: bool, reference: bool) -> tuple[dict[str, Any], Material, torch.nn.Module]:
    base = opened(kind, folder / "base", 0)
    family, name = base.family, tiny.EVERY[kind]
    network = copy.deepcopy(base.network)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1.01)
        for key, table in family.label_tables(network).items():
            table.copy_(family.label_tables(base.network)[key] * (1.01 if rows else 1))
    x, y = torch.zeros(4, *family.image_shape(base.network)), torch.tensor([1, 0, 2, 3])
    settings = {each: parameter.default for each, parameter in FAMILIES[name].evaluation.items()}
    material = Material(
        base=base,
        reference=opened(kind, folder / "reference", 1) if reference else None,
        judge=judge_of(name, folder / "judge"),
        forget=Samples(x[:1], y[:1]),
        retain=Samples(x[1:], y[1:]),
        test=None,
        scratch=folder,
    )
    sides = ["base", "unlearned", *(["reference"] if reference else [])]
    places = {side: {"blob": f"answers/{side}", "key": base64.b64encode(new_data_key()).decode()} for side in sides}
    specification = {
        "kind": "class_label", "evaluation": settings | {"sampling_steps": STEPS}, "policy": {},
        "base": {"family": name}, "labels": list(NAMES), "answers": places,
    }  # fmt: skip
    return specification, material, network


def job(
    specification: dict[str, Any], material: Material, network: torch.nn.Module, blobs: LocalBlobs
) -> tuple[float, dict[str, Any]]:
    began = time.process_time()
    kept = answer_set.open_sets(specification, material, blobs)
    made = evaluate.evaluate(specification, material, network, None, 0.0, lambda done, total: None, kept)
    paths = answer_set.seal_sets(specification, material, kept, "version", passed=False)
    for side, path in paths.items():
        blobs.put(specification["answers"][side]["blob"], Path(path))
    return time.process_time() - began, made.document


def measure(folder: Path, kind: str, rows: bool, reference: bool) -> dict[str, Any]:
    specification, material, network = scene(folder, kind, rows, reference)
    blobs, seconds, drawn = LocalBlobs(folder / "blobs"), [], []
    for _ in range(ROUNDS):
        for place in specification["answers"].values():
            blobs.delete(place["blob"])
        (first, fresh), (second, reused) = (job(specification, material, network, blobs) for _ in range(2))
        counts = [sum(side["drawn"] for side in each.pop("answers").values()) for each in (fresh, reused)]
        if fresh != reused:
            raise RuntimeError("the reports differ")
        seconds.append((first, second))
        drawn = counts
    return {
        "drawn": drawn,
        "first_cpu_seconds": round(statistics.median(first for first, _ in seconds), 2),
        "second_cpu_seconds": round(statistics.median(second for _, second in seconds), 2),
        "ratio": round(statistics.median(first / second for first, second in seconds), 2),
    }


def main() -> int:
    torch.set_num_threads(1)
    figures = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            figures[name] = measure(Path(folder), *case)
    print(json.dumps({"steps": STEPS, **figures}))
    return 0 if all(each["ratio"] >= TARGET for name, each in figures.items() if not name.endswith("rows")) else 1


if __name__ == "__main__":
    sys.exit(main())
