"""The files of a model directory: which may lie where, and that each is what its name says.

A plain model is one folder; a pipeline has one folder per component and nothing deeper. Every file has a known purpose,
is a regular file of bounded size, and is JSON, text, a sentencepiece model or safetensors: never code, a pickle or an
archive, under whatever name.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from app.catalog import Files
from app.errors import Refused
from app.weights.header import REFUSED_SUFFIXES, refuse_pickle

WEIGHTS = {"diffusers": "diffusion_pytorch_model.safetensors", "transformers": "model.safetensors"}
LORA = "pytorch_lora_weights.safetensors"
INDEX = ".index.json"
WORDS = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json"})  # their keys are words, not settings
NETWORK = frozenset({"config.json", "generation_config.json"})
PROCESSOR = frozenset({"preprocessor_config.json", "processor_config.json"})
TOKENIZER = WORDS | {"tokenizer_config.json", "special_tokens_map.json", "merges.txt", "vocab.txt"}
SENTENCEPIECE = frozenset({"spiece.model", "tokenizer.model", "sentencepiece.bpe.model"})
CHAT = frozenset({"chat_template.jinja", "chat_template.json"})
SCHEDULER, PIPELINE = "scheduler_config.json", "model_index.json"
TEXTS = frozenset({"README.md", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.txt", ".gitattributes"})
KNOWN = NETWORK | PROCESSOR | TOKENIZER | SENTENCEPIECE | CHAT | TEXTS | {SCHEDULER, PIPELINE}
_CODE = (".py", ".pyc", ".so", ".sh", ".ipynb", ".dll", ".exe", ".js")
_BYTES = 16 << 20  # of any file that is not weights
_JSON_BYTES, _WORD_BYTES = 4 << 20, 64 << 20
_VALUES = 3_000_000  # of one JSON file: the largest vocabulary with its merges has some two million
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_WEIGHT_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,150}\.safetensors(\.index\.json)?")


@dataclass(frozen=True)
class Folder:
    """The files of one folder by name, and the content of those that are JSON. `name` is empty for the top one."""

    name: str
    files: dict[str, Path] = field(default_factory=dict)
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def shown(self, file: str) -> str:
        return f"{self.name}/{file}" if self.name else file

    @property
    def weights(self) -> set[str]:
        """Weights and indexes of weights; a LoRA has no part in the network's own."""
        return {name for name in self.files if _WEIGHT_FILE.fullmatch(name)} - {LORA}


def read_folders(directory: Path, allowed: Files) -> dict[str, Folder]:
    """The top folder, under "", and a pipeline's component folders, every file checked; Refused names the file."""
    top = Folder("")
    folders = {"": top}
    for path in sorted(directory.iterdir()):
        if path.is_dir() and not path.is_symlink() and path.name in allowed.components:
            folders[path.name] = Folder(path.name)
            for inner in sorted(path.iterdir()):
                _add(folders[path.name], inner, _purposes(path.name, allowed))
        else:
            _add(top, path, _purposes("", allowed))
    return folders


def check_path(path: PurePosixPath, where: str) -> None:
    """What can be refused of an uploaded file before its family is known: by its name and by its folders'."""
    if len(path.parts) > 3 or not all(_FOLDER.fullmatch(part) for part in path.parts[:-1]):
        raise file_refused(where, "A model is one folder, or a pipeline with one folder per component.")
    check_name(path.name, where)


def check_name(name: str, where: str) -> None:
    """Refuse a file by its name: code, weights that are not safetensors, and whatever has no known purpose."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in REFUSED_SUFFIXES:
        raise _pickle_refused(
            where, f"Weights as {suffix} are refused by name: such a file can run code when it is opened."
        )
    if suffix in _CODE:
        raise Refused(
            "code-refused",
            where,
            "A model directory must not carry code.",
            "Remove the file; only classes of diffusers and transformers are used.",
        )
    if name not in KNOWN and not _WEIGHT_FILE.fullmatch(name):
        raise file_refused(where, "The file has no known purpose.")


def file_refused(where: str, rule: str) -> Refused:
    return Refused(
        "file-not-allowed",
        where,
        rule,
        "A model is a folder as save_pretrained writes it: safetensors weights and the JSON files beside them.",
    )


def _purposes(folder: str, allowed: Files) -> frozenset[str]:
    """The names that may lie in a folder; `*.safetensors` stands for a network's weights and their index."""
    if allowed.components and not folder:
        return TEXTS | {PIPELINE} | ({LORA} if allowed.lora else set())
    if folder == "scheduler":
        return TEXTS | {SCHEDULER}
    if folder.startswith("tokenizer"):
        return TEXTS | TOKENIZER | SENTENCEPIECE | {"config.json"}
    if folder == "feature_extractor":
        return TEXTS | PROCESSOR
    plain = TEXTS | NETWORK | {"*.safetensors"}
    if folder:
        return plain
    plain |= PROCESSOR | ({SCHEDULER} if allowed.schedulers else set()) | (CHAT if allowed.chat else set())
    return plain | (TOKENIZER | SENTENCEPIECE if allowed.tokenizers else set())


def _add(folder: Folder, path: Path, purposes: frozenset[str]) -> None:
    shown = folder.shown(path.name)
    if path.is_symlink() or not path.is_file():
        raise file_refused(shown, "Only regular files are read, and folders of a pipeline's components: no links.")
    check_name(path.name, shown)
    weights = path.name != LORA and _WEIGHT_FILE.fullmatch(path.name) and "*.safetensors" in purposes
    if path.name not in purposes and not weights:
        raise file_refused(shown, "The family has no use for the file here.")
    try:
        refuse_pickle(path, shown)
    except ValueError as error:
        raise _pickle_refused(shown, f"{error}.") from None
    folder.files[path.name] = path
    if path.suffix == ".json":
        folder.configs[path.name] = _json(path, shown)
    elif path.suffix != ".safetensors":
        _check_plain(path, shown)


def _json(path: Path, shown: str) -> dict[str, Any]:
    _check_size(path, shown, _WORD_BYTES if path.name in WORDS else _JSON_BYTES)
    text = path.read_bytes()
    if sum(text.count(mark) for mark in (b",", b"[", b"{")) > _VALUES:
        raise Refused("config-too-large", shown, f"At most {_VALUES} values are read.", "Remove what is not config.")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise Refused("config-format", shown, "The file is not a JSON object.", "Save it again with save_pretrained.")
    return content


def _check_plain(path: Path, shown: str) -> None:
    """A text is UTF-8 without NUL; a sentencepiece model is a protobuf that begins with its pieces."""
    _check_size(path, shown, _BYTES)
    content = path.read_bytes()
    if content[:1] != b"\n" if path.name in SENTENCEPIECE else not _is_text(content):
        raise file_refused(shown, "Its content is not what its name says.")


def _is_text(content: bytes) -> bool:
    try:
        return "\0" not in content.decode()
    except UnicodeDecodeError:
        return False


def _check_size(path: Path, shown: str, most: int) -> None:
    if path.stat().st_size > most:
        raise Refused(
            "config-too-large", shown, f"At most {most} bytes of this file are read.", "Remove what is not config."
        )


def _pickle_refused(where: str, rule: str) -> Refused:
    return Refused("pickle-refused", where, rule, "Save the weights as safetensors.")


def entries(content: object, depth: int = 0) -> Iterator[tuple[Mapping[str, Any], str | None, int]]:
    """Every JSON object inside `content` with the key under which it lies and how deep; the outermost first."""
    pending: list[tuple[object, str | None, int]] = [(content, None, depth)]
    while pending:
        value, key, level = pending.pop()
        if isinstance(value, dict):
            yield value, key, level
            pending += [(inner, name, level + 1) for name, inner in value.items()]
        elif isinstance(value, list):
            pending += [(inner, key, level + 1) for inner in value]
