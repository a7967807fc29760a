"""Pipeline directories of diffusers, and the network that holds their parts.

A directory has model_index.json, which names the pipeline's class and parts, and one folder per part. Nothing is read
from a name: classes, shapes, prediction type and scales all come from the directory's own configs. The parts that learn
or have learnt (denoiser, VAE, text encoders) become one module, so that a tensor is called `unet.conv_in.weight` or
`text_encoder_2.text_projection.weight`; tokenizers and scheduler lie in its `__dict__`. A safety checker and an image
encoder are not loaded; their files are kept as they are.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from torch import Tensor, nn
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5EncoderModel,
    T5Tokenizer,
    TokenizersBackend,
)

from worker.families import Captions, lora
from worker.families.directory import (
    DIFFUSERS,
    SUFFIX,
    TRANSFORMERS,
    UNBUILDABLE,
    open_diffusers,
    open_transformers,
    read_config,
    weight_files,
)
from worker.families.directory import save as save_parts

SD, SDXL, SD3, FLUX = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
)
CLASSES: dict[str, Any] = {
    SD: StableDiffusionPipeline,
    SDXL: StableDiffusionXLPipeline,
    SD3: StableDiffusion3Pipeline,
    FLUX: FluxPipeline,
}
PARTS: dict[str, dict[str, Any]] = {  # the denoiser first
    SD: {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel},
    SDXL: {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
    },
    SD3: {
        "transformer": SD3Transformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
    },
    FLUX: {
        "transformer": FluxTransformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": T5EncoderModel,
    },
}
OPTIONAL = {(SD3, "text_encoder_3")}  # the pipeline puts zeros in the place of its states
UNREAD = ("safety_checker", "feature_extractor", "image_encoder")
FLOWS = {FlowMatchEulerDiscreteScheduler.__name__: FlowMatchEulerDiscreteScheduler}
DIFFUSIONS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        DDIMScheduler,
        DDPMScheduler,
        DPMSolverMultistepScheduler,
        EulerAncestralDiscreteScheduler,
        EulerDiscreteScheduler,
        LMSDiscreteScheduler,
        PNDMScheduler,
        UniPCMultistepScheduler,
    )
}
TOKENIZERS: dict[str, Any] = {
    "CLIPTokenizer": CLIPTokenizer,
    "CLIPTokenizerFast": CLIPTokenizer,
    "T5Tokenizer": T5Tokenizer,
    "T5TokenizerFast": T5Tokenizer,
    "PreTrainedTokenizerFast": TokenizersBackend,
    "TokenizersBackend": TokenizersBackend,
}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
INDEX = "model_index.json"


class Pipeline(nn.Module):
    """The parts of one pipeline as submodules; in `__dict__` what has no weights."""

    kind: str
    tokenizers: dict[str, Any]
    scheduler: Any
    schedule: Any  # how diffusion adds noise in training, whatever samples; None for flow matching
    force_zeros: bool  # whether the null prompt's states are zeros (SDXL)
    captions: Captions  # this and what follows: once texts were given
    tokens: dict[str, Tensor]  # per text encoder (texts + 1, length); the null prompt last
    kept: Any  # their encodings


def load(directory: Path, device: torch.device) -> Pipeline:
    index = read_config(directory, INDEX)
    kind = index.get("_class_name")
    if kind not in CLASSES:
        raise ValueError(f"{INDEX}: _class_name must be one of {', '.join(CLASSES)}, not {kind!r}")
    if kind in (SD, SDXL):
        check_conditioning(read_config(directory, "unet/config.json"), "text_time" if kind == SDXL else None)
    network, read = Pipeline(), set[Path]()
    network.__dict__.update(kind=kind, tokenizers={}, force_zeros=bool(index.get("force_zeros_for_empty_prompt", True)))
    for name, part in PARTS[kind].items():
        if (kind, name) in OPTIONAL and index.get(name) in (None, [None, None]):
            continue
        library = part.__module__.split(".")[0]
        if index.get(name) != [library, part.__name__]:
            raise ValueError(f"{INDEX}: {name} must be [{library}, {part.__name__}]")
        opened, files = open_part(directory, name, part)
        network.add_module(name, opened)
        read.update(files)
        if name.startswith("text_encoder"):
            tokenizer = name.replace("text_encoder", "tokenizer")
            network.tokenizers[name] = open_tokenizer(directory, tokenizer, index.get(tokenizer))
    lora.merge(dict(network.named_children()), directory)
    check_leftovers(directory, {*read, directory / lora.FILE})
    scheduler = open_scheduler(directory, kind, index.get("scheduler"))
    schedule = None if type(scheduler).__name__ in FLOWS else DDPMScheduler.from_config(scheduler.config)
    network.__dict__.update(scheduler=scheduler, schedule=schedule)
    check_parts(network)
    return rest(network.to(device))


def rest(network: Pipeline) -> Pipeline:
    """In eval mode; only the denoiser takes gradients until somebody asks another part for them."""
    network.eval().requires_grad_(False)
    denoiser(network).requires_grad_(True)
    if next(network.parameters()).is_cuda:
        trained: Any = denoiser(network)
        trained.enable_gradient_checkpointing()
    return network


def held(network: nn.Module) -> Pipeline:
    """The network by its type, which methods need not know."""
    return cast(Pipeline, network)


def denoiser(network: nn.Module) -> nn.Module:
    return network.get_submodule(next(iter(PARTS[held(network).kind])))


def encoders(network: nn.Module) -> dict[str, nn.Module]:
    return {name: part for name, part in network.named_children() if name.startswith("text_encoder")}


def is_flow(network: nn.Module) -> bool:
    return type(held(network).scheduler).__name__ in FLOWS


def open_part(directory: Path, name: str, kind: Any) -> tuple[nn.Module, list[Path]]:
    """The part with its stored weights, float32, and the files that they came from."""
    folder = directory / name
    try:
        if kind.__module__.startswith("diffusers."):
            return open_diffusers(kind, folder), weight_files(folder, DIFFUSERS)
        return open_transformers(kind, folder), weight_files(folder, TRANSFORMERS)
    except ValueError as error:
        raise ValueError(f"{name}/{error}") from error


def open_tokenizer(directory: Path, name: str, declared: Any) -> Any:
    if not isinstance(declared, list) or len(declared) != 2 or declared[1] not in TOKENIZERS:
        raise ValueError(f"{INDEX}: {name} must be one of transformers' {', '.join(TOKENIZERS)}")
    try:
        return TOKENIZERS[declared[1]].from_pretrained(directory / name, local_files_only=True)
    except (*UNBUILDABLE, OSError) as error:
        raise ValueError(f"{name}: the tokenizer cannot be opened: {error}") from error


def open_scheduler(directory: Path, kind: str, declared: Any) -> Any:
    shown = "scheduler/scheduler_config.json"
    config, allowed = read_config(directory, shown), FLOWS if kind in (SD3, FLUX) else DIFFUSIONS
    name = str(declared[1]) if isinstance(declared, list) and len(declared) == 2 else ""
    if name not in allowed:
        raise ValueError(f"{INDEX}: scheduler must be one of {', '.join(allowed)}, not {name!r}")
    if config.get("prediction_type", "epsilon") not in PREDICTIONS:
        raise ValueError(f"{shown}: prediction_type must be one of {', '.join(PREDICTIONS)}")
    if config.get("stochastic_sampling"):
        raise ValueError(f"{shown}: stochastic_sampling must be false: its noise has no seed of its own")
    overrides = {"clip_sample": False, "steps_offset": 1} if kind == SD else {}  # as its pipeline insists
    try:
        return allowed[name].from_config(config, **overrides)
    except (*UNBUILDABLE, OSError) as error:
        raise ValueError(f"{shown}: {name} cannot be built from it: {error}") from error


def check_conditioning(config: Mapping[str, Any], addition: str | None) -> None:
    """Nothing besides text, and SDXL's sizes."""
    for field, wanted in (("time_cond_proj_dim", None), ("class_embed_type", None), ("addition_embed_type", addition)):
        if config.get(field) != wanted:
            raise ValueError(f"unet/config.json: {field} must be {wanted or 'null'}")


def check_parts(network: Pipeline) -> None:
    """Parts that fit each other."""
    vae: Any = network.get_submodule("vae")
    config: Any = denoiser(network).config
    latent = vae.config.latent_channels * (4 if network.kind == FLUX else 1)
    if config.in_channels != latent:
        raise ValueError(f"the denoiser takes {config.in_channels} channels, and the VAE's latents have {latent}")
    encoder: Any = network.get_submodule("text_encoder")
    if getattr(encoder.config, "use_attention_mask", False):
        raise ValueError("text_encoder/config.json: use_attention_mask must be false")


def check_leftovers(directory: Path, read: Iterable[Path]) -> None:
    """Weights in another precision or format beside those that are read would still remember what was forgotten."""
    others = set(directory.rglob(f"*{SUFFIX}")) - set(read)
    for path in sorted(others):
        name = path.relative_to(directory)
        if name.parts[0] not in UNREAD:
            raise ValueError(f"{name}: these weights are not read, and would not be changed: leave them out")


def save(network: nn.Module, directory: Path, like: Path) -> None:
    save_parts(dict(network.named_children()), directory, like)
