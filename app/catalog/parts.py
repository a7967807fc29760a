"""Which tensors of a checkpoint a method may move: parts of each family's files, by the names that stand in them.

A name is `<path of the file>/<tensor>`. What a part names is an upper bound: no method changes a tensor outside of its own, which
a contract test holds on every kind of network.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from app.catalog.families import CLASSIFIER, CLIP, DIFFUSION, TEXT_TO_IMAGE, VISION_LANGUAGE
from app.catalog.image_to_image import AUTOENCODER, INPAINTING, MASKED

PartName = Literal[
    "all", "no_label_table", "cross_attention", "without_cross_attention", "projections", "encoder", "layers"
]


@dataclass(frozen=True)
class Part:
    """Tensors whose name has `within`, but for those that have `but`; with `matrices` those of two dimensions and more."""

    about: str
    within: str = ""
    but: str | None = None
    matrices: bool = False

    def holds(self, name: str, dimensions: int) -> bool:
        if self.matrices and dimensions < 2:
            return False
        return re.search(self.within, name) is not None and not (self.but and re.search(self.but, name))


STATISTICS = re.compile(
    r"\.(running_mean|running_var|num_batches_tracked)$"
)  # batch norm's; they move in training only
_CROSS = r"(\.attn2\.|\.add_[qkv]_proj\.|\.to_add_out\.)"
_DENOISER = r"^(unet|transformer)/"
_LABEL_TABLE = r"(class_embedding|class_embedder\.embedding_table)\.weight$"
_LAYERS = Part("one layer for each label, chosen among all", matrices=True)
_ALL = Part("the whole network")

PARTS: Mapping[str, Mapping[PartName, Part]] = MappingProxyType(
    {
        CLASSIFIER: {"all": _ALL, "layers": _LAYERS},
        DIFFUSION: {
            "all": _ALL,
            "no_label_table": Part("all but the rows that only name a label", but=_LABEL_TABLE),
            "layers": _LAYERS,
        },
        CLIP: {"all": _ALL, "no_label_table": _ALL, "layers": _LAYERS},
        TEXT_TO_IMAGE: {
            "all": Part("the denoiser", _DENOISER),
            "no_label_table": Part("the denoiser", _DENOISER),
            "cross_attention": Part("cross attention of the denoiser", _DENOISER + ".*" + _CROSS),
            "without_cross_attention": Part("the denoiser but for its cross attention", _DENOISER, _CROSS),
            "projections": Part(
                "keys and values of cross attention, or what reads the text",
                _DENOISER + r".*(attn2\.to_[kv]|context_embedder)\.weight$",
            ),
            "layers": Part("one layer for each label, chosen in the text encoders", r"^text_encoder", matrices=True),
        },
        VISION_LANGUAGE: {
            "all": Part("the vision tower", r"vision_tower\."),
            "layers": Part("one layer for each label, chosen in the vision tower", r"vision_tower\.", matrices=True),
        },
        MASKED: {"all": _ALL, "encoder": Part("the encoder", r"/vit\.")},
        AUTOENCODER: {"all": _ALL, "encoder": Part("the encoder", r"/(encoder|quant_conv)\.")},
        INPAINTING: {"all": _ALL, "encoder": Part("the encoder", r"/(conv_in|down_blocks|mid_block)\.")},
    }
)
