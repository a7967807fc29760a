"""Curves of a report, drawn from a method's trace (what it weighed and what it chose), its losses and what attacks found.

A label is called by its place among those that were to be forgotten; no name of a person reaches a picture.
"""

import io
import itertools
import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from worker.losses import Curves

INK, MARK, PALE = "#1c1c1e", "#b02a30", "#9aa0a6"
OF_LOSS = {"forget_loss": MARK, "retain_loss": INK}
OTHERS = ("#2f6f9f", "#b8860b", PALE)  # of losses by other names
FEW = 60  # values of a line that are dotted
APART = 100  # times the smallest loss, from which on a linear scale would hide it
COLUMNS = 3  # panels beside each other
MOST_LAYERS = 8  # curves of one panel: those of the best layers


def pictures(trace: dict[str, Any], losses: Curves) -> dict[str, bytes]:
    """File name -> PNG, one for each part of the trace that can be drawn, and one of all losses."""
    drawn: dict[str, bytes] = {}
    if trace.get("front"):
        drawn["front.png"] = fronts(trace["front"])
    if trace.get("search"):
        drawn["search.png"] = searches(trace["search"], trace["patches"])
    if len(trace.get("cosines", [])) > 1:
        drawn["cosines.png"] = matrix(trace["cosines"])
    if losses:
        drawn["losses.png"] = of_losses(losses)
    return drawn


def of_attacks(attacks: Sequence[dict[str, Any]]) -> dict[str, bytes]:
    """File name -> PNG of those attacks that have a curve."""
    curves = [row["sides"] for row in attacks if row["attack"] == "relearning" and row["value"] is not None]
    return {"relearning.png": relearning(curves[0])} if curves else {}


def relearning(sides: dict[str, Any]) -> bytes:
    """Forgotten images recognised again against the step of relearning, a line per network in the band of its intervals;
    retained ones dashed."""
    figure, (axes,) = panels_for(1, "relearning")
    for name, colour in (("base", PALE), ("unlearned", MARK), ("reference", INK)):
        for key, style, what in ((None, "-", "forgotten"), ("kept", "--", "retained")) if name in sides else ():
            counts = [row[key] if key else row for row in sides[name]["rows"]]
            if all(count["total"] for count in counts):
                shares = [100 * count["success"] / count["total"] for count in counts]
                steps = [row["step"] for row in sides[name]["rows"]]
                label = f"{name}: {what}, n = {counts[0]['total']}"
                if key is None:
                    low, high = ([count["interval"][end] for count in counts] for end in ("low", "high"))
                    axes.fill_between(steps, low, high, color=colour, alpha=0.15, lw=0)
                axes.plot(
                    steps, shares, color=colour, ls=style, lw=1.8 if key is None else 0.9, marker="o", ms=3, label=label
                )
    axes.set_xscale("symlog", linthresh=1)
    axes.set(xlabel="step of relearning", ylabel="recognised, %", ylim=(-4, 104))
    axes.legend(frameon=False, fontsize=8, title="shaded: 95 % intervals", title_fontsize=8)
    return as_png(figure)


def fronts(labels: Sequence[Sequence[dict[str, Any]]]) -> bytes:
    """Importance against alignment, a panel per label: the front, the other layers, and the chosen one by name."""
    figure, panels = panels_for(len(labels), "front of layers")
    for place, (axes, points) in enumerate(zip(panels, labels, strict=True), 1):
        chosen = [point for point in points if point["chosen"]]
        ahead = [point for point in points if point["on_front"] and not point["chosen"]]
        behind = [point for point in points if not point["on_front"] and not point["chosen"]]
        for some, colour, size, name in (
            (behind, PALE, 16, "other layers"),
            (ahead, INK, 26, "front"),
            (chosen, MARK, 70, "chosen"),
        ):
            axes.scatter(
                [p["alignment"] for p in some],
                [p["importance"] for p in some],
                s=size,
                c=colour,
                label=name,
                zorder=size,
            )
        axes.set_yscale("log")
        axes.set(xlabel="alignment with the retain gradient", ylabel="importance, |g| / |theta|")
        axes.set_title(f"{named(place, len(labels))}: {chosen[0]['layer']}" if chosen else named(place, len(labels)))
        axes.legend(frameon=False, fontsize=8)
    return as_png(figure)


def searches(labels: Sequence[dict[str, list[dict[str, float]]]], patches: Sequence[dict[str, Any]]) -> bytes:
    """Shares still recognised against the step size, as a multiple of each layer's first step; the chosen layer is bold."""
    figure, panels = panels_for(len(labels), "search of the step size")
    for place, (axes, layers, patch) in enumerate(zip(panels, labels, patches, strict=True), 1):
        others = [layer for layer in layers if layer != patch["layer"]][: MOST_LAYERS - 1]
        for layer in (*others, patch["layer"]):
            trials = sorted(layers[layer], key=lambda trial: trial["step_size"])
            first, bold = layers[layer][0]["step_size"], layer == patch["layer"]
            steps = [trial["step_size"] / first for trial in trials]
            width, alpha = (2.2, 1.0) if bold else (0.9, 0.3)
            for share, colour in (("forget", MARK), ("retain", INK)):
                axes.plot(
                    steps, [t[share] for t in trials], color=colour, lw=width, alpha=alpha, marker="o", ms=4 if bold else 2,
                    label=f"{share} set" if bold else None,
                )  # fmt: skip
            if bold:
                axes.axvline(patch["step_size"] / first, color=PALE, lw=1, ls="--", label="chosen step")
        axes.set_xscale("log", base=2)
        axes.set(xlabel="step size / first step", ylabel="still recognised, %", ylim=(-4, 104))
        axes.set_title(f"{named(place, len(labels))}: {patch['layer']}")
        axes.legend(frameon=False, fontsize=8)
    return as_png(figure)


def matrix(cosines: Sequence[Sequence[float]]) -> bytes:
    """The cosine of each label's forget gradient with each other's."""
    size = len(cosines)
    figure = Figure(figsize=(2.4 + 0.55 * size, 2 + 0.55 * size), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(cosines, cmap="RdBu_r", vmin=-1, vmax=1)
    axes.set_xticks(range(size), [str(place) for place in range(1, size + 1)])
    axes.set_yticks(range(size), [str(place) for place in range(1, size + 1)])
    for row, line in enumerate(cosines if size <= 12 else []):
        for column, value in enumerate(line):
            axes.text(
                column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color="white" if value > 0.6 else INK
            )
    axes.set_title("cosines of forget gradients", fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.8)
    return as_png(figure)


def of_losses(curves: Curves) -> bytes:
    """A line per loss against the step, pale where steps between two values had none: sets may take turns."""
    figure, (axes,) = panels_for(1, "losses while unlearning")
    others = itertools.cycle(OTHERS)
    for name, curve in curves.items():
        steps, values = unbroken(curve)
        colour = OF_LOSS.get(name) or next(others)
        dot = 3 if len(steps) <= FEW else 2 * (math.nan in steps)  # a value with no neighbour is no line
        joined = [math.nan if value is None else value for value in curve["values"]]
        axes.plot(curve["steps"], joined, color=colour, lw=0.9, alpha=0.3)
        axes.plot(steps, values, color=colour, lw=1.4, marker="o", ms=dot, label=name.replace("_", " "))
    known = [value for curve in curves.values() for value in curve["values"] if value is not None]
    if known and min(known) > 0 and max(known) > APART * min(known):
        axes.set_yscale("log")
    every, last = (
        max(each) for each in zip(*((curve["every"], curve["steps"][-1]) for curve in curves.values()), strict=True)
    )
    axes.set(xlabel="step" if every == 1 else f"step, means of {every}", ylabel="loss", xlim=(0, 1.03 * last))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8)
    return as_png(figure)


def unbroken(curve: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Steps and values with a nan where the next value is not of the next stretch."""
    steps: list[float] = []
    values: list[float] = []
    stretch = None
    for step, value in zip(curve["steps"], curve["values"], strict=True):
        before, stretch = stretch, (step - 1) // curve["every"]
        if before is not None and stretch > before + 1:
            steps, values = [*steps, math.nan], [*values, math.nan]
        steps, values = [*steps, step], [*values, math.nan if value is None else value]
    return steps, values


def panels_for(count: int, title: str) -> tuple[Figure, list[Axes]]:
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(5.2 * columns, 3.9 * rows), layout="constrained")
    figure.suptitle(title, fontsize=12, color=INK)
    panels = [figure.add_subplot(rows, columns, place) for place in range(1, count + 1)]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(9)
    return figure, panels


def named(place: int, places: int) -> str:
    return "chosen" if places == 1 else f"label {place} of {places}"


def as_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
