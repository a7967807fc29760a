"""The guard on networks that read words: tokenizer files, chat templates, configs inside the config, tied weights."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipConfig,
    SiglipModel,
)

from app.catalog import FAMILIES
from app.catalog.files import CLIP, VISION_LANGUAGE
from app.errors import Refused
from app.privacy.checkpoint_guard import DirectoryFacts, inspect_directory
from tests.tiny_pipelines import clip_tokenizer

WIDTHS: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
WORDS, LOOKS = WIDTHS | {"vocab_size": 50}, WIDTHS | {"patch_size": 4, "image_size": 8}
_PLAIN = replace(FAMILIES["image_classifier"], labels_from="sets")
FAMILY = {
    "clip": replace(_PLAIN, classes=("CLIPModel", "SiglipModel"), files=CLIP),
    "siglip": replace(_PLAIN, classes=("CLIPModel", "SiglipModel"), files=CLIP),
    "llava": replace(_PLAIN, classes=("LlavaForConditionalGeneration",), files=VISION_LANGUAGE),
}


def build(name: str) -> Any:
    if name == "clip":
        return CLIPModel(CLIPConfig(text_config=WORDS, vision_config=LOOKS, projection_dim=8))
    if name == "siglip":
        return SiglipModel(SiglipConfig(text_config=WORDS, vision_config=LOOKS))
    text = LlamaConfig(**WORDS, num_key_value_heads=2, tie_word_embeddings=True)
    return LlavaForConditionalGeneration(
        LlavaConfig(
            text_config=text, vision_config=CLIPVisionConfig(**LOOKS), image_token_index=3, tie_word_embeddings=True
        )
    )


@pytest.fixture(params=["clip", "siglip", "llava"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def directory(name: str, tmp_path: Path) -> Path:
    folder = tmp_path / name
    build(name).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    kind = "PreTrainedTokenizerFast" if name == "llava" else "CLIPTokenizer"
    alter(folder, "tokenizer_config.json", tokenizer_class=kind)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
    (folder / "processor_config.json").write_text('{"processor_class": "LlavaProcessor", "image_token": "<image>"}')
    (folder / "special_tokens_map.json").write_text("{}")
    return folder


def inspect(directory: Path) -> DirectoryFacts:
    return inspect_directory(directory, FAMILY[directory.name], directory.name)


def refusal(directory: Path) -> Refused:
    with pytest.raises(Refused) as caught:
        inspect(directory)
    return caught.value


def alter(directory: Path, file: str, **changes: Any) -> Path:
    content = json.loads((directory / file).read_text()) | changes
    (directory / file).write_text(json.dumps(content))
    return directory


def test_a_network_of_words_passes_with_its_tokenizer(directory: Path) -> None:
    facts = inspect(directory)
    assert (facts.labels, facts.label_names, facts.image_shape) == (None, None, (3, 8, 8))


def test_the_tokenizer_is_needed_and_its_class_is_on_the_list(directory: Path) -> None:
    alter(directory, "tokenizer_config.json", tokenizer_class="BertTokenizer")
    assert refusal(directory).field == "tokenizer_config.json: tokenizer_class"
    (directory / "tokenizer.json").unlink()
    assert refusal(directory).field == "tokenizer.json"


def test_a_chat_template_is_for_models_that_chat(directory: Path, name: str) -> None:
    (directory / "chat_template.jinja").write_text("{% for message in messages %}{{ message }}{% endfor %}")
    if name == "llava":
        assert inspect(directory).class_name == "LlavaForConditionalGeneration"
    else:
        refused = refusal(directory)
        assert (refused.code, refused.field) == ("file-not-allowed", "chat_template.jinja")


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
@pytest.mark.parametrize("kind", ["timm_wrapper", "bert", None, ["llama"]])
def test_a_part_of_another_kind_is_refused(part: str, kind: object, directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    alter(directory, "config.json", **{part: config[part] | {"model_type": kind}})
    refused = refusal(directory)
    assert (refused.code, refused.field) == ("class-not-allowed", f"config.json: {part}.model_type")


@pytest.mark.parametrize(("part", "key"), [("vision_config", "hidden_size"), ("text_config", "vocab_size")])
def test_a_part_of_another_size_is_refused(part: str, key: str, directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    alter(directory, "config.json", **{part: config[part] | {key: 64}})
    assert refusal(directory).code == "config-mismatch"
