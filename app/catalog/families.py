"""The kinds of networks: which classes their files may declare, what a request may name, and the default policy."""

from collections.abc import Mapping
from types import MappingProxyType

from app.catalog.types import Family, Parameter, Threshold

CLASSIFIER, DIFFUSION = "image_classifier", "class_diffusion"


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
            "classifier",
            "weights",
            False,
            False,
            False,
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
            "generator",
            "weights",
            True,
            True,
            False,
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
