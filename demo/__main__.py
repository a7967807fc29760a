"""`make demo`: train small networks on real digits, ask a running Lethe to make them forget, and show what changed.

Everything goes through the REST API of an embedded deployment, as a user's own script would. Networks are trained once
and reused; each run registers them anew, posts its requests, and writes report.json, a grid and the downloaded
weights under `.lethe/demo`. The exit status is 1 when a verdict fails.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from app.client import Lethe
from app.display import Watcher, show_report
from demo import archives, check, digits, judging, networks
from demo.digits import LABELS, classifier_splits, splits
from demo.networks import (
    CLASSIFIER_POLICY,
    CLASSIFIER_SEEDS,
    EVALUATION,
    FORGET_LABEL_RECIPE,
    FORGET_SAMPLES_RECIPE,
)
from demo.stage import Deployment, Workshop

HOME = Path(os.environ.get("LETHE_DATA", ".lethe")).absolute()
FOLDER = HOME / "demo"
console = Console()


class Ledger:
    """What report.json will say."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}
        self.seconds: dict[str, float] = {}
        self.files: dict[str, str] = {}
        self.verdicts: list[str] = []
        self._begun = time.monotonic()

    def lap(self, step: str) -> None:
        """The time since the last lap belongs to `step`."""
        self.seconds[step] = round(time.monotonic() - self._begun, 1)
        self._begun = time.monotonic()

    def write(self, path: Path) -> None:
        document = {"figures": self.figures, "seconds": self.seconds, "files": self.files}
        path.write_text(json.dumps(document, indent=2) + "\n")


def main() -> int:
    digit = int(os.environ.get("DIGIT", "7"))
    if not 0 <= digit < LABELS:
        console.print("DIGIT must be 0 to 9.")
        return 2
    FOLDER.mkdir(parents=True, exist_ok=True)
    ledger = Ledger()
    console.rule("[bold]1. a server, a worker and a warm runner[/]")
    with Deployment(HOME, FOLDER) as deployment:
        workshop = Workshop(FOLDER / "networks" / recipe_digest(), digit, CLASSIFIER_SEEDS)
        console.rule("[bold]2. networks that remember[/]")
        ledger.figures.update(workshop.build(console))
        ledger.lap("train networks")
        with Lethe(deployment.address, deployment.key) as lethe:
            run = f"{int(time.time()):x}"
            console.rule("[bold]3. register them, with what judges them[/]")
            register(lethe, workshop, run, digit)
            ledger.lap("register")
            console.rule(f"[bold]4. forget the digit {digit}: SalUn on a diffusion model[/]")
            forget_digit(lethe, workshop, run, digit, ledger)
            console.rule("[bold]5. forget 60 of 400 training images: SalUn on a classifier, three times[/]")
            forget_samples(lethe, workshop, run, ledger)
        ledger.write(FOLDER / "report.json")
        farewell(deployment, ledger, run)
    return 0 if set(ledger.verdicts) == {"released"} else 1


def recipe_digest() -> str:
    """Names the networks by how they are made, so that an old cache is never taken for a new recipe."""
    sources = [Path(module.__file__ or "") for module in (digits, judging, networks)]
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]


def register(lethe: Lethe, workshop: Workshop, run: str, digit: int) -> None:
    """Upload sets and networks under names of this run."""
    parts = splits()
    lethe.upload_dataset(archives.imagefolder(parts["generator"]), "train", f"digits-{run}")
    lethe.upload_dataset(archives.imagefolder(parts["test"]), "test", f"digits-test-{run}")
    lethe.register_model(workshop.path("judge"), f"judge-{run}", "image_classifier")
    sets = {"train": f"digits-{run}", "retain": f"digits-{run}", "test": f"digits-test-{run}"}
    settings = {**sets, "judge": f"judge-{run}", "evaluation": EVALUATION}
    lethe.register_model(workshop.path("generator"), f"generator-{run}", "class_diffusion", **settings)
    lethe.register_model(workshop.path(f"generator-without-{digit}"), f"generator-retrained-{run}", "class_diffusion")
    for seed in CLASSIFIER_SEEDS:
        register_classifier(lethe, workshop, run, seed)
    networks_, sets_ = 3 + 2 * len(CLASSIFIER_SEEDS), 2 + 2 * len(CLASSIFIER_SEEDS)
    console.print(f"registered {networks_} models and {sets_} data sets as *-{run}")


def register_classifier(lethe: Lethe, workshop: Workshop, run: str, seed: int) -> None:
    name, own = f"classifier-{seed}-{run}", classifier_splits(seed)
    lethe.upload_dataset(archives.imagefolder(own["retain"], own["forget"]), "train", name)
    lethe.upload_dataset(archives.imagefolder(own["test"]), "test", f"{name}-test")
    settings = {"train": name, "retain": name, "test": f"{name}-test", "policy": {"samples": CLASSIFIER_POLICY}}
    lethe.register_model(workshop.path(f"classifier-{seed}"), name, "image_classifier", **settings)
    lethe.register_model(workshop.path(f"classifier-retrained-{seed}"), f"{name}-retrained", "image_classifier")


def follow(
    lethe: Lethe, model: str, forget: dict[str, Any], recipe: dict[str, Any], ledger: Ledger, **options: Any
) -> dict[str, Any]:
    """Post, watch to the end, show the report. Returns the report with the request's version number."""
    posted = lethe.request(model, forget, method="salun", recipe=recipe, **options)
    with Watcher(console) as watcher:
        done = lethe.wait(posted["id"], watcher.event)
    if done["checkpoint"] is None:
        raise SystemExit(f"The request ended as {done['status']} ({done['reason']}).")
    report = lethe.report(model, done["checkpoint"])
    show_report(console, report)
    version = lethe.call("GET", f"/v1/models/{model}/checkpoints/{done['checkpoint']}")
    ledger.verdicts.append(version["status"])
    return {**report, "version": version}


def forget_digit(lethe: Lethe, workshop: Workshop, run: str, digit: int, ledger: Ledger) -> None:
    model = f"generator-{run}"
    options = {"concept": f"the digit {digit}", "reference": f"generator-retrained-{run}"}
    report = follow(lethe, model, {"class_label": str(digit)}, FORGET_LABEL_RECIPE, ledger, **options)
    ledger.lap("forget a digit")
    figures = {figure["name"]: figure for figure in report["figures"]}
    number, changes = report["version"]["number"], report["version"]["changes"]
    base = pull(lethe, model, 1, "diffusion-base")
    unlearned = pull(lethe, model, number, "diffusion-unlearned")
    grid = FOLDER / "diffusion-grid.png"
    grid.write_bytes(lethe.picture(model, number, "grid.png"))
    ledger.files |= {"diffusion.base": str(base), "diffusion.unlearned": str(unlearned), "diffusion.grid": str(grid)}
    ledger.files["judge"] = str(pull(lethe, f"judge-{run}", 1, "judge"))
    forgotten, kept = figures["unlearning_accuracy"], figures["kept_accuracy"]
    labels = list(lethe.pages(f"/v1/datasets/digits-{run}/samples"))
    ledger.figures |= {
        "diffusion.base_class_accuracy": base_class_accuracy(figures),
        "diffusion.unlearning_accuracy": forgotten["value"],
        "diffusion.forget_rejected": figures["forget_rejected"]["value"],
        "diffusion.unlearning_accuracy_row_restored": figures["unlearning_accuracy_row_restored"]["value"],
        "diffusion.unlearning_accuracy_retrained": forgotten["target"],
        "diffusion.changed_weights": figures["changed_weights"]["value"],
        "diffusion.kept_accuracy_base": kept["before"],
        "diffusion.kept_accuracy": kept["value"],
        "diffusion.samples": forgotten["n"],
        "diffusion.samples_kept": kept["n"],
        "diffusion.frozen_max_abs_change": check.frozen_max_abs_change(
            base, unlearned, splits()["generator"], labels, digit, FORGET_LABEL_RECIPE
        ),
        "checkpoint.added_bytes": changes["bytes_added"],
        "checkpoint.full_bytes": sum(file["size"] for file in report["version"]["files"]),
    }
    drawn = check.draw(unlearned, digit, FOLDER / "diffusion-sampled.png")
    ledger.files["diffusion.sampled"] = str(drawn)
    console.print(f"opened both with plain from_pretrained; what the new one draws when asked for {digit}: {drawn}")
    ledger.lap("download and open")


def base_class_accuracy(figures: dict[str, Any]) -> float:
    """Mean over all labels of the base: the kept ones, and the forgotten one as it was judged before."""
    kept = figures["kept_accuracy"]["before"]
    own = 100 - figures["unlearning_accuracy"]["before"] - figures["forget_rejected"]["before"]
    return float(((LABELS - 1) * kept + own) / LABELS)


def forget_samples(lethe: Lethe, workshop: Workshop, run: str, ledger: Ledger) -> None:
    reports = []
    for seed in CLASSIFIER_SEEDS:
        model = f"classifier-{seed}-{run}"
        samples = [sample["id"] for sample in lethe.pages(f"/v1/datasets/{model}/samples")]
        forget = {"samples": [sample for sample in samples if sample.split("/")[1].startswith("forget")]}
        options = {"reference": f"{model}-retrained", "seed": seed}
        reports.append(follow(lethe, model, forget, FORGET_SAMPLES_RECIPE, ledger, **options))
    ledger.lap("forget samples")
    model = f"classifier-{CLASSIFIER_SEEDS[0]}-{run}"
    ledger.files["classifier.base"] = str(pull(lethe, model, 1, "classifier-base"))
    ledger.files["classifier.unlearned"] = str(
        pull(lethe, model, reports[0]["version"]["number"], "classifier-unlearned")
    )
    check.classifiers_open(FOLDER / "classifier-base", FOLDER / "classifier-unlearned")

    def mean(name: str, side: str = "value") -> float:
        values = [next(figure[side] for figure in report["figures"] if figure["name"] == name) for report in reports]
        return round(sum(values) / len(values), 4)

    for name in ("unlearning_accuracy", "retain_accuracy", "test_accuracy", "mia_efficacy"):
        ledger.figures[f"classifier.{name}_base"] = mean(name, "before")
        ledger.figures[f"classifier.{name}_retrained"] = mean(name, "target")
        ledger.figures[f"classifier.{name}"] = mean(name)
    ledger.figures["classifier.gap_of_base"] = mean("gap_to_retrain", "before")
    ledger.figures["classifier.gap_to_retrain"] = mean("gap_to_retrain")
    ledger.figures["classifier.seeds"] = len(CLASSIFIER_SEEDS)
    ledger.figures["classifier.samples"] = mean("unlearning_accuracy", "n")
    gap, before = ledger.figures["classifier.gap_to_retrain"], ledger.figures["classifier.gap_of_base"]
    ledger.verdicts.append(verdict_on_the_mean(ledger.figures))
    console.print(f"mean of {len(CLASSIFIER_SEEDS)} seeds: gap to Retrain {before:.1f} points before, {gap:.1f} after")
    ledger.lap("collect")


def verdict_on_the_mean(figures: dict[str, float]) -> str:
    """Single classifiers rest on 60 images and swing; their mean is held to tighter bounds than each one's policy."""
    met = (
        figures["classifier.gap_to_retrain"] <= figures["classifier.gap_of_base"] / 2
        and figures["classifier.retain_accuracy"] >= 98
        and figures["classifier.test_accuracy"] >= figures["classifier.test_accuracy_base"] - 2
    )
    return "released" if met else "missed"


def pull(lethe: Lethe, model: str, number: int, folder: str) -> Path:
    """A fresh download. The base is superseded by now, so a reason goes into the audit."""
    target = FOLDER / folder
    shutil.rmtree(target, ignore_errors=True)
    return lethe.pull(model, number, target, reason="the demo compares it with the new version")


def farewell(deployment: Deployment, ledger: Ledger, run: str) -> None:
    console.rule("[bold]done[/]")
    for name, path in {**ledger.files, "report": str(FOLDER / "report.json")}.items():
        console.print(f"{name:>22}  {path}", soft_wrap=True, highlight=False)
    good = set(ledger.verdicts) == {"released"}
    console.print(f"\n{'Every verdict passed.' if good else '[red]A verdict failed: see the tables above.[/]'} Next:")
    console.print(
        f"  .venv/bin/lethe up --data {HOME}\n"
        f"  export LETHE_URL=http://127.0.0.1:8765 LETHE_KEY=$(cat {deployment.key_file})\n"
        f"  .venv/bin/lethe requests\n"
        f"  .venv/bin/lethe pull generator-{run}:2 ./my-generator\n"
        f"  DIGIT=3 make demo",
        soft_wrap=True, highlight=False,
    )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
