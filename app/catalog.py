"""What may be requested: methods, families and metrics, with bounds, defaults and sources.

The one name of a thing is its key here: it is also the module name under `worker/`, the value in the
database, the word in the API and the id of its tests. Nothing here imports torch, so the server can refuse
a wrong recipe before any GPU is touched; a test ties every bound and default to the function it describes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Kind = Literal["integer", "number", "choice", "boolean"]


@dataclass(frozen=True)
class Parameter:
    """One hyper-parameter. `default` is the value in the method's signature; a family may override it."""

    kind: Kind
    default: Any
    description: str
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: bool = False
    choices: tuple[str, ...] = ()
    by_family: Mapping[str, Any] = field(default_factory=dict)

    def default_for(self, family: str) -> Any:
        return self.by_family.get(family, self.default)


@dataclass(frozen=True)
class Method:
    title: str
    source: str
    families: tuple[str, ...]
    parameters: Mapping[str, Parameter]


@dataclass(frozen=True)
class Family:
    """One kind of network: `classes` are the only class names its files may declare."""

    title: str
    library: Literal["transformers", "diffusers"]
    classes: tuple[str, ...]
    forget_kinds: tuple[str, ...]  # what a request may name: dataset, samples, class_label
    evaluation: Mapping[str, Parameter]  # how outputs are produced for the report
    default_policy: Mapping[str, tuple["Threshold", ...]]  # by kind of forgetting: class_label or samples


@dataclass(frozen=True)
class Threshold:
    """A rule on one figure of the report.

    `at_least`, `at_most`: on the value after. `drop_at_most`: points that the value may fall below the
    base's. `share_of_before`: the value's distance to its ideal (50 for mia_auc, 0 for a gap) is at most this
    share of what it was before.
    """

    metric: str
    rule: Literal["at_least", "at_most", "drop_at_most", "share_of_before"]
    value: float


@dataclass(frozen=True)
class Metric:
    title: str
    families: tuple[str, ...]
    direction: Literal["higher", "lower", "target"]
    unit: str
    definition: str


CLASSIFIER, DIFFUSION = "image_classifier", "class_diffusion"
EVERY_FAMILY = (CLASSIFIER, DIFFUSION)


def _integer(default: int, least: int, most: int, description: str, diffusion: int | None = None) -> Parameter:
    return Parameter("integer", default, description, least, most, by_family=_for_diffusion(diffusion))


def _number(
    default: float,
    least: float,
    most: float,
    description: str,
    diffusion: float | None = None,
    exclusive_minimum: bool = False,
) -> Parameter:
    return Parameter("number", default, description, least, most, exclusive_minimum, (), _for_diffusion(diffusion))


def _choice(default: str, choices: tuple[str, ...], description: str, diffusion: str | None = None) -> Parameter:
    return Parameter("choice", default, description, choices=choices, by_family=_for_diffusion(diffusion))


def _for_diffusion(value: Any) -> Mapping[str, Any]:
    return MappingProxyType({} if value is None else {DIFFUSION: value})


def _training(epochs: int, steps: int, rate: float, diffusion_rate: float) -> dict[str, Parameter]:
    """How a method trains: the same names everywhere; classifiers in epochs of SGD, diffusion in steps of Adam."""
    return {
        "schedule": _choice(
            "epochs",
            ("epochs", "steps"),
            "epochs: whole passes, the forget set's batches first. steps: each step draws one batch of each set.",
            diffusion="steps",
        ),
        "epochs": _integer(epochs, 1, 1000, "Passes over the sets, with schedule epochs."),
        "steps": _integer(steps, 1, 1_000_000, "Optimizer steps, with schedule steps."),
        "batch_size": _integer(256, 1, 4096, "Images of one set in one step.", diffusion=128),
        "optimizer": _choice("sgd", ("sgd", "adam"), "SGD with momentum, or Adam.", diffusion="adam"),
        "learning_rate": _number(rate, 0, 10, "The optimizer's step size.", diffusion_rate, exclusive_minimum=True),
        "momentum": _number(0.9, 0, 0.999, "Of SGD; Adam ignores it."),
        "weight_decay": _number(5e-4, 0, 1, "L2 penalty, added to the gradient.", diffusion=0.0),
        "clip": _number(0.0, 0, 1000, "Largest norm of the whole gradient; 0 does not clip.", diffusion=1.0),
    }


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
            EVERY_FAMILY,
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
                "alpha": _number(1.0, 0, 1000, "Weight of the retain loss, both being means.", diffusion=3.07),
                **_training(10, 1000, 0.013, 1e-4),
            },
        ),
        "random_label": Method(
            "Random label: train the forget set towards other labels",
            "Golatkar et al., CVPR 2020, arXiv 1911.04933; as compared with in arXiv 2310.12508",
            EVERY_FAMILY,
            {
                **_MASK,
                **_RELABEL,
                **_BATCH_NORM,
                "alpha": _number(1.0, 0, 1000, "Weight of the retain loss, both being means.", diffusion=3.07),
                **_training(10, 1000, 0.013, 1e-4),
            },
        ),
        "gradient_ascent": Method(
            "Gradient ascent: walk up the forget set's loss",
            "Graves et al., AAAI 2021, arXiv 2010.10981; Thudi et al., EuroS&P 2022, arXiv 2109.13398",
            EVERY_FAMILY,
            {
                **_MASK,
                **_BATCH_NORM,
                "alpha": _number(0.0, 0, 1000, "Weight of the retain loss; 0 never reads the retain set."),
                **_training(5, 100, 1e-4, 1e-5),
            },
        ),
        "finetune": Method(
            "Finetune: go on training on the retain set alone",
            "Warnecke et al., NDSS 2023, arXiv 2108.11577; as compared with in arXiv 2310.12508",
            EVERY_FAMILY,
            {**_MASK, **_BATCH_NORM, **_training(10, 1000, 0.01, 1e-4)},
        ),
        "retrain": Method(
            "Retrain: fresh weights, trained on the retain set alone",
            "Exact unlearning; recipe of the release of arXiv 2310.12508",
            EVERY_FAMILY,
            {
                **_training(182, 20_000, 0.1, 2e-4),
                "decay": _choice("cosine", ("none", "cosine"), "How the learning rate falls.", diffusion="none"),
            },
        ),
    }
)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        CLASSIFIER: Family(
            "Image classifiers of transformers",
            "transformers",
            (
                "ConvNextForImageClassification",
                "DeiTForImageClassification",
                "RegNetForImageClassification",
                "ResNetForImageClassification",
                "SwinForImageClassification",
                "ViTForImageClassification",
            ),
            ("dataset", "samples", "class_label"),
            {},
            {
                "class_label": (
                    Threshold("unlearning_accuracy", "at_least", 95.0),
                    Threshold("retain_accuracy", "drop_at_most", 2.0),
                ),
                "samples": (
                    Threshold("gap_to_retrain", "share_of_before", 0.5),
                    Threshold("mia_auc", "share_of_before", 0.5),
                    Threshold("retain_accuracy", "drop_at_most", 2.0),
                    Threshold("test_accuracy", "drop_at_most", 2.0),
                ),
            },
        ),
        DIFFUSION: Family(
            "Class-conditional diffusion models of diffusers",
            "diffusers",
            ("UNet2DModel", "DiTTransformer2DModel"),
            ("dataset", "class_label"),
            {
                "sampling_steps": Parameter("integer", 20, "DDIM steps of one image.", 2, 1000),
                "guidance_scale": Parameter("number", 2.0, "As diffusers defines it; 1 is unguided.", 0, 50),
                "eta": Parameter("number", 0.0, "DDIM's noise: 0 none, 1 as DDPM.", 0, 1),
                "forget_samples": Parameter("integer", 500, "Images generated for the forgotten label.", 1, 100_000),
                "samples_per_label": Parameter("integer", 100, "Images generated for each other label.", 1, 100_000),
                "seed": Parameter("integer", 0, "The first image's seed; each image has its own.", 0, 2**31 - 1),
            },
            {
                "class_label": (
                    Threshold("unlearning_accuracy", "at_least", 95.0),
                    Threshold("forget_rejected", "at_most", 20.0),
                    Threshold("unlearning_accuracy_row_restored", "at_least", 90.0),
                    Threshold("kept_accuracy", "drop_at_most", 3.0),
                ),
            },
        ),
    }
)

# One entry per file of worker/metrics, in the order in which they are measured: gap_to_retrain reads those before it.
METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "unlearning_accuracy": Metric(
            "Unlearning accuracy",
            EVERY_FAMILY,
            "target",
            "%",
            "Classifier: 100 - accuracy on the forget set. Generator: share of the images asked for a forgotten label "
            "that the judge calls another label; rejected ones do not count.",
        ),
        "retain_accuracy": Metric("Retain accuracy", (CLASSIFIER,), "higher", "%", "Accuracy on the retain set."),
        "test_accuracy": Metric(
            "Test accuracy",
            (CLASSIFIER,),
            "higher",
            "%",
            "Accuracy on the test set; when a label is forgotten, on its images of other labels.",
        ),
        "mia_efficacy": Metric(
            "Membership inference efficacy",
            (CLASSIFIER,),
            "target",
            "%",
            "Share of the forget set that an SVC on true-label confidence takes for images never trained on.",
        ),
        "mia_auc": Metric(
            "Membership inference AUC",
            (CLASSIFIER,),
            "target",
            "%",
            "How well confidence tells the forget set from unseen images: 50 is not at all, both sides of it leak.",
        ),
        "gap_to_retrain": Metric(
            "Gap to Retrain",
            (CLASSIFIER,),
            "lower",
            "points",
            "Mean distance to a retrained network over unlearning, retain, test accuracy and membership inference.",
        ),
        "forget_rejected": Metric(
            "Forget rejected",
            (DIFFUSION,),
            "lower",
            "%",
            "Share of the images asked for a forgotten label that the judge calls no label at all.",
        ),
        "unlearning_accuracy_row_restored": Metric(
            "Unlearning accuracy, label row restored",
            (DIFFUSION,),
            "higher",
            "%",
            "Unlearning accuracy after the base's label rows of the forgotten labels are put back.",
        ),
        "kept_accuracy": Metric(
            "Kept accuracy",
            (DIFFUSION,),
            "higher",
            "%",
            "Mean over kept labels of the share of a label's images that the judge calls by that label.",
        ),
        "per_class_accuracy": Metric(
            "Per-class accuracy, worst kept label",
            (DIFFUSION,),
            "higher",
            "%",
            "The smallest such share among the kept labels; every label's share stands beside it.",
        ),
        "fid": Metric(
            "Frechet distance in the judge's features",
            (DIFFUSION,),
            "lower",
            "judge",
            "Frechet distance between generated images of kept labels and real test images, in the judge's features.",
        ),
        "integrity": Metric(
            "Integrity in the judge's features",
            (DIFFUSION,),
            "lower",
            "judge",
            "Mean squared distance of unit features between base and new images of kept labels at equal seeds.",
        ),
        "changed_weights": Metric(
            "Changed weights", EVERY_FAMILY, "target", "%", "Share of all weights that differ from the base's."
        ),
        "run_time_efficiency": Metric(
            "Run-time efficiency", EVERY_FAMILY, "lower", "s", "Wall seconds of the unlearning step alone."
        ),
    }
)
