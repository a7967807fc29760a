"""What the configs of text encoders, vision towers, autoencoders and denoisers say about their weights.

Each function gives tensors with the shape that the config implies, prefixes with how many numbered blocks lie below, and
the image (channels, height, width) that the network takes, where its config says so. Names that begin with `*` may have
more in front. Defaults are those of the library's own config classes. See shape_anchors for how they are compared.
"""

from collections.abc import Callable, Mapping
from typing import Any

from app.privacy.config_values import MOST_BLOCKS, Shape, number, numbers, size_of

Config = Mapping[str, Any]
Implied = tuple[dict[str, Shape], dict[str, int], Shape | None]


def _part(config: Config, key: str) -> dict[str, Any]:
    """A config inside the config; old files repeat it under another name, which then counts."""
    for name in (f"{key}_dict", key):
        if isinstance(config.get(name), dict):
            return dict(config[name])
    return {}


def _patches(vision: Config, width: int, patch: int, image: int) -> tuple[Shape, Shape]:
    """The shape of the patch embedding, and the image."""
    channels, (tall, broad) = number(vision, "num_channels", 3), size_of(vision, "patch_size", patch)
    return (number(vision, "hidden_size", width), channels, tall, broad), (
        channels,
        *size_of(vision, "image_size", image),
    )


def _clip(config: Config) -> Implied:
    text, vision = _part(config, "text_config"), _part(config, "vision_config")
    projection, words = number(config, "projection_dim", 512), number(text, "hidden_size", 512)
    patches, image = _patches(vision, 768, 32, 224)
    shapes: dict[str, Shape] = {
        "text_model.embeddings.token_embedding.weight": (number(text, "vocab_size", 49408), words),
        "text_projection.weight": (projection, words),
        "vision_model.embeddings.patch_embedding.weight": patches,
        "visual_projection.weight": (projection, patches[0]),
    }
    blocks = {
        "text_model.encoder.layers": number(text, "num_hidden_layers", 12, MOST_BLOCKS),
        "vision_model.encoder.layers": number(vision, "num_hidden_layers", 12, MOST_BLOCKS),
    }
    return shapes, blocks, image


def _siglip(config: Config) -> Implied:
    text, vision = _part(config, "text_config"), _part(config, "vision_config")
    patches, image = _patches(vision, 768, 16, 224)
    words = (number(text, "vocab_size", 32000), number(text, "hidden_size", 768))
    shapes: dict[str, Shape] = {
        "text_model.embeddings.token_embedding.weight": words,
        "vision_model.embeddings.patch_embedding.weight": patches,
    }
    blocks = {
        "text_model.encoder.layers": number(text, "num_hidden_layers", 12, MOST_BLOCKS),
        "vision_model.encoder.layers": number(vision, "num_hidden_layers", 12, MOST_BLOCKS),
    }
    return shapes, blocks, image


def _clip_text(config: Config) -> Implied:
    width = number(config, "hidden_size", 512)
    shapes: dict[str, Shape] = {"*embeddings.token_embedding.weight": (number(config, "vocab_size", 49408), width)}
    return shapes, {"*encoder.layers": number(config, "num_hidden_layers", 12, MOST_BLOCKS)}, None


def _clip_text_projected(config: Config) -> Implied:
    shapes, blocks, _ = _clip_text(config)
    shapes["text_projection.weight"] = (number(config, "projection_dim", 512), number(config, "hidden_size", 512))
    return shapes, blocks, None


def _clip_vision(config: Config) -> Implied:
    patches, image = _patches(config, 768, 32, 224)
    blocks = {"*encoder.layers": number(config, "num_hidden_layers", 12, MOST_BLOCKS)}
    return {"*embeddings.patch_embedding.weight": patches}, blocks, image


def _safety_checker(config: Config) -> Implied:
    shapes, blocks, _ = _clip_vision(_part(config, "vision_config"))
    return shapes, blocks, None


def _t5(config: Config) -> Implied:
    inner = number(config, "num_heads", 8) * number(config, "d_kv", 64)
    width, layers = number(config, "d_model", 512), number(config, "num_layers", 6, MOST_BLOCKS)
    query = {"encoder.block.0.layer.0.SelfAttention.q.weight": (inner, width)}
    return {**query} if layers else {}, {"encoder.block": layers}, None


def _llava(config: Config) -> Implied:
    text, vision = _part(config, "text_config"), _part(config, "vision_config")
    patches, image = _patches(vision, 1024, 14, 336)
    layers = config.get("vision_feature_layer", -2)
    read = patches[0] * (len(layers) if isinstance(layers, list) else 1)
    words = number(text, "hidden_size", 4096)
    shapes: dict[str, Shape] = {
        "*embeddings.patch_embedding.weight": patches,
        "*multi_modal_projector.linear_1.weight": (words, read),
    }
    if "vocab_size" in text:  # its default differs by the kind of language model
        shapes["*embed_tokens.weight"] = (number(text, "vocab_size", 0), words)
    return shapes, {}, image


def _vit_mae(config: Config) -> Implied:
    patches, image = _patches(config, 768, 16, 224)
    decoder = number(config, "decoder_hidden_size", 512)
    shapes: dict[str, Shape] = {
        "vit.embeddings.patch_embeddings.projection.weight": patches,
        "decoder.decoder_embed.weight": (decoder, patches[0]),
        "decoder.decoder_pred.weight": (patches[1] * patches[2] * patches[3], decoder),
    }
    return shapes, {"vit.encoder.layer": number(config, "num_hidden_layers", 12, MOST_BLOCKS)}, image


def _autoencoder(config: Config) -> Implied:
    widths, latent = numbers(config, "block_out_channels", [64]), number(config, "latent_channels", 4)
    channels, output = number(config, "in_channels", 3), number(config, "out_channels", 3)
    shapes: dict[str, Shape] = {
        "encoder.conv_in.weight": (widths[0], channels, 3, 3),
        "encoder.conv_out.weight": (2 * latent, widths[-1], 3, 3),
        "decoder.conv_in.weight": (widths[-1], latent, 3, 3),
        "decoder.conv_out.weight": (output, widths[0], 3, 3),
    }
    blocks = {"encoder.down_blocks": len(widths), "decoder.up_blocks": len(widths)}
    return shapes, blocks, (channels, *size_of(config, "sample_size", 32))


def _vq(config: Config) -> Implied:
    shapes, blocks, image = _autoencoder({"block_out_channels": [64], "latent_channels": 3, **config})
    latent = number(config, "latent_channels", 3)
    shapes["encoder.conv_out.weight"] = (latent, *shapes["encoder.conv_out.weight"][1:])
    codes = number(config, "num_vq_embeddings", 256), number(config, "vq_embed_dim", latent)
    shapes["quantize.embedding.weight"] = codes
    return shapes, blocks, image


def _conditional_unet(config: Config) -> Implied:
    widths, kernel = numbers(config, "block_out_channels", [320, 640, 1280, 1280]), number(config, "conv_in_kernel", 3)
    shapes: dict[str, Shape] = {
        "conv_in.weight": (widths[0], number(config, "in_channels", 4), kernel, kernel),
        "conv_out.weight": (number(config, "out_channels", 4), widths[0], *[number(config, "conv_out_kernel", 3)] * 2),
    }
    context, kinds = config.get("cross_attention_dim", 1280), config.get("down_block_types") or ["CrossAttnDownBlock2D"]
    for block, (kind, width) in enumerate(zip(kinds, widths, strict=False)):
        words = context[block] if isinstance(context, list) and len(context) == len(widths) else context
        if kind == "CrossAttnDownBlock2D" and type(words) is int:
            shapes[f"down_blocks.{block}.attentions.0.transformer_blocks.0.attn2.to_k.weight"] = (width, words)
    return shapes, {"down_blocks": len(widths), "up_blocks": len(widths)}, None


def _sd3(config: Config) -> Implied:
    width = number(config, "num_attention_heads", 18) * number(config, "attention_head_dim", 64)
    channels, patch = number(config, "in_channels", 16), number(config, "patch_size", 2)
    context = number(config, "caption_projection_dim", 1152), number(config, "joint_attention_dim", 4096)
    shapes: dict[str, Shape] = {
        "pos_embed.proj.weight": (width, channels, patch, patch),
        "context_embedder.weight": context,
        "proj_out.weight": (patch * patch * number(config, "out_channels", 16), width),
    }
    return shapes, {"transformer_blocks": number(config, "num_layers", 18, MOST_BLOCKS)}, None


def _flux(config: Config) -> Implied:
    width = number(config, "num_attention_heads", 24) * number(config, "attention_head_dim", 128)
    channels, patch = number(config, "in_channels", 64), number(config, "patch_size", 1)
    shapes: dict[str, Shape] = {
        "x_embedder.weight": (width, channels),
        "context_embedder.weight": (width, number(config, "joint_attention_dim", 4096)),
        "proj_out.weight": (patch * patch * number(config, "out_channels", channels), width),
    }
    blocks = {
        "transformer_blocks": number(config, "num_layers", 19, MOST_BLOCKS),
        "single_transformer_blocks": number(config, "num_single_layers", 38, MOST_BLOCKS),
    }
    return shapes, blocks, None


COMPONENTS: dict[str, Callable[[Config], Implied]] = {
    "AutoencoderKL": _autoencoder,
    "CLIPModel": _clip,
    "CLIPTextModel": _clip_text,
    "CLIPTextModelWithProjection": _clip_text_projected,
    "CLIPVisionModelWithProjection": _clip_vision,
    "FluxTransformer2DModel": _flux,
    "LlavaForConditionalGeneration": _llava,
    "SD3Transformer2DModel": _sd3,
    "SiglipModel": _siglip,
    "StableDiffusionSafetyChecker": _safety_checker,
    "T5EncoderModel": _t5,
    "UNet2DConditionModel": _conditional_unet,
    "VQModel": _vq,
    "ViTMAEForPreTraining": _vit_mae,
}
