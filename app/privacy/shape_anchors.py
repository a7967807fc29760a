"""What a network's config says about its weights, for the class names of the catalogue, without torch.

For each class: tensors with the shape that the config implies, how many blocks of a kind there must be, the number of
labels, and the image it takes. These are anchors, not every tensor: they cover each number of the config that decides a
shape, so a config of another network does not pass; the strict load in the runner has the last word.
Classifiers without a function of their own are held to their classifier's rows; networks of words, pipelines and
autoencoders stand in component_anchors.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from app.privacy.component_anchors import COMPONENTS
from app.privacy.config_values import MOST_BLOCKS, Shape, number, numbers, refused, size_of


@dataclass
class Anchors:
    """`blocks`: prefix -> how many numbered children it must have. `image`: (channels, height, width), where known.

    A tensor or prefix that begins with `*` may have more in front of it: files of several ages name it differently.
    """

    labels: int
    image: Shape | None
    shapes: dict[str, Shape] = field(default_factory=dict)
    blocks: dict[str, int] = field(default_factory=dict)
    classifier_rows: bool = False


def anchors(
    class_name: str,
    config: Mapping[str, Any],
    preprocessor: Mapping[str, Any],
    labels: int | None,
    labelled: bool = True,
) -> Anchors:
    """`labels`: what `id2label` says, for classifiers. `labelled`: whether the family's weights know labels."""
    if class_name == "UNet2DModel":
        return _unet2d(config, labelled)
    if class_name == "DiTTransformer2DModel":
        return _dit(config)
    if class_name in COMPONENTS:
        shapes, blocks, image = COMPONENTS[class_name](config)
        return Anchors(0, image, shapes, blocks)
    if labels is None:
        return Anchors(0, None)
    known = _CLASSIFIERS.get(class_name, _any_classifier)
    return known(config, preprocessor, labels)


def mismatches(expected: Anchors, found: Mapping[str, Shape]) -> list[tuple[str, str]]:
    """Every anchor that the weights do not meet, as (tensor or prefix, what is wrong)."""
    wrong = []
    for name, shape in expected.shapes.items():
        held = [found[each] for each in _named(name, found)]
        if not held:
            wrong.append((name, f"the config implies shape {list(shape)}, the weights have no such tensor"))
        elif shape not in held:
            wrong.append((name, f"the config implies shape {list(shape)}, the weights hold {list(held[0])}"))
    numbered: dict[str, set[str]] = {}
    for name in found:
        parts = name.split(".")
        for depth, part in enumerate(parts):
            if part.isdecimal():
                numbered.setdefault(".".join(parts[:depth]), set()).add(part)
    for prefix, count in expected.blocks.items():
        children = [numbered[each] for each in _named(prefix, numbered)] or [set()]
        if {str(number) for number in range(count)} not in children:
            wrong.append((prefix, f"the config implies {count} blocks, the weights hold {len(children[0])}"))
    rows = [shape[0] for name, shape in found.items() if name.startswith("classifier") and len(shape) == 2]
    if expected.classifier_rows and expected.labels not in rows:
        wrong.append(("classifier", f"the config implies {expected.labels} labels, the weights have {rows or 'none'}"))
    return wrong


def _named(name: str, found: Iterable[str]) -> list[str]:
    if name.startswith("*"):
        return [each for each in found if each == name[1:] or each.endswith(f".{name[1:]}")]
    return [name] if name in found else []


def _unet2d(config: Mapping[str, Any], labelled: bool) -> Anchors:
    """With labels, a network of images; without, one that is also shown an image and a mask beside the noisy one."""
    widths = numbers(config, "block_out_channels", [224, 448, 672, 896])
    layers, channels = number(config, "layers_per_block", 2, MOST_BLOCKS), number(config, "in_channels", 3)
    downs, ups = (config.get(key) or [] for key in ("down_block_types", "up_block_types"))
    if config.get("class_embed_type") is not None or not len(widths) == len(downs) == len(ups):
        raise refused("block_out_channels", "needs one down and one up block type each, and class_embed_type null")
    time = number(config, "time_embedding_dim", 4 * widths[0])
    classes, output = number(config, "num_class_embeds", 0), number(config, "out_channels", 3)
    if labelled and classes < 3:
        raise refused("num_class_embeds", "must be at least 3: two labels, and the null class")
    if not labelled and classes:
        raise refused("num_class_embeds", "must be null: the network is shown an image, not a label")
    if output not in (1, 3) or channels != (output if labelled else 2 * output + 1):
        shown = (
            "as many in_channels: it predicts an image's noise"
            if labelled
            else ("2 * out_channels + 1 in_channels: the noisy image, the masked one and the mask")
        )
        raise refused("in_channels", f"out_channels must be 1 or 3, with {shown}")
    result = Anchors(max(classes - 1, 0), (output, *size_of(config, "sample_size")))
    result.shapes = {
        "conv_in.weight": (widths[0], channels, 3, 3),
        "time_embedding.linear_1.weight": (
            time, widths[0] * (2 if config.get("time_embedding_type") == "fourier" else 1)),
        "conv_norm_out.weight": (widths[0],),
        "conv_out.weight": (output, widths[0], 3, 3),
        "mid_block.resnets.0.conv1.weight": (widths[-1], widths[-1], 3, 3),
    }  # fmt: skip
    if labelled:
        result.shapes["class_embedding.weight"] = (classes, time)
    result.blocks = {
        "down_blocks": len(widths),
        "up_blocks": len(widths),
        "mid_block.resnets": 2,
        "mid_block.attentions": 1 if config.get("add_attention", True) else 0,
    }
    _down_blocks(result, widths, downs, layers)
    _up_blocks(result, widths[::-1], ups, layers + 1)
    return result


def _down_blocks(result: Anchors, widths: list[int], kinds: list[str], layers: int) -> None:
    for block, (kind, width) in enumerate(zip(kinds, widths, strict=True)):
        before = widths[max(block - 1, 0)]
        if kind in ("DownBlock2D", "AttnDownBlock2D"):
            _resnets(result, f"down_blocks.{block}", width, [before, *[width] * (layers - 1)], kind)
            result.blocks[f"down_blocks.{block}.downsamplers"] = int(block < len(widths) - 1)


def _up_blocks(result: Anchors, widths: list[int], kinds: list[str], layers: int) -> None:
    for block, (kind, width) in enumerate(zip(kinds, widths, strict=True)):
        before, skip = widths[max(block - 1, 0)], widths[min(block + 1, len(widths) - 1)]
        inputs = [before + width, *[2 * width] * (layers - 2), width + skip] if layers > 1 else [before + skip]
        if kind in ("UpBlock2D", "AttnUpBlock2D"):
            _resnets(result, f"up_blocks.{block}", width, inputs, kind)
            result.blocks[f"up_blocks.{block}.upsamplers"] = int(block < len(widths) - 1)


def _resnets(result: Anchors, prefix: str, width: int, inputs: list[int], kind: str) -> None:
    result.blocks[f"{prefix}.resnets"] = len(inputs)
    result.blocks[f"{prefix}.attentions"] = len(inputs) if kind.startswith("Attn") else 0
    for layer, channels in enumerate(inputs):
        result.shapes[f"{prefix}.resnets.{layer}.conv1.weight"] = (width, channels, 3, 3)
        result.shapes[f"{prefix}.resnets.{layer}.conv2.weight"] = (width, width, 3, 3)


def _dit(config: Mapping[str, Any]) -> Anchors:
    width = number(config, "num_attention_heads", 16) * number(config, "attention_head_dim", 72)
    channels, patch = number(config, "in_channels", 4), number(config, "patch_size", 2)
    output, classes = number(config, "out_channels", channels), number(config, "num_embeds_ada_norm", 1000)
    layers = number(config, "num_layers", 28, MOST_BLOCKS)
    if classes < 2:
        raise refused("num_embeds_ada_norm", "must be at least 2")
    if channels not in (1, 3) or output not in (channels, 2 * channels):
        raise refused(
            "in_channels", "must be 1 or 3, with as many out_channels or twice as many: latents are not images"
        )
    result = Anchors(classes, (channels, *size_of(config, "sample_size")))
    result.shapes = {
        "pos_embed.proj.weight": (width, channels, patch, patch),
        "proj_out_1.weight": (2 * width, width),
        "proj_out_2.weight": (patch * patch * output, width),
    }
    for layer in range(layers):
        block = f"transformer_blocks.{layer}"
        result.shapes[f"{block}.norm1.emb.class_embedder.embedding_table.weight"] = (classes + 1, width)
        result.shapes[f"{block}.attn1.to_q.weight"] = (width, width)
        result.shapes[f"{block}.ff.net.2.weight"] = (width, 4 * width)
    result.blocks["transformer_blocks"] = layers
    return result


def _vit(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any], labels: int, prefix: str = "vit", tokens: int = 1
) -> Anchors:
    width, channels = number(config, "hidden_size", 768), number(config, "num_channels", 3)
    inner, layers = number(config, "intermediate_size", 3072), number(config, "num_hidden_layers", 12, MOST_BLOCKS)
    height, breadth = size_of(config, "image_size", 224)
    tall, broad = size_of(config, "patch_size", 16)
    if width % (number(config, "num_attention_heads", 12) or width + 1):
        raise refused("num_attention_heads", "must divide hidden_size")
    if _input_size({"image_size": [height, breadth]}, preprocessor) != (height, breadth):
        raise refused("image_size", "differs from the size that preprocessor_config.json ends with")
    result = Anchors(labels, (channels, height, breadth))
    result.shapes = {
        f"{prefix}.embeddings.patch_embeddings.projection.weight": (width, channels, tall, broad),
        f"{prefix}.embeddings.position_embeddings": (1, (height // tall) * (breadth // broad) + tokens, width),
        "classifier.weight": (labels, width),
    }
    for layer in range(layers):
        block = f"{prefix}.encoder.layer.{layer}"
        result.shapes[f"{block}.attention.attention.query.weight"] = (width, width)
        result.shapes[f"{block}.intermediate.dense.weight"] = (inner, width)
        result.shapes[f"{block}.output.dense.weight"] = (width, inner)
    result.blocks[f"{prefix}.encoder.layer"] = layers
    return result


def _deit(config: Mapping[str, Any], preprocessor: Mapping[str, Any], labels: int) -> Anchors:
    return _vit(config, preprocessor, labels, "deit", 2)  # a class token and a distillation token


def _resnet(config: Mapping[str, Any], preprocessor: Mapping[str, Any], labels: int) -> Anchors:
    stem, channels = number(config, "embedding_size", 64), number(config, "num_channels", 3)
    widths = numbers(config, "hidden_sizes", [256, 512, 1024, 2048])
    depths = numbers(config, "depths", [3, 4, 6, 3], MOST_BLOCKS)
    if len(widths) != len(depths):
        raise refused("depths", "needs one entry per entry of hidden_sizes")
    result = Anchors(labels, (channels, *_input_size(config, preprocessor)))
    result.shapes = {
        "resnet.embedder.embedder.convolution.weight": (stem, channels, 7, 7),
        "classifier.1.weight": (labels, widths[-1]),
    }
    result.blocks["resnet.encoder.stages"] = len(depths)
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        result.blocks[f"resnet.encoder.stages.{stage}.layers"] = depth
        for layer in range(depth):
            before = width if layer else (widths[stage - 1] if stage else stem)
            prefix = f"resnet.encoder.stages.{stage}.layers.{layer}.layer"
            if config.get("layer_type", "bottleneck") == "basic":
                shapes: list[Shape] = [(width, before, 3, 3), (width, width, 3, 3)]
            else:
                narrow = width // 4
                shapes = [(narrow, before, 1, 1), (narrow, narrow, 3, 3), (width, narrow, 1, 1)]
            result.shapes |= {f"{prefix}.{part}.convolution.weight": shape for part, shape in enumerate(shapes)}
    return result


def _any_classifier(config: Mapping[str, Any], preprocessor: Mapping[str, Any], labels: int) -> Anchors:
    return Anchors(
        labels, (number(config, "num_channels", 3), *_input_size(config, preprocessor)), classifier_rows=True
    )


_CLASSIFIERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any], int], Anchors]] = {
    "DeiTForImageClassification": _deit,
    "ViTForImageClassification": _vit,
    "ResNetForImageClassification": _resnet,
}


def _input_size(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> tuple[int, int]:
    """What preprocessing ends with: the crop when one is made, else the size; else the config's image_size."""
    size = preprocessor.get("crop_size" if preprocessor.get("do_center_crop") else "size")
    if size is None:
        return size_of(config, "image_size")
    if isinstance(size, dict):
        side = size.get("shortest_edge")
        size = [side, side] if side is not None else [size.get("height"), size.get("width")]
    return size_of({"size": size}, "size")
