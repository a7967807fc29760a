"""The likelihood ratio against scipy's normal densities, and who is told apart by it."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import logit
from scipy.stats import norm
from torch import Tensor, nn

from tests import tiny
from worker.attacks import CannotAttack, Shadow, likelihood_ratio
from worker.families import Samples, image_classifier


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(shadows: int, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """phi of a network and of shadows, each of which knows half of the samples and is surer of these."""
    known = torch.rand(shadows, samples, generator=seeded(1)).argsort(0) < shadows // 2
    spread = 0.5 + torch.rand(samples, generator=seeded(2))
    phi = (2.0 * known + spread * torch.randn(shadows, samples, generator=seeded(3))).double()
    return torch.randn(samples, generator=seeded(4)).double(), phi, known


def test_with_many_shadows_it_is_the_ratio_of_each_sample_s_own_normal_densities() -> None:
    own, phi, known = drawn(128, 20)
    ours = likelihood_ratio.log_ratio(own, phi, known)
    for at in range(20):
        sides = [phi[chosen[:, at], at].numpy() for chosen in (known, ~known)]
        inside, outside = (norm.logpdf(float(own[at]), side.mean(), side.std(ddof=1)) for side in sides)
        assert float(ours[at]) == pytest.approx(inside - outside, rel=1e-9)


def test_with_few_shadows_the_spreads_are_those_of_all_samples() -> None:
    own, phi, known = drawn(8, 20)
    ours = likelihood_ratio.log_ratio(own, phi, known)
    spreads = []
    for chosen in (known, ~known):
        apart = [phi[chosen[:, at], at].numpy() for at in range(20)]
        squares = sum(((side - side.mean()) ** 2).sum() for side in apart)
        spreads.append(np.sqrt(squares / sum(len(side) - 1 for side in apart)))
    for at in range(20):
        inside, outside = (
            norm.logpdf(float(own[at]), float(phi[chosen[:, at], at].mean()), spread)
            for chosen, spread in zip((known, ~known), spreads, strict=True)
        )
        assert float(ours[at]) == pytest.approx(inside - outside, rel=1e-9)


def test_a_sample_that_too_few_shadows_know_is_left_out() -> None:
    own, phi, known = drawn(8, 5)
    known[:, 0], known[:, 1] = False, True
    known[0, 0] = True
    ours = likelihood_ratio.log_ratio(own, phi, known)
    assert ours.isfinite().tolist() == [False, False, True, True, True]


def test_confidence_is_the_logit_of_the_own_label_s_probability(tmp_path: Path) -> None:
    network = tiny.opened("vit", tmp_path / "vit")
    samples = tiny.samples(network, image_classifier, 12)
    p = image_classifier.predict(network, samples.x).double().softmax(1)[torch.arange(12), samples.y]
    assert likelihood_ratio.confidence(network, image_classifier, samples).numpy() == pytest.approx(logit(p.numpy()))


class Told:
    """A family whose networks answer with a confidence of their own: sample i's first pixel names its place."""

    def predict(self, network: nn.Module, x: Tensor) -> Tensor:
        phi = network.__dict__["phi"][x[:, 0, 0, 0].long()]
        return torch.stack([phi, torch.zeros_like(phi)], dim=1)


def knowing(phi: Tensor) -> nn.Module:
    network = nn.Identity()
    network.__dict__["phi"] = phi
    return network


def attacked(remembers: float, shadows: int = 16) -> Any:
    """60 forgotten and 60 unseen samples; the attacked network is `remembers` surer of the forgotten ones, a shadow 3."""
    x = torch.arange(120.0).reshape(-1, 1, 1, 1)
    forget, unseen = (Samples(part, torch.zeros(60, dtype=torch.int64)) for part in x.split(60))
    known = torch.rand(shadows, 120, generator=seeded(1)).argsort(0) < shadows // 2
    phis = 3.0 * known + torch.randn(shadows, 120, generator=seeded(2))
    own = knowing(remembers * (torch.arange(120) < 60) + torch.randn(120, generator=seeded(3)))
    asked = [Shadow(partial(knowing, phi), bits[:60], bits[60:]) for phi, bits in zip(phis, known, strict=True)]
    family: Any = Told()
    return likelihood_ratio.attack(
        own, family, forget, forget, unseen, lambda *_: forget.y, shadows=asked, generator=seeded()
    )


def test_what_is_remembered_is_told_and_what_was_never_known_is_not() -> None:
    remembered, never = attacked(3.0), attacked(0.0)
    assert remembered["after"]["success"] >= 100 and remembered["after"]["total"] == 120
    assert remembered["rows"][0]["low"] > 0.9 and remembered["budget"] == {"shadows": 16, "members": 60, "unseen": 60}
    assert abs(never["after"]["success"] - 60) <= 16 and abs(never["rows"][0]["value"] - 0.5) < 0.15


def test_what_was_forgotten_too_hard_stands_out_below() -> None:
    found = attacked(-4.0)
    told = {row["measure"]: row for row in found["rows"] if "success" in row}
    assert abs(told["lambda_above_1"]["success"] - 60) <= 16  # no ratio above 1 tells it
    assert found["after"]["success"] >= 96 and found["after"]["total"] == 120
    below = next(row for row in found["rows"] if row.get("side") == "below" and row["rate"] == 5.0)
    assert found["rows"][0]["high"] < 0.5 and below["success"] >= 15


def test_says_what_it_lacks() -> None:
    with pytest.raises(CannotAttack, match="names 3"):
        attacked(0.0, shadows=3)
    sample = Samples(torch.zeros(4, 1, 1, 1), torch.zeros(4, dtype=torch.int64))
    none: Any = Told()
    with pytest.raises(CannotAttack, match="test set"):
        likelihood_ratio.attack(
            knowing(torch.zeros(4)), none, sample, sample, None, lambda *_: sample.y, shadows=[], generator=seeded()
        )
    same = Shadow(partial(knowing, torch.zeros(4)), *(torch.ones(4, dtype=torch.bool),) * 2)
    with pytest.raises(CannotAttack, match="Too few"):
        likelihood_ratio.attack(
            knowing(torch.zeros(4)),
            none,
            sample,
            sample,
            sample,
            lambda *_: sample.y,
            shadows=[same] * 4,
            generator=seeded(),
        )
