"""Evaluators beside the judge, by the part that they play: registered models that a model's `evaluators` names, and famous
networks on weights that the operator gives."""

from collections.abc import Mapping
from types import MappingProxyType

from app.catalog.families import CLASSIFIER, CLIP, DIFFUSION, TEXT_TO_IMAGE
from app.catalog.types import Backbone, Evaluator

EVALUATORS: Mapping[str, Evaluator] = MappingProxyType(
    {
        "context": Evaluator(
            CLASSIFIER,
            (TEXT_TO_IMAGE,),
            "Judge of the other domain: it knows every text of `evaluation.contexts` as a label, and measures `cra`.",
        ),
        "clip": Evaluator(
            CLIP,
            (DIFFUSION, TEXT_TO_IMAGE),
            "Scorer of generated images against their prompts (`clip_score`) and against the base's (`clip_similarity`).",
        ),
        "detector": Evaluator(
            CLASSIFIER,
            (TEXT_TO_IMAGE,),
            "Detector of what `evaluation.detector_labels` names, among its labels, in the images drawn for `evaluation.prompts`.",
        ),
    }
)

BACKBONES: Mapping[str, Backbone] = MappingProxyType(
    {
        "inception": Backbone("FID's Inception v3", (DIFFUSION, TEXT_TO_IMAGE)),
        "lpips": Backbone("LPIPS on AlexNet", (DIFFUSION, TEXT_TO_IMAGE)),
    }
)
