"""Famous networks on an operator's weights: digest, name, clear refusals; and the networks themselves where they import."""

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from app import catalog
from app.errors import JobError
from tests.worker.metrics.test_generator_metrics import answers_of
from worker import backbones, by_name, evaluate
from worker.metrics import Evidence
from worker.panel import Panel

CPU = torch.device("cpu")
PICTURES = np.random.default_rng(0).integers(0, 256, (5, 20, 24, 3), dtype=np.uint8)


def plain(name: str, make: Any) -> Any:
    return make()


def imports(name: str) -> bool:
    try:
        return bool(backbones.installed(name))
    except JobError:
        return False


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not imports(name), reason=f"the extra `evaluators` does not import here: {name}")


def weights_in(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, folder / backbones.WEIGHTS)
    return folder


@pytest.mark.parametrize("name", catalog.BACKBONES)
def test_a_worker_without_weights_says_which_setting_it_lacks(name: str, tmp_path: Path) -> None:
    for folder in ("", str(tmp_path)):
        with pytest.raises(JobError, match=f"LETHE_{name.upper()}") as refused:
            backbones.open_backbones({name: folder}, CPU, plain)
        assert refused.value.code == "evaluator_missing"
    assert backbones.open_backbones({}, CPU, plain) == {}


@pytest.mark.parametrize("name", catalog.BACKBONES)
def test_a_worker_without_the_package_says_how_to_get_it(name: str, tmp_path: Path) -> None:
    if imports(name):
        pytest.skip("the extra `evaluators` is installed")
    folder = weights_in(tmp_path, {"w": torch.zeros(2)})
    with pytest.raises(JobError, match=r"pip install 'lethe\[evaluators\]'") as refused:
        backbones.open_backbones({name: str(folder)}, CPU, plain)
    assert refused.value.code == "evaluator_not_installed"


def test_the_digest_is_the_file_s_and_equal_weights_are_opened_once(tmp_path: Path) -> None:
    file = weights_in(tmp_path, {"w": torch.arange(3.0)}) / backbones.WEIGHTS
    digest = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    warm = backbones.Backbone(lambda pictures: pictures, digest)
    asked: list[str] = []

    def remember(name: str, make: Any) -> backbones.Backbone:
        asked.append(name)
        return warm

    assert backbones.open_backbones({"lpips": str(tmp_path)}, CPU, remember) == {"lpips": warm}
    assert asked == [f"lpips/{digest}/cpu"]


def embedding(seed: int, digest: str) -> backbones.Backbone:
    """A fixed linear map of the images' mean colours, in the place of a network that does not import here."""
    matrix = np.random.default_rng(seed).normal(size=(3, 4))
    return backbones.Backbone(lambda pictures: pictures.mean(axis=(1, 2)) @ matrix, f"sha256:{digest * 64}")


def test_figures_by_an_operator_s_weights_carry_their_digest_and_no_famous_name() -> None:
    panel = Panel(backbones={"inception": embedding(1, "a"), "lpips": embedding(2, "b")})
    said = panel.look(PICTURES, ())
    assert set(said) == {"inception", "lpips"} and set(panel.look_at_real(PICTURES)) == {"real_inception"}
    more: dict[str, Any] = {
        **said,
        **panel.look_at_real(PICTURES[::-1]),
        "real_labels": np.array([0, 1, 2, 0, 0]),
        "real_features": np.eye(5)[:, :3],
    }
    answers = answers_of([0, 0, 1, 2, 2], [0] * 5, **more)
    given = Evidence(answers, answers, None, 1.0, 1, 2)
    rows = {row["metric"]: row for row in evaluate.figures(given, "text_to_image", "class_label", [], 0, None, panel)}
    assert rows["fid_inception"]["name"] == f"fid_inception[{'a' * 12}]"
    assert rows["integrity_lpips"]["name"] == f"integrity_lpips[{'b' * 12}]"
    assert rows["fid_inception"]["evaluators"] == [f"sha256:{'a' * 64}"]
    assert (rows["fid_inception"]["n"], rows["fid_inception"]["n_real"]) == (4, 4)
    assert rows["integrity_lpips"]["value"] == 0.0
    assert rows["kept_accuracy"]["evaluators"] == [] and panel.look_at_real(PICTURES[:0]).keys() == {"real_inception"}


@needs("lpips")
def test_vectors_are_as_far_apart_as_lpips_says(tmp_path: Path) -> None:
    """With random AlexNet weights and the learned weights that the package brings."""
    module = by_name.evaluator("lpips")
    learned = torch.load(
        Path(module.lpips.__file__).parent / "weights/v0.1/alex.pth", map_location=CPU, weights_only=True
    )
    network = module.lpips.LPIPS(net="alex", pretrained=False, pnet_rand=True, verbose=False)
    state = network.state_dict() | learned | {name.replace("lin", "lins.", 1): each for name, each in learned.items()}
    folder = weights_in(tmp_path, state)
    opened = backbones.open_backbones({"lpips": str(folder)}, CPU, plain)["lpips"]
    vectors = opened.embed(PICTURES)
    assert vectors.shape[0] == 5 and vectors.dtype == np.float32
    network.load_state_dict(state)
    images = module.small(torch.from_numpy(PICTURES).permute(0, 3, 1, 2))
    with torch.no_grad():
        expected = network(images, images.roll(1, 0)).flatten().numpy()
    assert ((vectors - np.roll(vectors, 1, 0)) ** 2).sum(1) == pytest.approx(expected, rel=1e-3)
    assert expected.min() > 0
    grey, thrice = opened.embed(PICTURES[..., :1]), opened.embed(np.repeat(PICTURES[..., :1], 3, axis=3))
    assert ((grey - thrice) ** 2).sum(1).max() < 1e-6 * expected.min()


def random_inception(module: Any) -> dict[str, torch.Tensor]:
    """The network's tensors before any weights are read: its constructor reads a file or the internet, and nothing else."""
    taken: dict[str, torch.Tensor] = {}

    class Unread(module.FeatureExtractorInceptionV3):  # type: ignore[misc, name-defined]
        def load_state_dict(self, state: Any, **options: Any) -> Any:
            taken.update(self.state_dict())

    with tempfile.NamedTemporaryFile() as file:
        torch.save({}, file.name)
        Unread("random", ["2048"], file.name)
    return taken


@needs("inception")
def test_inception_gives_2048_features_of_images_of_eight_bits(tmp_path: Path) -> None:
    module = by_name.evaluator("inception")
    folder = weights_in(tmp_path, random_inception(module))
    opened = backbones.open_backbones({"inception": str(folder)}, CPU, plain)["inception"]
    features = opened.embed(PICTURES[:2])
    assert features.shape == (2, 2048) and np.abs(features[0] - features[1]).max() > 0
    with pytest.raises(ValueError, match="uint8"):
        opened.embed(PICTURES[:2] / 255)


@pytest.mark.parametrize("name", catalog.BACKBONES)
def test_a_file_of_other_weights_is_refused(name: str, tmp_path: Path) -> None:
    if not imports(name):
        pytest.skip(f"the extra `evaluators` does not import here: {name}")
    with pytest.raises(JobError) as refused:
        backbones.open_backbones({name: str(weights_in(tmp_path, {"w": torch.zeros(2)}))}, CPU, plain)
    assert refused.value.code == "evaluator_mismatch"
