"""What may be requested: methods, ladders of methods, families, metrics and attacks, with bounds, defaults and sources.

The one name of a thing is its key here: it is also the module name under `worker/`, the value in the
database, the word in the API and the id of its tests. Nothing here imports torch, so the server can refuse
a wrong recipe before any GPU is touched; a test ties every bound and default to the function it describes.
"""

from app.catalog.attacks import ATTACKS, FEWEST_SHADOWS, shadow_names
from app.catalog.evaluators import BACKBONES, EVALUATORS
from app.catalog.families import CLASSIFIER, FAMILIES
from app.catalog.intervals import LEVEL, n_needed, wilson
from app.catalog.ladders import AUTO, LADDERS, Rung
from app.catalog.methods import METHODS
from app.catalog.metrics import METRICS
from app.catalog.parts import PARTS, STATISTICS, Part
from app.catalog.rules import held_to, met_by_all, shows_forgetting
from app.catalog.types import Attack, Backbone, Evaluator, Family, Files, Method, Metric, Parameter, Threshold

__all__ = [
    "ATTACKS",
    "AUTO",
    "BACKBONES",
    "CLASSIFIER",
    "EVALUATORS",
    "FAMILIES",
    "FEWEST_SHADOWS",
    "LADDERS",
    "LEVEL",
    "METHODS",
    "METRICS",
    "PARTS",
    "STATISTICS",
    "Attack",
    "Backbone",
    "Evaluator",
    "Family",
    "Files",
    "Method",
    "Metric",
    "Parameter",
    "Part",
    "Rung",
    "Threshold",
    "held_to",
    "met_by_all",
    "n_needed",
    "shadow_names",
    "shows_forgetting",
    "wilson",
]
