"""What a protocol file may say, and reading one: shipped with Lethe, or anybody's own."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.catalog import METRICS
from app.errors import Refused

FOLDER = Path(__file__).parent
Least1 = Annotated[int, Field(ge=1, strict=True)]
Seed = Annotated[int, Field(ge=0, lt=2**53, strict=True)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Labels(_Part):
    """One request for each label."""

    by: Literal["labels"]
    of: Literal["model", "train", "retain", "test"] = "model"
    labels: list[str] | None = Field(None, min_length=1, description="These; else all.")
    draw: Least1 | None = Field(None, description="So many of them, drawn by the seed.")


class Concepts(_Part):
    """One request for each concept, which needs no label."""

    by: Literal["concepts"]
    concepts: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)


class Samples(_Part):
    """One request for each amount: samples drawn by the seed."""

    by: Literal["samples"]
    of: Literal["train", "retain"] = "train"
    label: str | None = Field(None, description="Samples of this label; else of the whole set.")
    percent: list[Annotated[float, Field(gt=0, le=100)]] = Field(min_length=1)


class Split(_Part):
    """One request for each seed, which divides the labels of a folder of images: those to forget are uploaded as a forget
    set, those to retain as the test set, and the rest is the proxy that the method may train on."""

    by: Literal["split"]
    forget: Least1
    retain: Least1


class Needs(_Part):
    """What must be registered with the model."""

    sets: list[Literal["train", "retain", "test"]] = []
    judge: bool = False
    evaluators: list[str] = []
    evaluation: list[str] = Field([], description="Settings that must not be empty.")
    attacks: list[str] = Field([], description="Attacks that the evaluation must name.")


class Rule(_Part):
    """Held against the mean over requests, by the runner; no policy knows of it."""

    figure: str
    rule: Literal["at_least", "at_most", "drop_at_most"]
    value: float = Field(strict=True, allow_inf_nan=False)


class Protocol(_Part):
    title: str
    source: str
    notes: list[str] = Field([], description="Where this departs from the source.")
    families: list[str] = Field(min_length=1)
    needs: Needs = Needs()
    forget: Annotated[Labels | Concepts | Samples | Split, Field(discriminator="by")]
    sequential: bool = Field(False, description="Each request on what the last one made; else each on a fresh copy.")
    method: str = "auto"
    recipe: dict[str, Any] = {}
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        {}, description="Hyper-parameters and their values; every combination runs."
    )
    evaluation: dict[str, Any] = Field({}, description="Settings of the copies, in place of the model's own.")
    seeds: list[Seed] = Field([0], min_length=1)
    figures: list[str] = Field(min_length=1, description="Metrics or attacks, in the order of the table.")
    thresholds: list[Rule] = []

    @model_validator(mode="after")
    def fits_together(self) -> "Protocol":
        if self.method == "auto" and (self.recipe or self.grid):
            raise ValueError("auto takes no recipe and no grid: name a method")
        if both := sorted(set(self.recipe) & set(self.grid)):
            raise ValueError(f"{both[0]} stands in recipe and in grid: name it once")
        if self.sequential and self.forget.by != "labels":
            raise ValueError("only requests by labels can be sequential")
        if unknown := [rule.figure for rule in self.thresholds if rule.figure not in self.figures]:
            raise ValueError(f"a threshold is on {unknown[0]}, which is not among the figures")
        drops = [rule.figure for rule in self.thresholds if rule.rule == "drop_at_most" and rule.figure in METRICS]
        if unfit := [figure for figure in drops if not METRICS[figure].takes("drop_at_most", "")]:
            raise ValueError(
                f"drop_at_most bounds the loss of what is kept, where higher is better: {unfit[0]} is no such figure"
            )
        return self


def shipped() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def path_of(named: str) -> Path:
    """Of a shipped protocol by its name, or of a file."""
    path = FOLDER / f"{named}.yaml" if named in shipped() else Path(named)
    if not path.is_file():
        rule = "There is no such protocol and no such file."
        raise Refused("unknown-protocol", "protocol", rule, f"Name a file, or one of {', '.join(shipped())}.")
    return path


def read(path: Path, changes: dict[str, Any] | None = None) -> Protocol:
    """The protocol in a file; `changes` replace fields of it, by dotted name."""
    try:
        document = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise Refused("not-yaml", f"{path.name}{where}", "It is not YAML.", "See docs/protocols.md.") from error
    if not isinstance(document, dict):
        raise Refused("not-yaml", path.name, "It must be a mapping of fields.", "See docs/protocols.md.")
    for name, value in (changes or {}).items():
        _change(document, name, value)
    try:
        return Protocol.model_validate(document)
    except ValidationError as error:
        wrong = error.errors()[0]
        field = ".".join(map(str, wrong["loc"])) or "protocol"
        rule = wrong["msg"].removeprefix("Value error, ")
        raise Refused("bad-protocol", f"{path.name}, {field}", f"{rule}.", "See docs/protocols.md.") from error


def _change(document: dict[str, Any], name: str, value: Any) -> None:
    *groups, last = name.split(".")
    for group in groups:
        document = document.setdefault(group, {})
        if not isinstance(document, dict):
            raise Refused("bad-protocol", name, f"{group} holds no fields.", "Set it as a whole.")
    document[last] = value
