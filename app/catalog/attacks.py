"""Attacks on an unlearned network, one entry per file of worker/attacks. A model's evaluation setting `attacks` names
those that every request of the model is measured under."""

from collections.abc import Mapping
from types import MappingProxyType

from app.catalog.families import CLASSIFIER, CLIP, DIFFUSION, TEXT_TO_IMAGE, VISION_LANGUAGE
from app.catalog.types import Attack, Parameter

GENERATORS = (DIFFUSION, TEXT_TO_IMAGE)
_MEASURED = Parameter(
    "integer",
    200,
    "Most samples that are asked about, of the forget set and of the retain set each; a generator draws as many.",
    1,
    100_000,
    by_family=dict.fromkeys(GENERATORS, 20),
)

ATTACKS: Mapping[str, Attack] = MappingProxyType(
    {
        "relearning": Attack(
            "Relearning",
            "Chundawat et al., IEEE TIFS 2023, arXiv 2201.05629",
            (CLASSIFIER, DIFFUSION, CLIP, TEXT_TO_IMAGE, VISION_LANGUAGE),
            "lower",
            "Share of a forget set's half still recognised after a few images of the other half were trained on again.",
            {
                "images": Parameter("integer", 10, "Forgotten images that are shown again, at most.", 1, 10),
                "retain_images": Parameter(
                    "integer", 50, "Retained images to train on beside them; 0 shows forgotten ones alone.", 0, 10_000
                ),
                "steps": Parameter("integer", 50, "Optimizer steps.", 1, 1000),
                "batch_size": Parameter(
                    "integer", 10, "Forgotten images in one step, and as many retained ones.", 1, 4096
                ),
                "learning_rate": Parameter(
                    "number",
                    1e-3,
                    "Adam's step size.",
                    0,
                    10,
                    exclusive_minimum=True,
                    by_family={DIFFUSION: 3e-4, CLIP: 1e-5, TEXT_TO_IMAGE: 1e-5, VISION_LANGUAGE: 1e-5},
                ),
                "measured": _MEASURED,
            },
        ),
        "quantised_copies": Attack(
            "Quantised copies",
            "Zhang et al., ICLR 2025, arXiv 2410.16454",
            (CLASSIFIER, DIFFUSION, CLIP, TEXT_TO_IMAGE, VISION_LANGUAGE),
            "lower",
            "Share of the forget set that is recognised by a copy with rounded weights; the copy that recognises most.",
            {
                "bits": Parameter("integer", 8, "Of the integer copy; the others are float16 and bfloat16.", 2, 8),
                "measured": _MEASURED,
            },
        ),
        "paraphrases": Attack(
            "Paraphrases",
            "templates of Radford et al., arXiv 2103.00020, and ours",
            (CLIP, TEXT_TO_IMAGE),
            "lower",
            "Share of the forget set that is recognised under another wording than the one asked; the worst wording.",
            {
                "templates": Parameter("integer", 10, "How many other wordings are tried.", 1, 10),
                "measured": _MEASURED,
            },
        ),
        "membership_sweep": Attack(
            "Membership inference, threshold sweep",
            "Carlini et al., IEEE S&P 2022, arXiv 2112.03570",
            (CLASSIFIER, CLIP),
            "target",
            "Forgotten and unseen images told apart rightly by a threshold on confidence; 50 is guessing.",
            {},
        ),
    }
)
