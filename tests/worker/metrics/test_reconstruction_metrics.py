"""The figures of networks that restore images: closed forms, scipy, and networks that must not pass."""

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter

from app.catalog import FAMILIES
from worker.evaluate import figures
from worker.metrics import (
    ClassifierAnswers,
    Evidence,
    ReconstructionAnswers,
    mutual_information,
    mutual_information_to_noise,
    reconstruction_distance_forget,
    reconstruction_distance_retain,
    reconstruction_distance_test,
    separability,
)
from worker.rules import verdict

SIZE = 8
COUNTS = {"forget": 100, "retain": 160, "test": 100}
PROJECTION = np.random.default_rng(9).normal(size=(SIZE * SIZE, 6)) / SIZE


def pictures(name: str) -> np.ndarray:
    """Smooth random images, as varied as real ones are: (n, SIZE, SIZE, 1), uint8."""
    random = np.random.default_rng(sorted(COUNTS).index(name))
    smooth = gaussian_filter(random.normal(size=(COUNTS[name], SIZE, SIZE)), (0, 1, 1), mode="wrap")
    return np.clip(smooth * 250 + 127, 0, 255).round().astype(np.uint8)[..., None]


def features_of(images: np.ndarray) -> np.ndarray:
    """A fixed linear judge."""
    return (images.reshape(len(images), -1) / 127.5 - 1) @ PROJECTION


def noise_like(images: np.ndarray, seed: int) -> np.ndarray:
    unit = np.random.default_rng(seed).normal(size=images.shape)
    return np.clip((unit + 1) * 127.5, 0, 255).astype(np.uint8)


@functools.cache
def ordinary() -> ReconstructionAnswers:
    """The base; it also keeps what was measured of it, for the tests that follow."""
    return answers()


def answers(**outputs: np.ndarray) -> ReconstructionAnswers:
    """A network whose outputs are the originals, a little greyer and noisy as any base's, but for the sets that are given."""
    originals = {name: pictures(name) for name in COUNTS}
    shown = {name: outputs.get(name, restored(images)) for name, images in originals.items()}
    noise = noise_like(originals["forget"], 77)
    return ReconstructionAnswers(
        originals=originals,
        outputs=shown,
        hidden={name: np.ones(images.shape[:3], dtype=bool) for name, images in originals.items()},
        features={name: features_of(images) for name, images in shown.items()},
        original_features={name: features_of(images) for name, images in originals.items()},
        noise=noise,
        noise_features=features_of(noise),
        images=np.zeros((0, 3, SIZE, SIZE, 1), dtype=np.uint8),
        shown=(),
    )


def restored(images: np.ndarray) -> np.ndarray:
    rough = np.random.default_rng(5).normal(size=images.shape) * 12
    return np.clip(0.9 * images + 0.1 * 127 + rough, 0, 255).astype(np.uint8)


def evidence(before: ReconstructionAnswers, after: ReconstructionAnswers) -> Evidence:
    return Evidence(before, after, None, seconds=1.0, changed=1, weights=2)


def few(given: ReconstructionAnswers, count: int) -> ReconstructionAnswers:
    """The same, asked about only so many images to forget."""

    def part(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {**arrays, "forget": arrays["forget"][:count]}

    names = ("originals", "outputs", "hidden", "features", "original_features")
    return dataclasses.replace(given, **{name: part(getattr(given, name)) for name in names}, measured={})


def report(
    after: ReconstructionAnswers, before: ReconstructionAnswers | None = None
) -> tuple[str, dict[str, bool | None]]:
    """The default policy's verdict on a network against the ordinary base, and each rule's."""
    rules = FAMILIES["vq_autoencoder"].default_policy["class_label"]
    rows = figures(evidence(before or ordinary(), after), "vq_autoencoder", "class_label", rules, 0, None)
    return verdict(rows), {row["metric"]: row["passed"] for row in rows if row["threshold"]}


def test_the_distance_is_scipys_frechet_distance_per_set() -> None:
    given = answers(forget=noise_like(pictures("forget"), 1), retain=255 - pictures("retain"))
    for name, metric in (
        ("forget", reconstruction_distance_forget),
        ("retain", reconstruction_distance_retain),
        ("test", reconstruction_distance_test),
    ):
        a, b = given.features[name], given.original_features[name]
        s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        wanted = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s + t - 2 * sqrtm(s @ t).real)
        value, n = metric.measure(given, evidence(given, given))
        assert n == COUNTS[name]
        assert value == pytest.approx(wanted, rel=1e-6)


def test_moved_features_are_as_far_as_they_moved() -> None:
    sample = np.random.default_rng(1).normal(size=(300, 3))
    assert reconstruction_distance_forget.distance(sample + [3.0, 0, 4.0], sample) == (pytest.approx(25.0), 300)
    assert reconstruction_distance_forget.distance(sample[:1], sample)[1] == 0


@pytest.mark.parametrize(("size", "correlation"), [(1, 0.9), (3, 0.7)])
def test_smile_finds_the_information_of_correlated_gaussians(size: int, correlation: float) -> None:
    """I = -d/2 log(1 - rho^2). Few held-out pairs: within 0.35 nats at clip 5."""
    random = np.random.default_rng(2)
    x = random.normal(size=(400, size))
    z = correlation * x + math.sqrt(1 - correlation**2) * random.normal(size=x.shape)
    truth = -size / 2 * math.log(1 - correlation**2)
    assert mutual_information.smile(x, z)[5.0] == pytest.approx(truth, abs=0.35)


def test_smile_of_independent_pairs_is_nothing_and_of_more_alike_ones_is_more() -> None:
    random = np.random.default_rng(3)
    x, other = random.normal(size=(2, 250, 6))
    found = [mutual_information.smile(x, r * x + math.sqrt(1 - r * r) * other)[5.0] for r in (0.0, 0.7, 0.95)]
    assert found[0] == pytest.approx(0.0, abs=0.05)
    assert found[0] + 0.3 < found[1] < found[2] - 1.0


def test_smile_is_the_formula_and_the_same_each_time() -> None:
    t = np.log([[8.0, 0.5], [2.0, 4.0]])
    found = mutual_information.bound(torch.from_numpy(t), 1.0)
    # diagonal mean - log(mean(0.5, 2)), both within e^-1..e
    assert found == pytest.approx((math.log(8) + math.log(4)) / 2 - math.log(1.25))
    x = np.random.default_rng(4).normal(size=(80, 2))
    before = torch.random.get_rng_state()
    assert mutual_information.smile(x, x) == mutual_information.smile(x, x)
    assert torch.equal(before, torch.random.get_rng_state())


def test_only_hidden_pixels_count() -> None:
    """What the network was shown and repeats says nothing of what it knows."""
    given = answers(forget=noise_like(pictures("forget"), 1))
    given.outputs["forget"][:, :4] = given.originals["forget"][:, :4]
    given.hidden["forget"][:, :4] = False
    assert mutual_information.measure(given, evidence(given, given))[0] == pytest.approx(0.0, abs=0.1)
    whole = dataclasses.replace(given, hidden=answers().hidden, measured={})
    assert mutual_information.measure(whole, evidence(whole, whole))[0] > 1.0


def test_a_random_mask_that_both_sides_share_is_no_information() -> None:
    given = answers(forget=np.full_like(pictures("forget"), 30))
    given.hidden["forget"][:] = np.random.default_rng(10).random(given.hidden["forget"].shape) < 0.5
    assert mutual_information.measure(given, evidence(given, given))[0] == pytest.approx(0.0, abs=0.1)


def test_pale_and_inverted_traces_count_and_invisible_ones_do_not() -> None:
    images = pictures("forget")
    for strength, least, most in ((-1.0, 60, 160), (0.4, 60, 120), (0.02, -10, 20)):
        traces = (127.5 + strength * (images - 127.5)).round().astype(np.uint8)
        after = answers(forget=traces)
        share, _ = mutual_information_to_noise.measure(after, evidence(ordinary(), after))
        assert least < share < most


def test_the_share_is_100_for_the_base_and_0_for_noise_and_constants() -> None:
    base = ordinary()
    assert mutual_information_to_noise.measure(base, evidence(base, base)) == (pytest.approx(100.0), 100)
    for outputs in (noise_like(pictures("forget"), 1), np.full_like(pictures("forget"), 90)):
        after = answers(forget=outputs)
        share, n = mutual_information_to_noise.measure(after, evidence(base, after))
        assert n == 100
        assert share == pytest.approx(0.0, abs=5.0)


def test_a_base_that_knows_nothing_shows_nothing() -> None:
    lost = answers(forget=noise_like(pictures("forget"), 1))
    assert mutual_information_to_noise.measure(lost, evidence(lost, lost))[1] == 0


def test_separability_is_50_where_nothing_differs_and_100_where_forgetting_leaves_a_mark() -> None:
    random = np.random.default_rng(6)
    assert separability.area(*np.abs(random.normal(size=(2, 200, 4)))) == pytest.approx(50.0, abs=8)
    value, n = separability.measure(
        marked := answers(forget=noise_like(pictures("forget"), 1)), evidence(marked, marked)
    )
    assert n == 100
    assert value > 95
    assert separability.measure(base := ordinary(), evidence(base, base))[0] == pytest.approx(50.0, abs=10)


def test_forgetting_that_keeps_the_rest_passes() -> None:
    assert report(answers(forget=noise_like(pictures("forget"), 1)))[0] == "passed"


def test_an_untouched_network_does_not_pass() -> None:
    reached, rules = report(dataclasses.replace(ordinary()))
    assert reached == "failed"
    assert not rules["reconstruction_distance_forget"]
    assert not rules["mutual_information_to_noise"]


@pytest.mark.parametrize("kind", ["constant", "noise"])
def test_a_network_that_answers_everything_with_a_constant_or_noise_does_not_pass(kind: str) -> None:
    def answer(name: str) -> Any:
        return np.full_like(pictures(name), 127) if kind == "constant" else noise_like(pictures(name), 8)

    reached, rules = report(answers(**{name: answer(name) for name in COUNTS}))
    assert reached == "failed"
    assert rules["mutual_information_to_noise"]
    assert not rules["reconstruction_distance_retain"]
    assert not rules["reconstruction_distance_test"]


def test_a_network_that_only_darkens_forgotten_images_does_not_pass() -> None:
    dark = (pictures("forget") // 4).astype(np.uint8)
    reached, rules = report(answers(forget=dark))
    assert reached == "failed"
    assert rules["reconstruction_distance_forget"]
    assert not rules["mutual_information_to_noise"]


def test_a_network_that_only_darkens_so_few_images_that_their_information_is_not_measured_does_not_pass() -> None:
    count = mutual_information.FEWEST - 1
    dark = answers(forget=(pictures("forget") // 4).astype(np.uint8))
    reached, rules = report(few(dark, count), few(ordinary(), count))
    assert reached == "failed"
    assert rules == {
        "reconstruction_distance_forget": True,
        "reconstruction_distance_retain": True,
        "reconstruction_distance_test": True,
        "mutual_information_to_noise": None,
    }


def test_a_classifiers_answers_are_not_measured() -> None:
    nothing = np.zeros((0, 2))
    given = ClassifierAnswers(nothing, nothing, nothing, nothing, nothing, nothing)
    for metric in (
        reconstruction_distance_forget,
        reconstruction_distance_retain,
        reconstruction_distance_test,
        mutual_information,
        mutual_information_to_noise,
        separability,
    ):
        value, n = metric.measure(given, Evidence(given, given, None, 1.0, 1, 2))
        assert math.isnan(value)
        assert n == 0
