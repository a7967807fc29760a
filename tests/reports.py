"""A report as a worker writes it, complete and made up, for tests that show or serve one."""

from typing import Any

from app.catalog import ATTACKS, METRICS, wilson

JUDGE, BASE = "sha256:" + "1d" * 32, "sha256:" + "ba" * 32


def figure(metric: str, value: float | None, before: float | None = None, n: int = 40, **others: Any) -> dict[str, Any]:
    """A row without a rule; shares carry their interval."""
    known = METRICS[metric]

    def interval(share: float | None) -> dict[str, Any] | None:
        if share is None or known.interval != "wilson":
            return None
        low, high = wilson(round(share * n / 100), n)
        return {"level": 95, "low": low, "high": high, "by": "wilson"}

    return {
        "metric": metric, "name": f"{metric}[judge]" if known.unit == "judge" else metric, "title": known.title,
        "value": value, "interval": interval(value), "before": before, "before_interval": interval(before),
        "target": None, "target_is": None, "target_interval": None, "n": n, "n_needed": None, "seed": 0, "unit": known.unit,
        "direction": known.direction, "evaluators": [JUDGE], "threshold": None, "passed": None, **others,
    }  # fmt: skip


def report(*figures: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {
        "verdict": "passed", "kind": "class_label", "figures": list(figures), "settings": {"sampling_steps": 20, "seed": 0},
        "base": BASE, "judge": JUDGE, "reference": None, "generated": {}, "trace": {},
        "not_tested": ["relearning", "adversarial prompts"], "pictures": [], **others,
    }  # fmt: skip


def count(success: int, total: int) -> dict[str, Any]:
    low, high = wilson(success, total)
    interval = {"level": 95, "low": low, "high": high, "by": "wilson"}
    return {"success": success, "total": total, "interval": interval}


def attack(name: str, success: int, total: int, **others: Any) -> dict[str, Any]:
    """An attack on the unlearned network (which it brought from nothing to `success`) and on the base."""
    after = count(success, total)
    sides = {
        "unlearned": {"before": count(0, total), "after": after, "rows": []},
        "base": {"before": None, "after": count(total, total), "rows": []},
    }
    return {
        "attack": name, "title": ATTACKS[name].title, "value": 100 * success / total, "n": total, "unit": "%",
        "interval": after["interval"], "direction": "lower", "threshold": None,
        "passed": None, "settings": {}, "seed": 0, "budget": {"steps": 50}, "evaluators": [], "sides": sides, **others,
    }  # fmt: skip


def of_a_generator(**others: Any) -> dict[str, Any]:
    rule = {"rule": "at_least", "value": 95.0}
    return report(
        figure("unlearning_accuracy", 97.5, 2.5, threshold=rule, passed=True, n_needed=73, target=100.0, target_is="ideal"),
        figure("forget_rejected", 2.5, 0.0, threshold={"rule": "at_most", "value": 20.0}, passed=True, n_needed=16),
        figure("kept_accuracy", 96.0, 98.0, n=180, threshold={"rule": "drop_at_most", "value": 3.0}, passed=True),
        figure("per_class_accuracy", 90.0, 95.0, n=180, by_label={"0": 95.0, "3": 2.5}),
        figure("unlearning_accuracy_row_restored", None, None, n=0),
        figure("changed_weights", 3.2, None, n=125_000, evaluators=[]),
        **{"losses": {"forget_loss": {"every": 3, "steps": [3, 6, 8], "values": [0.4, None, 0.1]}}, **others},
    )  # fmt: skip
