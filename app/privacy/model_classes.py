"""The classes and settings that a model directory names: each must be on its family's list, none may bring in code.

diffusers and transformers import what a config names and some settings make them fetch code or files from elsewhere, so
a name is believed only where it stands as expected; the same name at another place is refused, too.
"""

import re
from collections.abc import Mapping
from typing import Any

from app.catalog import Family, Files
from app.errors import Refused
from app.privacy.model_files import CHAT, PIPELINE, SCHEDULER, WORDS, Folder, entries, file_refused
from app.privacy.model_patterns import check_patterns

FORBIDDEN_KEYS = frozenset(
    {"auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code", "quantization_config", "use_kernels"}
    | {"transformers_weights", "custom_object_dict", "peft_config"}
)
PREDICTIONS = ("epsilon", "v_prediction", "sample")
LIBRARY_OF = {"safety_checker": "stable_diffusion"}  # as model_index.json calls the place of a component's class
DIFFUSERS_PARTS = ("unet", "transformer", "vae", "scheduler")
MODEL_TYPES = {
    "CLIPModel": ("clip",),
    "CLIPTextModel": ("clip_text_model", "clip"),
    "CLIPTextModelWithProjection": ("clip_text_model", "clip"),
    "CLIPVisionModelWithProjection": ("clip_vision_model", "clip"),
    "LlavaForConditionalGeneration": ("llava",),
    "SiglipModel": ("siglip",),
    "StableDiffusionSafetyChecker": ("clip",),
    "T5EncoderModel": ("t5",),
    "ViTMAEForPreTraining": ("vit_mae",),
}
_ATTENTION = (None, "eager", "sdpa", "flash_attention_2")  # any other name may be a kernel to download
_TOKENIZER_FILES = ("vocab_file", "merges_file", "tokenizer_file", "spm_file", "sp_model_file")
_PROCESSOR = re.compile(r"[A-Za-z0-9]+(ImageProcessor(Fast|Pil)?|FeatureExtractor)")
_WHOLE_PROCESSOR = re.compile(r"[A-Za-z0-9]+Processor")


def check_settings(folder: Folder, allowed: Files) -> None:
    """Refuse whatever brings in code, files or kernels, at any depth of any JSON file of the folder."""
    for file, content in folder.configs.items():
        if file == "tokenizer.json":
            check_patterns(content, folder.shown(file))
        if file in WORDS:
            continue
        for settings, _, _ in entries(content):
            for key in sorted(FORBIDDEN_KEYS & settings.keys()):
                raise _code_refused(
                    f"{folder.shown(file)}: {key}", f"`{key}` is refused: it brings in code from elsewhere."
                )
            for key in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
                if settings.get(key) not in _ATTENTION:
                    raise _code_refused(f"{folder.shown(file)}: {key}", "Only attention of the library itself is used.")
            if not allowed.chat and "chat_template" in settings:
                raise _code_refused(
                    f"{folder.shown(file)}: chat_template", "The family has no use for a chat template."
                )
    for name in _TOKENIZER_FILES:
        where = f"{folder.shown('tokenizer_config.json')}: {name}"
        if folder.configs.get("tokenizer_config.json", {}).get(name) not in (None, *folder.files):
            raise Refused("config-value", where, "It must name a file of the same folder.", "Remove the key.")


def check_components(
    index: Mapping[str, Any], folders: Mapping[str, Folder], family: Family, name: str
) -> dict[str, str]:
    """The class of each component that a pipeline's index names; folders and index must agree.

    A pipeline imports what its index names, so the index is held to the family's list, entry by entry.
    """
    if index.get("_class_name") not in family.classes:
        raise class_refused(f"{PIPELINE}: _class_name", index.get("_class_name"), family.classes, name)
    found: dict[str, str] = {}
    for key, value in index.items():
        if not isinstance(value, list | dict):
            if isinstance(value, str) and not key.startswith("_"):
                raise Refused("config-value", f"{PIPELINE}: {key}", "No text is expected here.", "Remove the key.")
        elif value != [None, None]:
            library = LIBRARY_OF.get(key, "diffusers" if key in DIFFUSERS_PARTS else "transformers")
            classes = family.files.components.get(key, ())
            if not isinstance(value, list) or len(value) != 2 or value[0] != library or value[1] not in classes:
                shown = ".".join(map(str, value)) if isinstance(value, list) else "an object"
                raise class_refused(f"{PIPELINE}: {key}", shown, classes, name)
            if key not in folders:
                raise file_refused(key, f"{PIPELINE} names this folder, and it is missing.")
            found[key] = value[1]
    for folder in folders.keys() - {""} - found.keys():
        raise file_refused(folder, f"{PIPELINE} does not name this folder.")
    for group in family.files.required:
        if not found.keys() & set(group):
            raise file_refused(group[0], f"A pipeline of this family needs {' or '.join(group)}.")
    return found


def network_class(folder: Folder, library: str, classes: tuple[str, ...], allowed: Files, family: str) -> str:
    """The one class that a folder's config.json declares, which must be one of `classes`."""
    config, where = folder.configs["config.json"], folder.shown("config.json")
    if library == "diffusers":
        declared, key = config.get("_class_name"), "_class_name"
    else:
        listed, key = config.get("architectures"), "architectures"
        declared = listed[0] if isinstance(listed, list) and len(listed) == 1 else None
    if not isinstance(declared, str) or declared not in classes:
        raise class_refused(f"{where}: {key}", declared, classes, family)
    if library == "transformers":
        kind = str(config.get("model_type"))
        squeezed = re.sub(r"[_-]", "", kind) == declared.removesuffix("ForImageClassification").lower()
        if kind not in MODEL_TYPES[declared] if declared in MODEL_TYPES else not squeezed:
            raise class_refused(f"{where}: model_type", f"{kind} for {declared}", MODEL_TYPES.get(declared, ()), family)
    _check_nested(config, where, allowed, family)
    return declared


def check_companions(folder: Folder, schedulers: tuple[str, ...], tokenizers: tuple[str, ...], family: str) -> None:
    """The scheduler, tokenizer and image processor whose files lie in the folder, and the classes that they name."""
    scheduler = folder.configs.get(SCHEDULER)
    if scheduler is not None:
        where = folder.shown(SCHEDULER)
        if scheduler.get("_class_name") not in schedulers:
            raise class_refused(f"{where}: _class_name", scheduler.get("_class_name"), schedulers, family)
        if scheduler.get("prediction_type", "epsilon") not in (*PREDICTIONS, "flow_prediction"):
            raise Refused(
                "config-value",
                f"{where}: prediction_type",
                "It is not on the list.",
                f"Use {' or '.join(PREDICTIONS)}.",
            )
    for file, content in folder.configs.items():
        if file in WORDS or file == SCHEDULER:
            continue
        for settings, _, level in entries(content):
            for key in ("tokenizer_class", "slow_tokenizer_class"):
                if settings.get(key) is not None and settings[key] not in tokenizers:
                    raise class_refused(f"{folder.shown(file)}: {key}", settings[key], tokenizers, family)
            _check_processors(settings, folder.shown(file))
            if level and "_class_name" in settings:
                raise class_refused(f"{folder.shown(file)}: _class_name", settings["_class_name"], (), family)
    if CHAT & folder.files.keys() and not tokenizers:
        raise file_refused(folder.shown(min(CHAT & folder.files.keys())), "A chat template needs a tokenizer.")


def class_refused(where: str, declared: object, classes: tuple[str, ...], family: str) -> Refused:
    shown = str(declared)[:120]
    return Refused(
        "class-not-allowed",
        where,
        f"{shown!r} is not a class that the family {family} has here.",
        f"Allowed are {', '.join(classes)}." if classes else "Remove it.",
    )


def _check_nested(config: Mapping[str, Any], where: str, allowed: Files, family: str) -> None:
    """A config inside a config makes the library build what its model_type names."""
    for settings, key, level in entries(config):
        if not level or not {"model_type", "architectures"} & settings.keys():
            continue
        types = allowed.nested.get((key or "").removesuffix("_dict"), ()) if level == 1 else ()
        kind = settings.get("model_type")
        if "model_type" in settings and kind not in types:
            raise class_refused(f"{where}: {key}.model_type", kind, types, family)
        for declared in settings.get("architectures") or ():
            if not str(declared).lower().startswith(re.sub(r"[_-]", "", str(kind))):
                raise class_refused(f"{where}: {key}.architectures", declared, types, family)


def _check_processors(settings: Mapping[str, Any], where: str) -> None:
    for key in ("image_processor_type", "feature_extractor_type", "video_processor_type", "processor_class"):
        kind, form = settings.get(key), _WHOLE_PROCESSOR if key == "processor_class" else _PROCESSOR
        if kind is not None and not (isinstance(kind, str) and (form.fullmatch(kind) or _PROCESSOR.fullmatch(kind))):
            raise Refused(
                "class-not-allowed",
                f"{where}: {key}",
                f"{str(kind)[:80]!r} is not an image processor.",
                "Use an image processor of transformers.",
            )


def _code_refused(where: str, rule: str) -> Refused:
    return Refused("code-refused", where, rule, "Remove the key; only classes of diffusers and transformers are used.")
