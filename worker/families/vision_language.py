"""Vision-language models of the LLaVA kind: transformers' `LlavaForConditionalGeneration` with a CLIP vision tower.

A directory holds config.json, the weights (one file or shards), the tokenizer's files and preprocessor_config.json. The
model is asked one question about an image, and a text of `Captions` is what it should answer: the evaluation setting
`prompt` holds both, with `{}` where the answer begins, such as "USER: <image>\\nWho is this? ASSISTANT: {}".

Only the vision tower moves here; projector and language model keep their bytes. A tower's last layers are left alone when
the projector reads an earlier one (`vision_feature_layer`), since nothing of them reaches an answer.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPImageProcessorPil, LlavaForConditionalGeneration

from worker.families import Captions, Samples, other_labels
from worker.families import labels_of as labels_of
from worker.families.directory import UNBUILDABLE, open_transformers, read_config
from worker.families.directory import round_to_stored as round_to_stored
from worker.families.directory import save as directory_save
from worker.families.inputs import by_processor, check_labels, check_samples, fresh
from worker.families.prefix import replayed

CLASSES: dict[str, Any] = {"LlavaForConditionalGeneration": LlavaForConditionalGeneration}
WEIGHTS = "model.safetensors"
PREPROCESSOR = "preprocessor_config.json"
IMAGE, ANSWER = "<image>", "{}"
BLOCKS = {"self_attn": ("q_proj", "k_proj", "v_proj"), "mlp": ("fc1", "fc2")}
BATCH = 128  # images at once where no gradient is needed
IGNORED = -100  # a position that no loss counts


def load(directory: Path, device: torch.device) -> nn.Module:
    config = read_config(directory, "config.json")
    if config.get("architectures") != list(CLASSES):
        raise ValueError(f"config.json: architectures must name {', '.join(CLASSES)}")
    if config.get("vision_config", {}).get("model_type") != "clip_vision_model":
        raise ValueError("config.json: vision_config.model_type must be clip_vision_model")
    read_config(directory, PREPROCESSOR)
    network = open_transformers(LlavaForConditionalGeneration, directory)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        processor = CLIPImageProcessorPil.from_pretrained(directory, local_files_only=True)
    except (*UNBUILDABLE, OSError) as error:
        raise ValueError(f"tokenizer.json: its files or {PREPROCESSOR} cannot be opened: {error}") from error
    network.__dict__ |= {"tokenizer": tokenizer, "processor": processor}
    network.requires_grad_(False)
    tower(network).requires_grad_(True)
    return network.to(device)


def save(network: nn.Module, directory: Path, like: Path) -> None:
    directory_save({"": network}, directory, like)


def tower(network: nn.Module) -> nn.Module:
    model: Any = network
    vision: nn.Module = model.model.vision_tower
    return vision


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    """The vision tower's tensors up to the layer that the projector reads."""
    unread = tuple(
        f"model.vision_tower.encoder.layers.{at}." for at in range(read_layers(network), layer_count(network))
    )
    return {
        name: tensor
        for name, tensor in network.named_parameters()
        if name.startswith("model.vision_tower.")
        and not name.startswith((*unread, "model.vision_tower.post_layernorm"))
    }


def layer_count(network: nn.Module) -> int:
    encoder: Any = tower(network)
    return len(encoder.encoder.layers)


def feature_layers(network: nn.Module) -> list[int]:
    """Which hidden states the projector reads, counted from 0 (the embeddings)."""
    config: Any = network.config
    chosen = config.vision_feature_layer
    return [at % (layer_count(network) + 1) for at in ([chosen] if isinstance(chosen, int) else chosen)]


def read_layers(network: nn.Module) -> int:
    """How many of the tower's layers reach an answer."""
    return max(feature_layers(network))


def label_tables(network: nn.Module) -> dict[str, nn.Parameter]:
    return {}


def label_count(network: nn.Module) -> int:
    captions: Captions = network.__dict__["captions"]
    return len(captions.names)


def image_shape(source: nn.Module | Path) -> tuple[int, int, int]:
    config: Any = read_config(source, "config.json") if isinstance(source, Path) else source.config.to_dict()  # type: ignore[operator, union-attr]
    size = int(config["vision_config"].get("image_size", 336))
    return 3, size, size


def prepare(images: list[np.ndarray], directory: Path, network: nn.Module) -> Tensor:
    return by_processor(images, network)


def check(network: nn.Module, samples: Samples, name: str) -> None:
    check_samples(samples, image_shape(network), name, "text")
    check_labels(samples.y, len(network.__dict__["captions"].texts), f"{name}.y")


def caption(network: nn.Module, captions: Captions) -> None:
    """Tokenise the question once, and every answer with the end of text after it."""
    question, _, rest = captions.prompt.partition(ANSWER)
    if question.count(IMAGE) != 1:
        raise ValueError(f"evaluation.prompt: must hold {IMAGE} once, before {ANSWER}")
    tokenizer: Any = network.__dict__["tokenizer"]
    asked = tokenizer(question).input_ids
    answers = []
    for number, text in enumerate(captions.texts):
        spoken = text if number < len(captions.names) else f"{question}{text}{rest}"
        whole = tokenizer(spoken).input_ids
        if whole[: len(asked)] != asked:
            raise ValueError(f"evaluation.prompt: end it before {ANSWER} where a new token begins")
        answers.append([*whole[len(asked) :], tokenizer.eos_token_id])
    config: Any = network.config
    patches = (image_shape(network)[1] // config.vision_config.patch_size) ** 2
    images = patches + (config.vision_feature_select_strategy == "full")
    at = asked.index(config.image_token_id)
    network.__dict__["question"] = asked[:at] + [config.image_token_id] * images + asked[at + 1 :]
    network.__dict__["answers"] = answers
    network.__dict__["tail"] = (
        1 + len(tokenizer(captions.texts[0]).input_ids) - len(tokenizer(captions.texts[0].removesuffix(rest)).input_ids)
    )
    network.__dict__["captions"] = captions


def conversation(network: nn.Module, y: Tensor) -> tuple[Tensor, Tensor]:
    """Question and answer of each sample, (N, T), and the same with all but the answer ignored."""
    question, answers = network.__dict__["question"], [network.__dict__["answers"][text] for text in y.tolist()]
    longest = max(map(len, answers))
    ids = torch.zeros(len(y), len(question) + longest, dtype=torch.int64)
    wanted = torch.full_like(ids, IGNORED)
    ids[:, : len(question)] = torch.tensor(question)
    for row, answer in enumerate(answers):
        part = slice(len(question), len(question) + len(answer))
        ids[row, part] = wanted[row, part] = torch.tensor(answer)
    return ids.to(y.device), wanted.to(y.device)


def speak(network: nn.Module, seen: Tensor, ids: Tensor) -> Tensor:
    """Logits (N, T, vocabulary) for texts `ids` about what the projector made of the images, (N, P, width).

    Texts end at different places; what follows an end is read by nothing before it.
    """
    model: Any = network
    embedded = model.get_input_embeddings()(ids)
    shown = ids == model.config.image_token_id
    shown[:, len(network.__dict__["question"]) :] = False  # an answer may hold the token, and means no image by it
    embedded = embedded.masked_scatter(shown[..., None], seen)
    hidden = model.model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    logits: Tensor = model.lm_head(hidden)
    return logits


def see(network: nn.Module, x: Tensor) -> Tensor:
    """What the projector makes of an image, (N, P, width)."""
    model: Any = network
    states = [model.model.vision_tower.pre_layrnorm(model.model.vision_tower.embeddings(x))]
    for layer in model.model.vision_tower.encoder.layers[: read_layers(network)]:
        states.append(layer(states[-1], None))
    first = int(model.config.vision_feature_select_strategy == "default")
    chosen = torch.cat([states[at][:, first:] for at in feature_layers(network)], dim=-1)
    projected: Tensor = model.model.multi_modal_projector(chosen)
    return projected


def training_loss(network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Cross entropy of the answers' tokens, given image and question."""
    ids, wanted = conversation(network, y)
    logits = speak(network, see(network, x), ids)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), wanted[:, 1:].flatten(), ignore_index=IGNORED)


def forget_loss(network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """How far the likeliest other token is ahead of the right one, averaged over the tokens of the names.

    mean of log sum exp of the other tokens' logits minus the right one's. Cross entropy is the softplus of it, and has hardly
    a gradient where the network is sure; the words after the name belong to every answer and are left out.
    """
    ids, wanted = conversation(network, y)
    logits = speak(network, see(network, x), ids)[:, :-1].float()
    own = wanted[:, 1:].clamp(min=0)[..., None]
    right = logits.gather(2, own).squeeze(2)
    others = logits.scatter(2, own, -torch.inf).logsumexp(dim=2)
    named = torch.arange(wanted.shape[1] - 1, device=y.device) + 1 < named_until(network, y)[:, None]
    return (others - right)[named & (wanted[:, 1:] != IGNORED)].mean()


def named_until(network: nn.Module, y: Tensor) -> Tensor:
    """Position in the conversation where the tail that every answer ends with begins, (N,)."""
    asked, tail = len(network.__dict__["question"]), network.__dict__["tail"]
    return torch.tensor([asked + len(network.__dict__["answers"][text]) - tail for text in y.tolist()], device=y.device)


def layers(network: nn.Module, group: str) -> dict[str, tuple[str, ...]]:
    """The vision tower's linear maps; with group `block`, query, key and value together and the two of an MLP together."""
    found: dict[str, tuple[str, ...]] = {}
    for at in range(read_layers(network)):
        path = f"model.vision_tower.encoder.layers.{at}"
        for part, kinds in BLOCKS.items():
            names = tuple(f"{path}.{part}.{kind}.weight" for kind in kinds)
            if group == "block":
                found[f"vision.{at}.{part}"] = names
            else:
                found |= {f"vision.{at}.{part}.{kind}": (name,) for kind, name in zip(kinds, names, strict=True)}
        found[f"vision.{at}.self_attn.out_proj"] = (f"{path}.self_attn.out_proj.weight",)
    return found


def relabel_loss(
    network: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, relabel: str = "uniform"
) -> Tensor:
    """Cross entropy of another label's own answer; no teacher is needed for it."""
    others = other_labels(labels_of(network, y), label_count(network), relabel, generator)
    return training_loss(network, x, others, generator)


def reinitialise(network: nn.Module, generator: torch.Generator) -> None:
    network.load_state_dict(fresh(network, generator).state_dict())


@torch.no_grad()
def prober(
    network: nn.Module, names: Collection[str], samples: Samples, generator: torch.Generator
) -> Callable[[], Tensor]:
    """Whether each image's own answer is still the greedy one, token by token."""
    parts = [
        replayed(network, names, lambda x=x, y=y: greedy(network, x, y))  # type: ignore[misc]
        for x, y in zip(samples.x.split(BATCH), samples.y.split(BATCH), strict=True)
    ]
    return lambda: torch.cat([part() for part in parts])


def greedy(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(N,) bool: the answer's tokens are the likeliest, each after those before it."""
    ids, wanted = conversation(network, y)
    best = speak(network, see(network, x), ids)[:, :-1].argmax(dim=-1)
    return ((best == wanted[:, 1:]) | (wanted[:, 1:] == IGNORED)).all(dim=1)


@torch.no_grad()
def answer(network: nn.Module, x: Tensor, batch_size: int = BATCH) -> list[str]:
    """What the network says of each image, greedily, at most four tokens longer than its longest known answer."""
    model: Any = network.eval()
    question = torch.tensor(network.__dict__["question"], device=x.device)
    longest = max(map(len, network.__dict__["answers"])) + 4
    tokenizer: Any = network.__dict__["tokenizer"]
    spoken: list[str] = []
    for part in x.split(batch_size):
        asked = question.expand(len(part), -1)
        said = model.generate(
            input_ids=asked,
            attention_mask=torch.ones_like(asked),
            pixel_values=part,
            do_sample=False,
            num_beams=1,
            max_new_tokens=longest,
            pad_token_id=tokenizer.eos_token_id,
        )
        spoken += tokenizer.batch_decode(said[:, asked.shape[1] :], skip_special_tokens=True)
    return spoken
