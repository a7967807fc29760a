"""Tiny pipelines of diffusers, one of each kind that the family text_to_image opens, with tokenizers made on the spot.

Latents are 4 x 8 x 8 and images 3 x 16 x 16. Weights are random: what a pipeline draws means nothing, but every tensor, config
and folder is where a real one has it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from worker.families import Captions

NAMES = ("ada ash", "bo birch", "cleo cedar", "dov elm")
WORDS = tuple(dict.fromkeys(" ".join(["a photo of", *NAMES]).split()))
CAPTIONS = Captions(NAMES, tuple(f"a photo of {name}" for name in NAMES), tuple(range(len(NAMES))))
TOKENS = 10  # of a prompt, padded
BETAS = {"num_train_timesteps": 100, "beta_end": 0.1}


def write_pipeline(name: str, directory: Path, seed: int = 0) -> Path:
    """Save the tiny pipeline `name` with fresh weights, as `save_pretrained` would."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        PIPELINES[name]().save_pretrained(directory)
    return directory


def clip_tokenizer(words: tuple[str, ...] = WORDS, tokens: int = TOKENS) -> CLIPTokenizer:
    """Byte pairs that join every one of `words` to one token; other words fall into letters."""
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    vocabulary = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[str] = []
    for word in words:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges.append(f"{parts[-2]} {parts[-1]}")
            parts[-2:] = [parts[-2] + parts[-1]]
            vocabulary.append(parts[-1])
    numbers = {token: at for at, token in enumerate(dict.fromkeys(vocabulary))}
    pairs: Any = [tuple(merge.split()) for merge in dict.fromkeys(merges)]
    return CLIPTokenizer(vocab=numbers, merges=pairs, model_max_length=tokens)


def t5_tokenizer(words: tuple[str, ...] = WORDS, tokens: int = TOKENS) -> T5Tokenizer:
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5Tokenizer(
        vocab=[*vocabulary, *((f"▁{word}", -1.0) for word in words)], extra_ids=0, model_max_length=tokens
    )


def clip(kind: Any = CLIPTextModel, act: str = "quick_gelu") -> Any:
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=TOKENS,
        projection_dim=16,
        hidden_act=act,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return kind(config)


def t5(width: int) -> T5EncoderModel:
    config = T5Config(
        vocab_size=len(t5_tokenizer()),
        d_model=width,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5EncoderModel(config)


def vae(**scale: Any) -> AutoencoderKL:
    blocks = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    return AutoencoderKL(
        down_block_types=blocks[0],
        up_block_types=blocks[1],
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
        **scale,
    )


def unet(width: int, **more: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=width,
        **more,
    )


def stable_diffusion(scheduler: Any) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        unet=unet(16),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def xl() -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13025),
        text_encoder=clip(),
        text_encoder_2=clip(CLIPTextModelWithProjection, "gelu"),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet(
            32,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=64,
            use_linear_projection=True,
            transformer_layers_per_block=2,
        ),
        scheduler=EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
        add_watermarker=False,
    )


def sd3(third: bool = True) -> StableDiffusion3Pipeline:
    """Flow matching with three text encoders; T5's states are wider than both CLIPs' side by side, as published."""
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,  # the last one only writes to the picture
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=40,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=clip(CLIPTextModelWithProjection),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(CLIPTextModelWithProjection, "gelu"),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(40) if third else None,
        tokenizer_3=t5_tokenizer() if third else None,
    )


def flux(guidance_embeds: bool = False) -> FluxPipeline:
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(2, 4, 2),
    )
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae(scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5(16),
        tokenizer_2=t5_tokenizer(),
    )


PIPELINES: dict[str, Callable[[], Any]] = {
    "sd": lambda: stable_diffusion(PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1)),
    "sd_v": lambda: stable_diffusion(
        DDIMScheduler(**BETAS, prediction_type="v_prediction", clip_sample=False, steps_offset=1)
    ),
    "sdxl": xl,
    "sd3": sd3,
    "sd3_two_encoders": lambda: sd3(third=False),
    "flux": flux,
    "flux_guided": lambda: flux(guidance_embeds=True),
}
