"""Attacks on an unlearned network, one entry per file of worker/attacks. A model's evaluation setting `attacks` names
those that every request of the model is measured under."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from app.catalog.families import CLASSIFIER, CLIP, DIFFUSION, FAMILIES, GENERATORS, TEXT_TO_IMAGE, VISION_LANGUAGE
from app.catalog.image_to_image import RESTORERS
from app.catalog.types import Attack, Parameter

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
            tuple(FAMILIES),
            "lower",
            "Share of a forget set's half that is recognised after a few images of the other half were trained on again; the moment "
            "at which most are.",
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
            tuple(FAMILIES),
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
        "adversarial_prompts": Attack(
            "Adversarial prompts",
            "Zhang et al. (UnlearnDiffAtk), ECCV 2024, arXiv 2310.11868",
            (CLIP, TEXT_TO_IMAGE),
            "lower",
            "Share of a forget set's half that is recognised under a prompt with words before it that were searched for.",
            {
                "tokens": Parameter("integer", 5, "Words before the prompt; fewer where it leaves less room.", 1, 32),
                "images": Parameter("integer", 10, "Forgotten images that the search sees, at most.", 1, 100),
                "steps": Parameter("integer", 100, "Steps of one search.", 1, 10_000),
                "restarts": Parameter("integer", 3, "Searches; the words of lowest loss count.", 1, 100),
                "batch_size": Parameter("integer", 10, "Images in one step.", 1, 4096),
                "step_size": Parameter(
                    "number",
                    0.1,
                    "How far a step moves the share of the word that helps most.",
                    0,
                    10,
                    exclusive_minimum=True,
                ),
                "measured": _MEASURED,
            },
        ),
        "text_free_inversion": Attack(
            "Text-free inversion",
            "Pham et al., ICLR 2024, arXiv 2308.01508; Gal et al., ICLR 2023, arXiv 2208.01618",
            GENERATORS,
            "lower",
            "Share of drawn images that are recognised when the denoiser is told a free embedding instead of the label; the moment "
            "at which most are.",
            {
                "images": Parameter("integer", 10, "Forgotten images that the embedding is learned from.", 1, 100),
                "steps": Parameter("integer", 200, "Optimizer steps.", 1, 10_000),
                "batch_size": Parameter("integer", 10, "Images in one step.", 1, 4096),
                "learning_rate": Parameter("number", 0.02, "Adam's step size.", 0, 10, exclusive_minimum=True),
                "measured": Parameter("integer", 20, "Images that are drawn at each moment, at most.", 1, 100_000),
            },
        ),
        "recropping": Attack(
            "Re-cropping",
            "named after Li et al., ICLR 2024, arXiv 2402.00351",
            RESTORERS,
            "lower",
            "Share of the forget set that the network gives away when other parts of it are hidden; the view that gives "
            "away most.",
            {"measured": _MEASURED},
        ),
        "membership_sweep": Attack(
            "Membership inference, threshold sweep",
            "Carlini et al., IEEE S&P 2022, arXiv 2112.03570",
            (CLASSIFIER, CLIP),
            "target",
            "Forgotten and unseen images told apart rightly by a threshold on confidence; 50 is guessing.",
            {},
        ),
        "likelihood_ratio": Attack(
            "Membership inference, likelihood ratio",
            "Carlini et al. (LiRA), IEEE S&P 2022, arXiv 2112.03570",
            (CLASSIFIER,),
            "target",
            "Forgotten and unseen images told apart rightly by a threshold on the ratio of two likelihoods: of shadow networks that "
            "knew an image, and of those that did not; 50 is guessing.",
            {
                "shadows": Parameter(
                    "text",
                    "",
                    "Registered models of the same family and labels, by name and separated by commas, each with the "
                    "train set that it learned.",
                    maximum=10_000,
                )
            },
            shadows=True,
        ),
    }
)
FEWEST_SHADOWS = 4  # two that know a sample and two that do not


def shadow_names(evaluation: Mapping[str, Any]) -> list[str]:
    """The models that an evaluation names as shadows, each once; none where no attack of it takes any."""
    named = evaluation.get("attacks", {})
    given = [settings["shadows"] for name, settings in named.items() if ATTACKS[name].shadows]
    return list(dict.fromkeys(name.strip() for names in given for name in names.split(",") if name.strip()))
