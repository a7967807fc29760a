"""The unlearning methods: which families they run on, and every hyper-parameter with bounds, default and source."""

from collections.abc import Mapping
from types import MappingProxyType

from app.catalog import image_to_image
from app.catalog.families import CLASSIFIER, CLIP, DIFFUSION, GENERATORS, TEXT_TO_IMAGE, VISION_LANGUAGE
from app.catalog.types import Method, Parameter

LABELLED = (CLASSIFIER, DIFFUSION)


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


def _training(
    epochs: int, steps: int, rate: float, rates: Mapping[str, float], by_steps: Mapping[str, int] = MappingProxyType({})
) -> dict[str, Parameter]:
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
        "steps": _integer(steps, 1, 1_000_000, "Optimizer steps, with schedule steps.", by_steps),
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


def _steps(
    steps: int,
    batch_size: int,
    rate: float,
    clip: float,
    batches: Mapping[str, int] = MappingProxyType({}),
    rates: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, Parameter]:
    """How a method of generators alone trains: steps of Adam."""
    return {
        "steps": _integer(steps, 1, 1_000_000, "Optimizer steps."),
        "batch_size": _integer(batch_size, 1, 4096, "Images of one set in one step.", batches),
        "learning_rate": _number(rate, 0, 10, "Adam's step size.", rates, exclusive_minimum=True),
        "clip": _number(clip, 0, 1000, "Largest norm of the whole gradient; 0 does not clip."),
    }


def _train(choices: tuple[str, ...], by: Mapping[str, str] = MappingProxyType({})) -> Parameter:
    about = "cross_attention: what reads the text. no_label_table: not the rows that name a label."
    return _choice("all", choices, about, by)


_ALPHAS = {DIFFUSION: 3.07, TEXT_TO_IMAGE: 0.5}
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
            (*LABELLED, TEXT_TO_IMAGE, CLIP),
            {
                "mask_fraction": _MASK["mask_fraction"],
                "soft": Parameter("boolean", False, "The proximal variant: shrink the change instead of masking it."),
                "mask_guidance": _number(
                    1.0, 0, 50, "Guidance of the prediction whose gradient ranks weights (texts).", {TEXT_TO_IMAGE: 7.5}
                ),
                "train": _train(("all", "cross_attention", "no_label_table")),
                **_RELABEL,
                "relabel_on": _choice(
                    "forget",
                    ("forget", "both"),
                    "both: also on retain images of the new label (generators, with next).",
                ),
                "teacher": _choice("frozen", ("frozen", "moving"), "Who gives the other label's target (diffusion)."),
                **_BATCH_NORM,
                "alpha": _number(1.0, 0, 1000, "Weight of the retain loss, both being means.", _ALPHAS),
                **_training(
                    10,
                    1000,
                    0.013,
                    {DIFFUSION: 1e-4, TEXT_TO_IMAGE: 1e-5, CLIP: 1e-5},
                    {TEXT_TO_IMAGE: 560, CLIP: 200},
                ),
            },
        ),
        "slug": Method(
            "SLUG: one step along one gradient, in the one layer that matters most to what is forgotten",
            "Cai et al., ICML 2025, arXiv 2407.11867",
            (*LABELLED, CLIP, TEXT_TO_IMAGE, VISION_LANGUAGE),
            {
                "patches": _choice(
                    "label",
                    ("label", "one"),
                    "label: a layer and a step for each label of the forget set. one: for all of it.",
                    {CLASSIFIER: "one"},
                ),
                "group": _choice(
                    "tensor", ("tensor", "block"), "block: query, key, value as one layer, and both of an MLP."
                ),
                "tower": _choice("any", ("any", "vision", "text"), "Where layers are looked for."),
                "alignment": _choice(
                    "absolute", ("absolute", "signed"), "Whether an opposite retain gradient counts as alignment."
                ),
                "top": _integer(
                    1, 1, 100, "Forgotten: not among so many answers (at most a tenth of the labels).", {CLIP: 5}
                ),
                "forget_at_most": _number(0.0, 0, 100, "Percent of the forget set that may still be recognised."),
                "retain_drop": _number(2.0, 0, 100, "Points of the retain set's recognition that a step may cost."),
                "front_at_most": _integer(
                    100,
                    1,
                    1000,
                    "Layers that are searched, the most important of the front.",
                    dict.fromkeys(GENERATORS, 8),
                ),
                "tries": _integer(12, 1, 100, "Steps tried on one layer, at most."),
                "tolerance": _number(
                    0.1, 0, 1, "Width of the bracket, relative, at which the search ends.", exclusive_minimum=True
                ),
                "probe_samples": _integer(
                    500, 1, 100_000, "Samples of each set that a step is judged by.", dict.fromkeys(GENERATORS, 24)
                ),
                "passes": _integer(
                    1,
                    1,
                    1000,
                    "Passes over a set for its gradient; noise is new in each.",
                    dict.fromkeys(GENERATORS, 8),
                ),
                "batch_size": _integer(64, 1, 4096, "Samples of one gradient.", {TEXT_TO_IMAGE: 8}),
            },
            remembers=True,
            moves="layers",
            copies=1,  # the retain set's gradient
        ),
        "random_label": Method(
            "Random label: train the forget set towards other labels",
            "Golatkar et al., CVPR 2020, arXiv 1911.04933; as compared with in arXiv 2310.12508",
            (*LABELLED, TEXT_TO_IMAGE),
            {
                **_MASK,
                **_RELABEL,
                **_BATCH_NORM,
                "alpha": _number(1.0, 0, 1000, "Weight of the retain loss, both being means.", _ALPHAS),
                **_training(10, 1000, 0.013, {DIFFUSION: 1e-4, TEXT_TO_IMAGE: 1e-5}, {TEXT_TO_IMAGE: 560}),
            },
        ),
        "gradient_ascent": Method(
            "Gradient ascent: walk up the forget set's loss",
            "Graves et al., AAAI 2021, arXiv 2010.10981; Thudi et al., EuroS&P 2022, arXiv 2109.13398",
            (*LABELLED, TEXT_TO_IMAGE, CLIP),
            {
                **_MASK,
                **_BATCH_NORM,
                "alpha": _number(0.0, 0, 1000, "Weight of the retain loss; 0 never reads the retain set."),
                **_training(5, 100, 1e-4, {DIFFUSION: 1e-5, TEXT_TO_IMAGE: 1e-5, CLIP: 1e-5}),
            },
        ),
        "finetune": Method(
            "Finetune: go on training on the retain set alone",
            "Warnecke et al., NDSS 2023, arXiv 2108.11577; as compared with in arXiv 2310.12508",
            (*LABELLED, TEXT_TO_IMAGE, CLIP),
            {
                **_MASK,
                **_BATCH_NORM,
                **_training(10, 1000, 0.01, {DIFFUSION: 1e-4, TEXT_TO_IMAGE: 1e-5, CLIP: 1e-5}, {CLIP: 200}),
            },
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
        "overwrite": Method(
            "Overwrite: teach the concept's prompt something else, hold every other prompt to the base",
            "Ours, after Schioppa et al., arXiv 2411.02068",
            GENERATORS,
            {
                "overwrite_with": _choice(
                    "next", ("next", "uniform", "null"), "What is drawn instead: another label, or what no label draws."
                ),
                "train": _train(("all", "cross_attention", "no_label_table"), {TEXT_TO_IMAGE: "cross_attention"}),
                "beta": _number(1.0, 0, 1000, "Weight of the help term, which holds kept prompts to the base."),
                **_steps(1000, 128, 1e-4, 1.0, {TEXT_TO_IMAGE: 8}, {TEXT_TO_IMAGE: 1e-5}),
            },
            copies=2,
        ),
        "saddle": Method(
            "Saddle: drive the concept's error up to a bound, hold every other prompt to the base",
            "Ours, after Schioppa et al., arXiv 2411.02068",
            GENERATORS,
            {
                "margin": _number(0.5, 0, 100, "Where the rise of an image's error ends.", exclusive_minimum=True),
                "train": _train(("all", "cross_attention", "no_label_table"), {TEXT_TO_IMAGE: "cross_attention"}),
                "beta": _number(1.0, 0, 1000, "Weight of the help term, which holds kept prompts to the base."),
                **_steps(1000, 128, 1e-4, 1.0, {TEXT_TO_IMAGE: 8}, {TEXT_TO_IMAGE: 1e-5}),
            },
            copies=2,
        ),
        "esd": Method(
            "ESD: train the concept's prompt towards guidance away from it",
            "Gandikota et al., ICCV 2023, arXiv 2303.07345",
            (TEXT_TO_IMAGE,),
            {
                "variant": _choice("x", ("x", "u"), "x: cross attention, the concept by its name. u: all the rest."),
                "eta": _number(1.0, 0, 100, "How far away from the concept.", exclusive_minimum=True),
                "guidance_scale": _number(3.0, 0, 50, "Of the images on whose way the network is trained."),
                "sampling_steps": _integer(50, 2, 1000, "Steps from noise to such an image."),
                "trajectories": _integer(20, 1, 10_000, "Such images, sampled once by the base."),
                **_steps(1000, 1, 1e-5, 0.0),
            },
            copies=2,
        ),
        "uce": Method(
            "UCE: solve for cross attention that reads the concept as something else",
            "Gandikota et al., WACV 2024, arXiv 2308.14761",
            (TEXT_TO_IMAGE,),
            {
                "guide": _choice(
                    "null", ("null", "next"), "What the concept is read as: no text, or the next kept label."
                ),
                "erase_scale": _number(1.0, 0, 1000, "Weight of the erased texts.", exclusive_minimum=True),
                "preserve_scale": _number(1.0, 0, 1000, "Weight of the kept labels' prompts; 0 reads no retain set."),
                "ridge": _number(0.5, 0, 1000, "Weight of staying at the base's weights.", exclusive_minimum=True),
            },
            moves="projections",
            gradients=False,
        ),
        "forget_me_not": Method(
            "Forget-Me-Not: turn attention away from the tokens that name the concept",
            "Zhang et al., CVPR Workshops 2024, arXiv 2303.17591",
            (TEXT_TO_IMAGE,),
            {
                "train": _train(("all", "cross_attention")),
                **_steps(35, 1, 2e-6, 1.0),
                "weight_decay": _number(0.01, 0, 1, "Of AdamW."),
            },
            copies=2,
        ),
        "l1_sparse": Method(
            "l1-sparse: finetune on the retain set under an l1 penalty that fades",
            "Jia et al., NeurIPS 2023, arXiv 2304.04934",
            (CLASSIFIER,),
            {
                "gamma": _number(5e-4, 0, 10, "Weight of the sum of all weights' sizes."),
                "gamma_decay": _choice("linear", ("linear", "none"), "Whether the penalty falls to 0 over the run."),
                **_BATCH_NORM,
                **_training(10, 1000, 0.01, {}),
            },
        ),
        "influence": Method(
            "Influence unlearning: one Newton step by the Fisher matrix",
            "Koh and Liang, ICML 2017, arXiv 1703.04730; Izzo et al., AISTATS 2021, arXiv 2002.10077",
            (CLASSIFIER,),
            {
                **_MASK,
                "alpha": _number(1.0, 0, 1000, "Multiple of the influence function's step.", exclusive_minimum=True),
                "damping": _number(1.0, 0, 1e6, "Added to the Fisher matrix's diagonal.", exclusive_minimum=True),
                "fisher_samples": _integer(1000, 1, 1_000_000, "Retain images that the Fisher matrix is the mean of."),
                "iterations": _integer(10, 1, 10_000, "Of conjugate gradients; each takes a gradient per such image."),
                "batch_size": _integer(
                    256, 1, 4096, "Images whose gradients are taken together outside the Fisher matrix."
                ),
            },
            copies=1,  # the other set's gradient
        ),
        "boundary_expand": Method(
            "Boundary expand: train the forget set into a shadow label, then prune it",
            "Chen et al., CVPR 2023, arXiv 2303.11570",
            (CLASSIFIER,),
            {**_BATCH_NORM, **_training(10, 1000, 1e-5, {})},
        ),
        "boundary_shrink": Method(
            "Boundary shrink: train each forget image towards its nearest wrong label",
            "Chen et al., CVPR 2023, arXiv 2303.11570",
            (CLASSIFIER,),
            {
                "bound": _number(0.1, 0, 1, "Step across the boundary, as a share of the images' range of values."),
                **_BATCH_NORM,
                **_training(10, 1000, 1e-5, {}),
            },
        ),
        "ssd": Method(
            "SSD: shrink weights that matter far more to the forget set than to all data",
            "Foster et al., AAAI 2024, arXiv 2308.07707",
            (CLASSIFIER, CLIP),
            {
                "selection": _number(10.0, 0, 1e6, "Alpha: how many times as important a weight must be to shrink."),
                "dampening": _number(1.0, 0, 1e6, "Lambda: how far it shrinks; less is more.", exclusive_minimum=True),
                "batch_by": _choice(
                    "label",
                    ("label", "order"),
                    "Which images share a batch: those of a label, or as they come.",
                    {CLIP: "order"},
                ),
                "batch_size": _integer(64, 1, 4096, "Images of one squared gradient; 1 is the Fisher matrix."),
            },
            copies=2,  # the squared gradients of both sets
        ),
        **image_to_image.METHODS,
    }
)
