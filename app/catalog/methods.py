"""The unlearning methods: which families they run on, and every hyper-parameter with bounds, default and source."""

from collections.abc import Mapping
from types import MappingProxyType

from app.catalog.families import CLASSIFIER, DIFFUSION
from app.catalog.types import Method, Parameter

LABELLED = (CLASSIFIER, DIFFUSION)
CLIP, TEXT_TO_IMAGE = "clip", "text_to_image"


def _integer(
    default: int, least: int, most: int, description: str, by: Mapping[str, int] = MappingProxyType({})
) -> Parameter:
    return Parameter("integer", default, description, least, most, by_family=by)


def _number(
    default: float,
    least: float,
    most: float,
    description: str,
    by: Mapping[str, float] = MappingProxyType({}),
    exclusive_minimum: bool = False,
) -> Parameter:
    return Parameter("number", default, description, least, most, exclusive_minimum, (), by)


def _choice(
    default: str, choices: tuple[str, ...], description: str, by: Mapping[str, str] = MappingProxyType({})
) -> Parameter:
    return Parameter("choice", default, description, choices=choices, by_family=by)


def _training(epochs: int, steps: int, rate: float, rates: Mapping[str, float]) -> dict[str, Parameter]:
    """How a method trains: the same names everywhere; classifiers in epochs of SGD, the families in `rates` in steps
    of Adam at their own rate."""
    return {
        "schedule": _choice(
            "epochs",
            ("epochs", "steps"),
            "epochs: whole passes, the forget set's batches first. steps: each step draws one batch of each set.",
            dict.fromkeys(rates, "steps"),
        ),
        "epochs": _integer(epochs, 1, 1000, "Passes over the sets, with schedule epochs."),
        "steps": _integer(steps, 1, 1_000_000, "Optimizer steps, with schedule steps."),
        "batch_size": _integer(
            256, 1, 4096, "Images of one set in one step.", {each: _BATCHES[each] for each in rates}
        ),
        "optimizer": _choice("sgd", ("sgd", "adam"), "SGD with momentum, or Adam.", dict.fromkeys(rates, "adam")),
        "learning_rate": _number(rate, 0, 10, "The optimizer's step size.", rates, exclusive_minimum=True),
        "momentum": _number(0.9, 0, 0.999, "Of SGD; Adam ignores it."),
        "weight_decay": _number(5e-4, 0, 1, "L2 penalty, added to the gradient.", dict.fromkeys(rates, 0.0)),
        "clip": _number(
            0.0, 0, 1000, "Largest norm of the whole gradient; 0 does not clip.", dict.fromkeys(rates, 1.0)
        ),
    }


_BATCHES = {DIFFUSION: 128, TEXT_TO_IMAGE: 8, CLIP: 64}
_MASK = {
    "mask": _choice("none", ("none", "salient"), "salient: only what SalUn's mask selects may move."),
    "mask_fraction": _number(0.5, 0, 1, "Share of all weights that may move under a mask.", exclusive_minimum=True),
}
_BATCH_NORM = {
    "batch_norm": _choice("frozen", ("frozen", "train"), "Whether batch-norm statistics follow the batches."),
}
_RELABEL = {
    "relabel": _choice("uniform", ("uniform", "next"), "Which other label a forget image is trained towards."),
}

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "salun": Method(
            "SalUn: relabel the forget set, moving salient weights only",
            "Fan et al., ICLR 2024, arXiv 2310.12508",
            LABELLED,
            {
                "mask_fraction": _MASK["mask_fraction"],
                "soft": Parameter("boolean", False, "The proximal variant: shrink the change instead of masking it."),
                "train": _choice(
                    "all",
                    ("all", "no_label_table"),
                    "no_label_table: rows that only name a label stay, so that forgetting cannot hide in one row.",
                ),
                **_RELABEL,
                "teacher": _choice("frozen", ("frozen", "moving"), "Who gives the other label's target (diffusion)."),
                **_BATCH_NORM,
                "alpha": _number(1.0, 0, 1000, "Weight of the retain loss, both being means.", {DIFFUSION: 3.07}),
                **_training(10, 1000, 0.013, {DIFFUSION: 1e-4}),
            },
        ),
        "random_label": Method(
            "Random label: train the forget set towards other labels",
            "Golatkar et al., CVPR 2020, arXiv 1911.04933; as compared with in arXiv 2310.12508",
            LABELLED,
            {
                **_MASK,
                **_RELABEL,
                **_BATCH_NORM,
                "alpha": _number(1.0, 0, 1000, "Weight of the retain loss, both being means.", {DIFFUSION: 3.07}),
                **_training(10, 1000, 0.013, {DIFFUSION: 1e-4}),
            },
        ),
        "gradient_ascent": Method(
            "Gradient ascent: walk up the forget set's loss",
            "Graves et al., AAAI 2021, arXiv 2010.10981; Thudi et al., EuroS&P 2022, arXiv 2109.13398",
            LABELLED,
            {
                **_MASK,
                **_BATCH_NORM,
                "alpha": _number(0.0, 0, 1000, "Weight of the retain loss; 0 never reads the retain set."),
                **_training(5, 100, 1e-4, {DIFFUSION: 1e-5}),
            },
        ),
        "finetune": Method(
            "Finetune: go on training on the retain set alone",
            "Warnecke et al., NDSS 2023, arXiv 2108.11577; as compared with in arXiv 2310.12508",
            LABELLED,
            {**_MASK, **_BATCH_NORM, **_training(10, 1000, 0.01, {DIFFUSION: 1e-4})},
        ),
        "retrain": Method(
            "Retrain: fresh weights, trained on the retain set alone",
            "Exact unlearning; recipe of the release of arXiv 2310.12508",
            LABELLED,
            {
                **_training(182, 20_000, 0.1, {DIFFUSION: 2e-4}),
                "decay": _choice("cosine", ("none", "cosine"), "How the learning rate falls.", {DIFFUSION: "none"}),
            },
        ),
    }
)
