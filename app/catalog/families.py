"""The kinds of networks: which classes their files may declare, what a request may name, and the default policy."""

from collections.abc import Mapping
from types import MappingProxyType

from app.catalog import files, image_to_image
from app.catalog.types import Family, Parameter, Threshold

CLASSIFIER, DIFFUSION = "image_classifier", "class_diffusion"
TEXT_TO_IMAGE = "text_to_image"
CLIP, VISION_LANGUAGE = "clip", "vision_language"
GENERATORS = (DIFFUSION, TEXT_TO_IMAGE)
_BACKBONES = {
    "inception": Parameter("boolean", False, "Measure `fid_inception`, by weights that the operator gives."),
    "lpips": Parameter("boolean", False, "Measure `integrity_lpips`, by weights that the operator gives."),
}


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
                **_BACKBONES,
            },
            {
                "class_label": (
                    Threshold("unlearning_accuracy", "at_least", 95.0),
                    Threshold("forget_rejected", "at_most", 20.0),
                    Threshold("unlearning_accuracy_row_restored", "at_least", 90.0),
                    Threshold("kept_accuracy", "drop_at_most", 3.0),
                ),
            },
            files.NOISE_SCHEDULE,
        ),
        TEXT_TO_IMAGE: Family(
            "Text-to-image pipelines of diffusers",
            "diffusers",
            ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"),
            ("dataset", "class_label", "concept"),
            "generator",
            "sets",
            True,
            True,
            True,
            {
                "prompt": Parameter("text", "a photo of {}", "A label's prompt; {} is its name.", maximum=200),
                "contexts": Parameter(
                    "texts",
                    [],
                    "Texts of another domain, such as styles: the report's images of a label are drawn in each of them in turn, "
                    "by context_prompt. None: by prompt.",
                    maximum=100,
                ),
                "context_prompt": Parameter(
                    "text",
                    "a photo of {} in the style of {context}",
                    "A label's prompt in a context.",
                    maximum=300,
                ),
                "prompts": Parameter(
                    "prompts",
                    [],
                    "Prompts that need not name what is forgotten, each with a seed and a guidance scale of its own where it "
                    "says so; a detector counts what is drawn for them. They are kept in plain: they must name nobody.",
                    maximum=1000,
                ),
                "images_per_prompt": Parameter("integer", 1, "Images drawn for each of the prompts.", 1, 1000),
                "detector_labels": Parameter(
                    "texts", [], "Labels of the detector, any of which counts as detected.", maximum=200
                ),
                "detector_threshold": Parameter(
                    "number", 0.5, "Probability of detector_labels together from which on an image counts.", 0, 1, True
                ),
                "sampling_steps": Parameter("integer", 50, "Steps of the pipeline's scheduler.", 2, 1000),
                "guidance_scale": Parameter("number", 7.5, "As diffusers defines it; 1 is unguided.", 0, 50),
                "eta": Parameter("number", 0.0, "DDIM's noise; other schedulers do not read it.", 0, 1),
                "forget_samples": Parameter("integer", 100, "Images generated for the forgotten label.", 1, 100_000),
                "samples_per_label": Parameter("integer", 20, "Images generated for each other label.", 1, 100_000),
                "seed": Parameter("integer", 0, "The first image's seed; each image has its own.", 0, 2**31 - 1),
                **_BACKBONES,
            },
            {
                "class_label": (
                    Threshold("unlearning_accuracy", "at_least", 95.0),
                    Threshold("forget_rejected", "at_most", 20.0),
                    Threshold("kept_accuracy", "drop_at_most", 5.0),
                ),
            },
            files.TEXT_TO_IMAGE,
        ),
        CLIP: Family(
            "Images and texts in one space: CLIP and SigLIP of transformers",
            "transformers",
            ("CLIPModel", "SiglipModel"),
            ("dataset", "samples", "class_label", "concept"),
            "zero_shot",
            "sets",
            False,
            True,
            True,
            {"prompt": Parameter("text", "a photo of {}", "A label's prompt; {} is its name.", maximum=200)},
            {
                "class_label": (
                    Threshold("unlearning_accuracy", "at_least", 95.0),
                    Threshold("retain_accuracy", "drop_at_most", 4.0),
                    Threshold("test_accuracy", "drop_at_most", 4.0),
                ),
            },
            files.CLIP,
        ),
        VISION_LANGUAGE: Family(
            "Vision-language models of the LLaVA kind",
            "transformers",
            ("LlavaForConditionalGeneration",),
            ("dataset", "samples", "class_label", "concept"),
            "naming",
            "sets",
            False,
            True,
            True,
            {
                "prompt": Parameter(
                    "text",
                    "USER: <image>\nWho is this? ASSISTANT: {}",
                    "The question, and {} where the answer, a label's name, begins.",
                    maximum=400,
                )
            },
            {
                "class_label": (
                    Threshold("unlearning_accuracy", "at_least", 90.0),
                    Threshold("retain_accuracy", "drop_at_most", 5.0),
                    Threshold("test_accuracy", "drop_at_most", 5.0),
                ),
            },
            files.VISION_LANGUAGE,
        ),
        **image_to_image.FAMILIES,
    }
)
