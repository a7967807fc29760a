"""Images and texts in one space: transformers' `CLIPModel` and `SiglipModel`, opened from their Hugging Face directories.

A directory holds config.json, the weights (one file or shards), the tokenizer's files and preprocessor_config.json. With
unit vectors v of images and t of texts, and s the learned scale:

    CLIP     symmetric InfoNCE: cross entropy of s <v_i, t_j> over the batch's texts, and over its images
    SigLIP   - log sigmoid(z_ij (s <v_i, t_j> + b)), z 1 for an image's own text and -1 otherwise

Equal texts of a batch count once and are never each other's negatives. A batch of one text alone would have nothing to be
told from, so other labels' prompts are drawn as negatives (CONTRAST at most). `y` is a position in `Captions.texts`; the labels'
own prompts come first, and a network knows labels only through them: recognised is the label with the nearest prompt.

Sources: Radford et al., arXiv 2103.00020; Zhai et al., arXiv 2303.15343.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPModel, SiglipModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from worker.families import Captions, Samples, other_labels
from worker.families import labels_of as labels_of
from worker.families.directory import fill, read_config, read_weights, save_like, weight_files
from worker.families.directory import round_to_stored as round_to_stored
from worker.families.inputs import by_processor, check_labels, check_samples, fresh
from worker.families.mixtures import PromptSearch, mixed, prefixed, readable, room
from worker.families.prefix import editable, replayed

CLASSES: dict[str, Any] = {"CLIPModel": CLIPModel, "SiglipModel": SiglipModel}
PROCESSORS: dict[str, Any] = {"CLIPModel": CLIPImageProcessorPil, "SiglipModel": SiglipImageProcessorPil}
WEIGHTS = "model.safetensors"
PREPROCESSOR = "preprocessor_config.json"
CONTRAST = 63  # other labels' prompts that stand against a batch of one text
BATCH = 256  # images or texts at once where no gradient is needed
TOWERS = {"vision_model.": "vision", "visual_": "vision", "text_model.": "text", "text_": "text"}
UNBUILDABLE = (ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)


def load(directory: Path, device: torch.device) -> nn.Module:
    config = read_config(directory, "config.json")
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or names[0] not in CLASSES:
        raise ValueError(f"config.json: architectures must name one of {', '.join(CLASSES)}, not {names!r}")
    read_config(directory, PREPROCESSOR)
    kind = CLASSES[names[0]]
    try:
        with torch.random.fork_rng(devices=[]):  # its first weights are thrown away, and nobody's seed is spent
            network: nn.Module = kind(kind.config_class.from_dict(config))
        processor = PROCESSORS[names[0]].from_pretrained(directory, local_files_only=True)
    except (*UNBUILDABLE, OSError) as error:
        raise ValueError(f"config.json: {names[0]} cannot be opened with it: {error}") from error
    found = read_weights(weight_files(directory, "model"))
    counted = {name: tensor for name, tensor in found.items() if not name.endswith("embeddings.position_ids")}
    fill(network, counted, WEIGHTS)
    network.__dict__["tokenizer"] = open_tokenizer(directory)
    network.__dict__["processor"] = processor
    return network.to(device).eval()


def open_tokenizer(directory: Path) -> Any:
    """From the directory's own files; code that lies beside them is never run."""
    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (*UNBUILDABLE, OSError) as error:
        raise ValueError(f"tokenizer.json: no tokenizer can be opened with the directory's files: {error}") from error


def save(network: nn.Module, directory: Path, like: Path) -> None:
    save_like(network.state_dict(), weight_files(like, "model"), directory, like)


def caption(network: nn.Module, captions: Captions) -> None:
    """Tokenise every text of a job once. Further functions know labels and texts from here."""
    network.__dict__["captions"] = captions
    network.__dict__["tokens"] = tokenised(network, captions.texts)


def tokenised(network: nn.Module, texts: Sequence[str]) -> Tensor:
    """Token ids (texts, length), padded."""
    model: Any = network
    whole = {"padding": "max_length" if isinstance(network, SiglipModel) else "longest"}
    length = model.config.text_config.max_position_embeddings
    tokens = network.__dict__["tokenizer"](
        list(texts), truncation=True, max_length=length, return_tensors="pt", **whole
    )
    ids: Tensor = tokens["input_ids"].to(model.device)
    return ids


def captions_of(network: nn.Module) -> Captions:
    if "captions" not in network.__dict__:
        raise ValueError("network: it has been given no captions")
    captions: Captions = network.__dict__["captions"]
    return captions


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: tensor for name, tensor in network.named_parameters() if tensor.is_floating_point()}


def label_tables(network: nn.Module) -> dict[str, nn.Parameter]:
    """Labels are words here, so there is none."""
    return {}


def label_count(network: nn.Module) -> int:
    return len(captions_of(network).names)


def image_shape(source: nn.Module | Path) -> tuple[int, int, int]:
    config: Any = source.config.vision_config.to_dict() if isinstance(source, nn.Module) else None  # type: ignore[union-attr, operator]
    if isinstance(source, Path):
        config = read_config(source, "config.json").get("vision_config", {})
    size = int(config.get("image_size", 224))
    return int(config.get("num_channels", 3)), size, size


def check(network: nn.Module, samples: Samples, name: str) -> None:
    check_samples(samples, image_shape(network), name, "text")
    check_labels(samples.y, len(captions_of(network).texts), f"{name}.y")


def prepare(images: list[np.ndarray], directory: Path, network: nn.Module) -> Tensor:
    return by_processor(images, network)


def image_features(network: nn.Module, x: Tensor) -> Tensor:
    """Unit vectors (N, d)."""
    model: Any = network
    return F.normalize(model.get_image_features(x).pooler_output, dim=1)


def text_features(network: nn.Module, texts: Tensor) -> Tensor:
    """Unit vectors (k, d) of the texts at these positions."""
    model: Any = network
    return F.normalize(model.get_text_features(network.__dict__["tokens"][texts]).pooler_output, dim=1)


def training_loss(network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    texts, own = y.unique(return_inverse=True)
    if len(texts) == 1:
        texts = torch.cat([texts, other_prompts(network, texts[0], generator)])
    return contrast(network, image_features(network, x), text_features(network, texts), own)


def other_prompts(network: nn.Module, text: Tensor, generator: torch.Generator) -> Tensor:
    """Positions of up to CONTRAST prompts, none of them of the label that `text` speaks of."""
    prompts = torch.randperm(label_count(network), generator=generator).to(text.device)
    return prompts[prompts != labels_of(network, text[None])][:CONTRAST]


def contrast(network: nn.Module, images: Tensor, texts: Tensor, own: Tensor) -> Tensor:
    """The family's contrastive loss of `images` (N, d) and distinct `texts` (k, d); image i's text is `own[i]`."""
    model: Any = network
    scores = model.logit_scale.exp() * images @ texts.T  # (N, k)
    if isinstance(network, SiglipModel):
        signs = F.one_hot(own, len(texts)).to(scores.dtype) * 2 - 1
        return -F.logsigmoid(signs * (scores + model.logit_bias)).sum(1).mean()
    same = own[:, None] == own[None, :]
    among_images = scores[:, own].T.masked_fill(
        same & ~torch.eye(len(own), dtype=torch.bool, device=own.device), -torch.inf
    )
    rows = torch.arange(len(own), device=own.device)
    return (F.cross_entropy(scores, own) + F.cross_entropy(among_images, rows)) / 2


def forget_loss(network: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """mean(1 - cos(v_i, t_i)): positive pairs only."""
    texts, own = y.unique(return_inverse=True)
    return 1 - (image_features(network, x) * text_features(network, texts)[own]).sum(1).mean()


def relabel_loss(
    network: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator, relabel: str = "uniform"
) -> Tensor:
    """The contrastive loss of the images with another label's prompt each, their true texts standing among the
    negatives; no teacher is needed for it."""
    others = other_labels(labels_of(network, y), label_count(network), relabel, generator)
    texts, places = torch.cat([others, y]).unique(return_inverse=True)
    return contrast(network, image_features(network, x), text_features(network, texts), places[: len(y)])


def reinitialise(network: nn.Module, generator: torch.Generator) -> None:
    network.load_state_dict(fresh(network, generator).state_dict())


@torch.no_grad()
def predict(network: nn.Module, x: Tensor, batch_size: int = BATCH) -> Tensor:
    """Zero-shot logits (N, labels) over the labels' own prompts, in eval mode."""
    model: Any = network.eval()
    prompts = prompt_features(network, batch_size).T
    images = torch.cat([image_features(network, part) for part in x.split(batch_size)])
    scores: Tensor = model.logit_scale.exp() * images @ prompts
    return scores.float()


def prompt_features(network: nn.Module, batch_size: int = BATCH) -> Tensor:
    every = torch.arange(label_count(network), device=network.__dict__["tokens"].device)
    return torch.cat([text_features(network, part) for part in every.split(batch_size)])


def prompt_search(network: nn.Module, labels: Tensor, most: int) -> PromptSearch:
    """At most `most` words before the prompts of `labels`, judged by the cross entropy of images over all labels' prompts."""
    model: Any = network
    tokenizer, length = network.__dict__["tokenizer"], model.config.text_config.max_position_embeddings
    prompts = [captions_of(network).texts[label] for label in labels.tolist()]
    words = readable(tokenizer).to(labels.device)
    with torch.no_grad():
        others = prompt_features(network)

    def texts(chosen: Tensor) -> list[str]:
        return prefixed(tokenizer, words, chosen, prompts)

    def loss(mixtures: Tensor, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        ids = tokenised(network, texts(torch.zeros(mixtures.shape[:2], dtype=torch.int64)))
        with mixed(model.text_model, ids, words, mixtures):
            own = F.normalize(model.get_text_features(ids).pooler_output, dim=1)
        with torch.no_grad():
            images = image_features(network, x)
        scores = model.logit_scale.exp().detach() * images @ others.index_copy(0, labels, own).T
        return F.cross_entropy(scores, y)

    return PromptSearch(words, room(tokenizer, prompts, length, most), loss, texts)


def layers(network: nn.Module, group: str) -> dict[str, tuple[str, ...]]:
    """Of both towers: `vision.` and `text.` begin their names."""
    return editable(network, group, TOWERS)


@torch.no_grad()
def prober(
    network: nn.Module, names: Collection[str], samples: Samples, generator: torch.Generator, top: int = 1
) -> Callable[[], Tensor]:
    """Each tower is asked on its own, so that one without any of `names` is never run again."""
    own = labels_of(network, samples.y)[:, None]
    parts = [replayed(network, names, partial(image_features, network, part)) for part in samples.x.split(BATCH)]
    prompts = replayed(network, names, partial(prompt_features, network))

    def recognised() -> Tensor:
        scores = torch.cat([part() for part in parts]) @ prompts().T
        return (scores > scores.gather(1, own)).sum(1) < top

    return recognised
