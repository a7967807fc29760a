"""What the directories of each family of texts, pipelines and schedules may hold, for the guard of uploads.

Only names that diffusers and transformers themselves define stand here: whatever a directory names beyond them is
refused before anything is imported. `from_pretrained` of these classes reads configs, weights and tokenizer data only.
"""

from app.catalog.types import Files

_CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")
_T5_TOKENIZERS = ("T5Tokenizer", "T5TokenizerFast")
_ANY_TOKENIZER = ("PreTrainedTokenizerFast", "TokenizersBackend")  # a tokenizer.json without a class of its own
_CLIP_PARTS = {"text_config": ("clip_text_model",), "vision_config": ("clip_vision_model",)}
_SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)

NOISE_SCHEDULE = Files(schedulers=("DDIMScheduler", "DDPMScheduler"))

CLIP = Files(
    tokenizers=(*_CLIP_TOKENIZERS, "SiglipTokenizer", *_ANY_TOKENIZER),
    nested={
        "text_config": ("clip_text_model", "siglip_text_model"),
        "vision_config": ("clip_vision_model", "siglip_vision_model"),
    },
)

VISION_LANGUAGE = Files(
    tokenizers=("LlamaTokenizer", "LlamaTokenizerFast", "Qwen2Tokenizer", "Qwen2TokenizerFast", *_ANY_TOKENIZER),
    nested={"text_config": ("llama", "mistral", "qwen2"), "vision_config": ("clip_vision_model",)},
    chat=True,
)

TEXT_TO_IMAGE = Files(
    nested=_CLIP_PARTS,
    components={
        "unet": ("UNet2DConditionModel",),
        "transformer": ("SD3Transformer2DModel", "FluxTransformer2DModel"),
        "vae": ("AutoencoderKL",),
        "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
        "text_encoder_2": ("CLIPTextModelWithProjection", "T5EncoderModel"),
        "text_encoder_3": ("T5EncoderModel",),
        "tokenizer": _CLIP_TOKENIZERS,
        "tokenizer_2": (*_CLIP_TOKENIZERS, *_T5_TOKENIZERS),
        "tokenizer_3": _T5_TOKENIZERS,
        "scheduler": _SCHEDULERS,
        "feature_extractor": ("CLIPFeatureExtractor", "CLIPImageProcessor", "CLIPImageProcessorPil"),
        "image_encoder": ("CLIPVisionModelWithProjection",),
        "safety_checker": ("StableDiffusionSafetyChecker",),
    },
    required=(("unet", "transformer"), ("vae",), ("scheduler",), ("text_encoder", "text_encoder_2", "text_encoder_3")),
    lora=True,
)
