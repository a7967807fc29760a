"""What `method: auto` tries, by family and kind of forgetting: cheapest first, at last a stronger setting of the last one.

docs/methods/README.md gives the figures behind each choice. A rung names only what differs from its family's defaults.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from app.catalog.families import CLASSIFIER, CLIP, DIFFUSION, TEXT_TO_IMAGE, VISION_LANGUAGE
from app.catalog.image_to_image import AUTOENCODER, INPAINTING, MASKED

AUTO = "auto"  # what a request names instead of a method


@dataclass(frozen=True)
class Rung:
    method: str
    recipe: Mapping[str, Any] = field(default_factory=dict)


_DRAWN_INSTEAD = {"relabel": "next", "relabel_on": "both"}
_NO_TABLE = {"train": "no_label_table", "relabel": "next"}
_RESTORED: Mapping[str, Mapping[str, Any]] = {
    MASKED: {"epochs": 60, "alpha": 1.0},
    AUTOENCODER: {"epochs": 60},
    INPAINTING: {"epochs": 60, "alpha": 0.3},
}

LADDERS: Mapping[str, Mapping[str, tuple[Rung, ...]]] = MappingProxyType(
    {
        CLASSIFIER: {
            "class_label": (Rung("slug"), Rung("salun"), Rung("salun", {"epochs": 30, "batch_size": 64})),
            "samples": (Rung("salun"), Rung("salun", {"epochs": 20})),
        },
        DIFFUSION: {"class_label": (Rung("salun", _NO_TABLE), Rung("salun", {**_NO_TABLE, "steps": 3000}))},
        TEXT_TO_IMAGE: {
            "class_label": (
                Rung("uce", {"guide": "next"}),
                Rung("slug", {"tower": "text", "retain_drop": 5.0}),
                Rung("salun", _DRAWN_INSTEAD),
                Rung("salun", {**_DRAWN_INSTEAD, "steps": 1680}),
            )
        },
        CLIP: {"class_label": (Rung("slug"), Rung("salun"), Rung("salun", {"steps": 600}))},
        VISION_LANGUAGE: {"class_label": (Rung("slug"), Rung("slug", {"retain_drop": 5.0}))},
        **{
            family: dict.fromkeys(("class_label", "samples"), (Rung("encoder_mse"), Rung("encoder_mse", stronger)))
            for family, stronger in _RESTORED.items()
        },
    }
)
