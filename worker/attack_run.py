"""The straight line of a job that attacks a version made before, inside the runner: load, attack. Nothing is unlearned or stored.

The base is the version's parent, and what was forgotten is chosen as when the version was made, so that a row here stands
beside the rows of the version's report.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.report import Attacked
from app.storage import LocalBlobs
from worker import robustness
from worker.evaluate import open_judge, parts
from worker.load import Warm, load
from worker.progress import Progress, Tell
from worker.run import prepare_torch


def run(specification: dict[str, Any], warm: Warm, tell: Tell, stop: Callable[[], str | None]) -> dict[str, Any]:
    """Returns a row for each attack that the specification's evaluation names."""
    device = prepare_torch(specification)
    tell("stage", {"stage": "loading"})
    material = load(specification, warm, LocalBlobs(Path(specification["blob_root"])), device, Progress(tell, stop))
    assert material.unlearned is not None

    tell("stage", {"stage": "attacking"})
    network, judge, named = material.unlearned.network, open_judge(material), specification["evaluation"]["attacks"]
    shares = parts(Progress(tell, stop), len(named))
    rows = [robustness.attack(specification, material, network, judge, name, next(shares)) for name in named]
    for row in rows:
        Attacked.model_validate_json(json.dumps(row))
    return {"attacks": rows}
