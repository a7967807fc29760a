"""What the CLI and the demo show a person: progress bars with the time left, and reports as tables."""

from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column, Table

from app.figures import count, interval, met, number, rule


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
    console.print(f"verdict: [bold]{report['verdict']}[/]   not tested: {', '.join(report.get('not_tested', []))}")
