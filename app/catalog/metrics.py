"""The figures of a report, one entry per file of worker/metrics."""

from collections.abc import Mapping
from types import MappingProxyType

from app.catalog.families import CLASSIFIER, CLIP, DIFFUSION, FAMILIES, TEXT_TO_IMAGE, VISION_LANGUAGE
from app.catalog.image_to_image import RESTORERS
from app.catalog.types import Metric

EVERY_FAMILY = tuple(FAMILIES)
GENERATORS = (DIFFUSION, TEXT_TO_IMAGE)
JUDGED = tuple(name for name, family in FAMILIES.items() if family.answers != "reconstruction")

# One entry per file of worker/metrics, in the order in which they are measured: gap_to_retrain reads those before it.
METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "unlearning_accuracy": Metric(
            "Unlearning accuracy",
            JUDGED,
            "target",
            "%",
            "Classifier: 100 - accuracy on the forget set. Generator: share of the images asked for a forgotten label "
            "that the judge calls another label; rejected ones do not count. Vision-language: share of the forget set's "
            "answers that do not hold the label's name.",
            shows_forgetting=True,
            interval="wilson",
            n_from="forget_samples",
        ),
        "forget_top1": Metric(
            "Forget top-1",
            (CLIP,),
            "target",
            "%",
            "Share of the forget set whose own label is the first answer.",
            interval="wilson",
        ),
        "forget_top5": Metric(
            "Forget top-5",
            (CLIP,),
            "target",
            "%",
            "Share of the forget set whose own label is among the first five answers.",
            interval="wilson",
        ),
        "retain_accuracy": Metric(
            "Retain accuracy",
            (CLASSIFIER, CLIP, VISION_LANGUAGE),
            "higher",
            "%",
            "Accuracy on the retain set; CLIP: zero-shot, among all labels' prompts, without forgotten labels.",
            interval="wilson",
        ),
        "test_accuracy": Metric(
            "Test accuracy",
            (CLASSIFIER, CLIP, VISION_LANGUAGE),
            "higher",
            "%",
            "Accuracy on the test set; when a label is forgotten, on its images of other labels.",
            interval="wilson",
        ),
        "mia_efficacy": Metric(
            "Membership inference efficacy",
            (CLASSIFIER, CLIP),
            "target",
            "%",
            "Share of the forget set that an SVC on true-label confidence takes for images never trained on.",
            interval="wilson",
        ),
        "mia_auc": Metric(
            "Membership inference AUC",
            (CLASSIFIER, CLIP),
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
            GENERATORS,
            "lower",
            "%",
            "Share of the images asked for a forgotten label that the judge calls no label at all.",
            interval="wilson",
            n_from="forget_samples",
        ),
        "unlearning_accuracy_row_restored": Metric(
            "Unlearning accuracy, label row restored",
            (DIFFUSION,),
            "higher",
            "%",
            "Unlearning accuracy after the base's label rows of the forgotten labels are put back.",
            interval="wilson",
            n_from="forget_samples",
        ),
        "kept_accuracy": Metric(
            "Kept accuracy",
            GENERATORS,
            "higher",
            "%",
            "Mean over kept labels of the share of a label's images that the judge calls by that label.",
        ),
        "per_class_accuracy": Metric(
            "Per-class accuracy, worst kept label",
            GENERATORS,
            "higher",
            "%",
            "The smallest such share among the kept labels; every label's share stands beside it.",
            n_from="samples_per_label",
        ),
        "fid": Metric(
            "Frechet distance in the judge's features",
            GENERATORS,
            "lower",
            "judge",
            "Frechet distance between generated images of kept labels and real test images, in the judge's features.",
        ),
        "integrity": Metric(
            "Integrity in the judge's features",
            GENERATORS,
            "lower",
            "judge",
            "Mean squared distance of unit features between base and new images of kept labels at equal seeds.",
            interval="bootstrap",
        ),
        "inception_score": Metric(
            "Inception score by the judge's probabilities",
            GENERATORS,
            "higher",
            "judge",
            "How sure the judge is of each image of kept labels, and how evenly it calls them: 1 is not at all.",
        ),
        "reconstruction_distance_forget": Metric(
            "Reconstruction distance, forget set",
            RESTORERS,
            "higher",
            "judge",
            "Frechet distance between restored and original images of the forget set, in the judge's features.",
            shows_forgetting=True,
        ),
        "reconstruction_distance_retain": Metric(
            "Reconstruction distance, retain set",
            RESTORERS,
            "lower",
            "judge",
            "Frechet distance between restored and original images of the retain set, in the judge's features.",
        ),
        "reconstruction_distance_test": Metric(
            "Reconstruction distance, test set",
            RESTORERS,
            "lower",
            "judge",
            "Frechet distance between restored and original unseen images, in the judge's features.",
        ),
        "mutual_information": Metric(
            "Mutual information, forget set",
            RESTORERS,
            "lower",
            "nats",
            "SMILE estimate (clip 5) between hidden pixels of the forget set and what the network makes of them; held-out.",
            judged=False,
        ),
        "mutual_information_to_noise": Metric(
            "Mutual information left above noise",
            RESTORERS,
            "lower",
            "%",
            "What is left of the base's mutual information above noise; the larger share of clips 1 and 5.",
            shows_forgetting=True,
            judged=False,
        ),
        "separability": Metric(
            "Separability of forgotten images",
            RESTORERS,
            "target",
            "%",
            "AUC of a classifier that tells forgotten from ordinary images by how far restoring moves the judge's features.",
        ),
        "changed_weights": Metric(
            "Changed weights",
            EVERY_FAMILY,
            "target",
            "%",
            "Share of all weights that differ from the base's.",
            judged=False,
        ),
        "run_time_efficiency": Metric(
            "Run-time efficiency",
            EVERY_FAMILY,
            "lower",
            "s",
            "Wall seconds of the unlearning step alone.",
            judged=False,
        ),
        "peak_memory": Metric(
            "Peak memory, host",
            EVERY_FAMILY,
            "lower",
            "MB",
            "The most that the runner held in host memory during the unlearning step, warm networks included.",
            judged=False,
        ),
        "peak_device_memory": Metric(
            "Peak memory, device",
            EVERY_FAMILY,
            "lower",
            "MB",
            "The most that tensors held on the accelerator during the unlearning step, warm networks included.",
            judged=False,
            optional=True,
        ),
        "energy": Metric(
            "Energy",
            EVERY_FAMILY,
            "lower",
            "J",
            "What the accelerator used during the unlearning step, by its own counter.",
            judged=False,
            optional=True,
        ),
        "storage_added": Metric(
            "Storage added",
            EVERY_FAMILY,
            "lower",
            "%",
            "Bytes of the new version's pack, as a share of a full copy; n is the bytes of a full copy.",
            judged=False,
        ),
    }
)
