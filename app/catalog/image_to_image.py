"""Networks that restore images, and the methods that make them forget: the entries of both catalogues.

Every method here takes the same training parameters, since they differ in what they pull forgotten images to.
"""

from collections.abc import Mapping
from typing import Any

from app.catalog.files import NOISE_SCHEDULE
from app.catalog.types import Family, Files, Method, Parameter, Threshold

MASKED, AUTOENCODER, INPAINTING = "masked_autoencoder", "vq_autoencoder", "inpainting_diffusion"
RESTORERS = (MASKED, AUTOENCODER, INPAINTING)
PATTERNS = ("random", "centre_4", "centre_8", "outpainting", "none")
_PATTERN = (
    "What is hidden, of 16x16 patches: the middle 4x4 or 8x8, all but the middle 8x8, a random share, or nothing."
)
_SHARE = "Share of the patches that pattern random hides."
_WORSE = 1.1  # a distance may grow to this many times the base's where images are kept
_POLICY = (
    Threshold("reconstruction_distance_forget", "times_before_at_least", 3.0),
    Threshold("mutual_information_to_noise", "at_most", 25.0),
    Threshold("reconstruction_distance_retain", "times_before_at_most", _WORSE),
    Threshold("reconstruction_distance_test", "times_before_at_most", _WORSE),
)


def _family(
    title: str,
    library: Any,
    classes: tuple[str, ...],
    patterns: tuple[str, ...],
    files: Files,
    more: Mapping[str, Parameter],
) -> Family:
    return Family(
        title,
        library,
        classes,
        ("dataset", "samples", "class_label"),
        "reconstruction",
        "sets",
        True,
        False,
        False,
        {
            "pattern": Parameter("choice", patterns[0], _PATTERN, choices=patterns),
            "hidden_share": Parameter("number", 0.75, _SHARE, 0, 1, True),
            "images_per_set": Parameter(
                "integer", 1000, "At most so many images of each set are restored.", 1, 100_000
            ),
            **more,
            "seed": Parameter("integer", 0, "Of random masks, noise and the choice of images.", 0, 2**31 - 1),
        },
        {"class_label": _POLICY, "samples": _POLICY},
        files,
    )


FAMILIES: Mapping[str, Family] = {
    MASKED: _family(
        "Masked autoencoders of transformers",
        "transformers",
        ("ViTMAEForPreTraining",),
        ("random", "centre_8", "centre_4", "outpainting"),
        Files(),
        {},
    ),
    AUTOENCODER: _family(
        "Autoencoders of diffusers, with a codebook or a Gaussian code",
        "diffusers",
        ("VQModel", "AutoencoderKL"),
        ("none", "centre_8", "centre_4", "outpainting", "random"),
        Files(),
        {},
    ),
    INPAINTING: _family(
        "Inpainting diffusion models of diffusers",
        "diffusers",
        ("UNet2DModel",),
        ("centre_8", "centre_4", "outpainting", "random"),
        NOISE_SCHEDULE,
        {"sampling_steps": Parameter("integer", 50, "DDIM steps of one image.", 2, 1000)},
    ),
}

_CROP = {
    "pattern": Parameter("choice", "random", _PATTERN, choices=PATTERNS, by_family={AUTOENCODER: "none"}),
    "hidden_share": Parameter("number", 0.75, _SHARE, 0, 1, True, by_family={INPAINTING: 0.5}),
}
_TRAINING = {
    "epochs": Parameter("integer", 6, "Passes over the longer set.", 1, 10_000, by_family={INPAINTING: 3}),
    "batch_size": Parameter("integer", 64, "Images of either set in one step.", 1, 4096, by_family={INPAINTING: 48}),
    "learning_rate": Parameter("number", 5e-5, "AdamW's step size.", 0, 10, True),
    "warm_up_epochs": Parameter(
        "integer", 5, "Epochs in which the rate rises from 0.", 0, 10_000, by_family={INPAINTING: 0}
    ),
    "decay": Parameter(
        "choice",
        "cosine",
        "How the rate falls after the warm-up.",
        choices=("none", "cosine"),
        by_family={INPAINTING: "none"},
    ),
    "beta2": Parameter(
        "number", 0.95, "AdamW's second decay; the first is 0.9.", 0, 0.9999, by_family={INPAINTING: 0.999}
    ),
    "weight_decay": Parameter("number", 0.05, "Decoupled, not on norms and biases.", 0, 1, by_family={INPAINTING: 0.0}),
    "clip": Parameter(
        "number", 3.0, "Largest norm of the whole gradient; 0 does not clip.", 0, 1000, by_family={INPAINTING: 0.0}
    ),
}
_ALPHA = {
    "alpha": Parameter("number", 0.2, "Weight of the forget loss.", 0, 1000, True, by_family={INPAINTING: 0.1}),
}
_SOURCE = "Baseline of Li et al., ICLR 2024, arXiv 2402.00351"


def _baseline(title: str, moves: str = "all") -> Method:
    return Method(title, _SOURCE, RESTORERS, {**_ALPHA, **_CROP, **_TRAINING}, moves=moves, copies=2)


METHODS: Mapping[str, Method] = {
    "encoder_mse": Method(
        "Encoder MSE: the encoder answers forgotten images as it answers noise",
        "Li et al., ICLR 2024, arXiv 2402.00351",
        RESTORERS,
        {
            **_ALPHA,
            "noise": Parameter(
                "choice",
                "unit",
                "unit: N(0, I). batch: the batch's mean and spread. forget_covariance: each pixel's spread in the forget set.",
                choices=("unit", "batch", "forget_covariance"),
            ),
            **_CROP,
            "l1": Parameter("number", 0.0, "Weight of the encoder's absolute weights in the loss.", 0, 1),
            **_TRAINING,
        },
        moves="encoder",
        copies=2,
    ),
    "max_loss": _baseline("Max loss: train away from the forgotten images"),
    "noisy_label": _baseline("Noisy label: restore noise where forgotten images were"),
    "retain_label": _baseline("Retain label: restore retained images where forgotten ones were"),
    "random_encoder": _baseline(
        "Random encoder: push the encoder's output on forgotten images to Gaussian noise", moves="encoder"
    ),
}
