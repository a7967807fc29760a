"""What the CLI and the demo show a person: progress bars with the time left, and reports as tables."""

import json
import sys
from typing import Any

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table

from app.figures import count, fitness, interval, kept, met, number, rule, rung, share

console = Console(width=None if sys.stdout.isatty() else 160)  # a pipe has no width: nothing is cut off
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")


def value_of(text: str) -> Any:
    """What NAME=VALUE gives: JSON where it is some, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


class Watcher:
    """A progress bar fed with a job's events, or with downloaded bytes."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description:>12}"),
            BarColumn(),
            TextColumn("{task.completed:>6.0f}/{task.total:.0f} {task.fields[left]}"),
        )
        self._progress = Progress(*columns, console=console)
        self._task: Any = None
        self._stage = ""

    def __enter__(self) -> "Watcher":
        self._progress.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._finish()
        self._progress.stop()

    def event(self, event: dict[str, Any]) -> None:
        kind, data = event["kind"], event["data"]
        if kind == "stage":
            self._finish()
            self._stage = data["stage"]
            self._task = self._progress.add_task(self._stage, total=1, left="")
        elif kind == "progress" and self._task is not None:
            left = f"{data['seconds_left']:.0f} s left" if data["step"] < data["total"] else ""
            self._progress.update(self._task, completed=data["step"], total=data["total"], left=left)

    def bytes(self, done: int, total: int) -> None:
        if self._task is None:
            self._task = self._progress.add_task("pulling", total=total / 1e6, left="MB")
        self._progress.update(self._task, completed=done / 1e6)

    def _finish(self) -> None:
        if self._task is not None:
            total = self._progress.tasks[self._task].total
            self._progress.update(self._task, completed=total, left="")


SHOWN = (("unlearned", "before"), ("unlearned", "after"), ("base", "after"), ("reference", "after"))


def show_report(console: Console, report: dict[str, Any]) -> None:
    """Figures with their value before and after, interval, target, threshold, n and whether the threshold was met."""
    table = Table(
        Column("figure", min_width=32),
        "before",
        "after",
        "95 % interval",
        "target",
        "threshold",
        "n",
        "met",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    for figure in report["figures"]:
        table.add_row(
            escape(figure["name"]),
            number(figure["before"]),
            number(figure["value"]),
            interval(figure.get("interval")),
            number(figure["target"]),
            rule(figure["threshold"]),
            count(figure),
            met(figure),
        )
    console.print(table)
    if report.get("attacks"):
        console.print(attack_table(report["attacks"]))
    if report.get("promises"):
        console.print(promise_table(report["promises"]))
    if report.get("left_out"):
        console.print(f"{report['left_out']} images of the retain set were left out: an earlier request forgot them")
    for who in ("judge", "detector"):
        if found := report.get(f"{who}_fitness"):
            console.print(f"the {who} is {'fit' if found['fit'] else '[bold]unfit[/]'}: it {fitness(found)}")
    if ladder := report.get("ladder"):
        console.print(f"rung {ladder['rung'] + 1} of {ladder['rungs']} of the ladder: {ladder['method']}")
        for each in ladder["earlier"]:
            console.print(f"  before it {rung(each)}")
    if report.get("override"):
        said = report["override"]
        why = f": {escape(said['reason'])}" if said.get("reason") else ""
        console.print(f"released against its verdict on {said['at'][:10]}, {said['code'].replace('_', ' ')}{why}")
    why = f" ({', '.join(report['reasons'])})" if report.get("reasons") else ""
    console.print(f"verdict: [bold]{report['verdict']}[/]{why}   not tested: {', '.join(report.get('not_tested', []))}")


def show_rungs(console: Console, request: dict[str, Any]) -> None:
    """What each rung of a request's ladder came to, and the seconds that it took, of the method alone and of the whole job."""
    table = Table("rung", "method", "status", "verdict", "version", "unlearning, s", "in all, s", box=SIMPLE)
    for job in request["jobs"]:
        table.add_row(
            f"{job['rung'] + 1} of {len(request['ladder'])}",
            job["method"],
            job["error"] or job["status"],
            job["verdict"] or "",
            "" if job["version"] is None else str(job["version"]),
            number(job["unlearning_seconds"]),
            number(job["seconds"]),
        )
    console.print(table)


def attack_table(attacks: list[dict[str, Any]]) -> Table:
    """Percent that each attack reached on the unlearned network, before it where there is a before, and on the others; under
    each its interval."""
    table = Table(
        "attack",
        "before",
        "after",
        "base",
        "retrained",
        "threshold",
        "n",
        "met",
        box=SIMPLE,
        caption="below: 95 % intervals",
    )
    for row in attacks:
        sides = row.get("sides") or {}
        counts = [sides.get(side, {}).get(when) for side, when in SHOWN]
        if counts[1]:  # an older report has its interval in the row alone
            counts[1] = {"interval": row.get("interval"), **counts[1]}
        shares = [_share(each) for each in counts]
        table.add_row(
            escape(row["attack"]),
            *(shares if sides else ["", escape(row["reason"]), "", ""]),
            rule(row["threshold"]),
            str(row["n"]),
            met(row),
        )
    return table


def promise_table(promises: list[dict[str, Any]]) -> Table:
    """What earlier requests of the model showed, before, in their own report and now."""
    table = Table(
        "earlier request", "figure", "before", "then", "now", "95 % interval", "threshold", "n", "", box=SIMPLE
    )
    for promise in promises:
        for row in promise["figures"] or [None]:
            figures = (
                [""] * 7
                if row is None
                else [
                    escape(row["metric"]),
                    number(row["before"]),
                    number(row["then"]),
                    number(row["value"]),
                    interval(row.get("interval")),
                    rule(row["threshold"]),
                    str(row["n"]),
                ]
            )
            table.add_row(promise["request"], *figures, kept(promise, row))
    return table


def _share(found: dict[str, Any] | None) -> str:
    return "\n".join(share(found)).rstrip()


def show_comparison(console: Console, found: dict[str, Any]) -> None:
    """Two versions beside each other: value, interval, n and rules of each, how far apart they are, and promises."""
    console.print(_beside("figure", "name", found["versions"], found["figures"]))
    if found["attacks"]:
        console.print(_beside("attack", "attack", found["versions"], found["attacks"]))
    if found["promises"]:
        table = Table("earlier request", *map(escape, found["versions"]), box=SIMPLE, padding=(0, 1, 0, 0))
        for promise in found["promises"]:
            table.add_row(promise["request"], *map(_kept, promise["sides"]))
        console.print(table)
    console.print(f"verdicts: [bold]{found['verdicts'][0]}[/] and [bold]{found['verdicts'][1]}[/]")
    if measured := [part for part in found["unlike"] if part != "forgotten"]:
        console.print(f"not measured alike ({', '.join(measured)}): figures may differ for that alone")
    if "forgotten" in found["unlike"]:
        console.print("not known to have forgotten the same: figures may differ for that alone")


def _beside(what: str, key: str, versions: list[str], rows: list[dict[str, Any]]) -> Table:
    one, other = map(escape, versions)
    sides = (one, "95 % interval", "n", "rules", other, "95 % interval", "n", "rules")
    table = Table(Column(what, min_width=32), *sides, "difference", box=SIMPLE, padding=(0, 1, 0, 0))
    for row in rows:
        table.add_row(escape(row[key]), *_side(row["sides"][0]), *_side(row["sides"][1]), _signed(row["difference"]))
    return table


def _side(side: dict[str, Any] | None) -> tuple[str, str, str, str]:
    if side is None:
        return "", "", "", ""
    rules = [f"{rule(each)} {met({**each, 'threshold': each})}" for each in side["rules"]]
    value = "not made" if side.get("reason") else number(side["value"])
    return value, interval(side["interval"]), str(side["n"]), ", ".join(rules)


def _kept(side: dict[str, Any] | None) -> str:
    if side is None:
        return ""
    state = "BROKEN" if side["kept"] == "broken" else side["kept"]
    return f"{state}: {side['reason'].replace('_', ' ')}" if side["reason"] else state


def _signed(difference: float | None) -> str:
    return number(difference) if difference is None or difference <= 0 else f"+{number(difference)}"
