"""The figures of a report, one entry per file of worker/metrics."""

from collections.abc import Mapping
from types import MappingProxyType

from app.catalog.families import CLASSIFIER, DIFFUSION, FAMILIES
from app.catalog.types import Metric

EVERY_FAMILY = tuple(FAMILIES)

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
            shows_forgetting=True,
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
            shows_forgetting=True,
        ),
        "gap_to_retrain": Metric(
            "Gap to Retrain",
            (CLASSIFIER,),
            "lower",
            "points",
            "Mean distance to a retrained network over unlearning, retain, test accuracy and membership inference.",
            shows_forgetting=True,
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
