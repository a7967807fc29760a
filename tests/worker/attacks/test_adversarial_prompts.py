"""The search for words: an exact projection, only tokens that can be written, and words that are counted on what it never saw."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from tests import tiny
from worker.attacks import CannotAttack, adversarial_prompts
from worker.families import Samples, clip, mixtures, text_to_image


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_the_projection_is_the_quadratic_program_s(scale: float) -> None:
    """The nearest point of the simplex, as a general solver finds it."""
    for row in (scale * torch.randn(6, 5, dtype=torch.float64, generator=seeded())).numpy():
        solved = minimize(
            lambda x, row=row: ((x - row) ** 2).sum(), np.full(5, 0.2), jac=lambda x, row=row: 2 * (x - row),
            bounds=[(0, None)] * 5, constraints={"type": "eq", "fun": lambda x: x.sum() - 1}, tol=1e-12,
        )  # fmt: skip
        ours = adversarial_prompts.simplex(torch.tensor(row)).numpy()
        assert np.abs(ours - solved.x).max() < 1e-5


def test_the_projection_meets_the_conditions_of_karush_kuhn_and_tucker() -> None:
    """x >= 0, sum x = 1, and x - v = mu - theta with mu >= 0 and mu x = 0: one theta wherever x > 0, and v <= theta elsewhere."""
    v = 3 * torch.randn(20, 3, 400, dtype=torch.float64, generator=seeded())
    x = adversarial_prompts.simplex(v)
    assert (x >= 0).all() and torch.allclose(x.sum(-1), torch.ones(20, 3, dtype=torch.float64), atol=1e-12)
    for point, moved in zip(v.flatten(0, 1), x.flatten(0, 1), strict=True):
        thetas = (point - moved)[moved > 0]
        assert thetas.max() - thetas.min() < 1e-12 and (point[moved == 0] <= thetas.max() + 1e-12).all()


def test_a_point_of_the_simplex_stays_and_ties_are_shared() -> None:
    inside = torch.tensor([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    assert torch.allclose(adversarial_prompts.simplex(inside), inside)
    assert torch.allclose(adversarial_prompts.simplex(torch.full((1, 4), 7.0)), torch.full((1, 4), 0.25))


@pytest.mark.parametrize("name", ["clip", "siglip", "sd", "sdxl"])
def test_words_are_read_as_they_are_written_and_fill_the_room(name: str, tmp_path: Path) -> None:
    network = tiny.opened(name, tmp_path / name)
    family: Any = tiny.FAMILIES[tiny.EVERY[name]]
    search = family.prompt_search(network, torch.tensor([1, 3]), 99)
    assert search.tokens == 3 and len(search.words) > 20  # of 10: a prompt has 7 with its beginning and end
    chosen = torch.randint(len(search.words), (2, 3), generator=seeded())
    tokenizer = network.__dict__.get("tokenizer") or network.__dict__["tokenizers"]["text_encoder"]
    for row, text, prompt in zip(chosen, search.texts(chosen), ("bo birch", "dov elm"), strict=True):
        ids = tokenizer(text).input_ids
        assert ids[1:4] == search.words[row].tolist() and text.endswith(f"a photo of {prompt}")


@pytest.mark.parametrize("name", ["clip", "siglip", "sd", "sdxl"])
def test_one_hot_words_are_the_text_itself(name: str, tmp_path: Path) -> None:
    """The mixture that the search differentiates, at a vertex, gives what the network answers when it reads the text."""
    network = tiny.opened(name, tmp_path / name)
    family: Any = tiny.FAMILIES[tiny.EVERY[name]]
    labels = torch.tensor([1, 3])
    search, samples = family.prompt_search(network, labels, 2), tiny.samples(network, family, 12)
    samples = Samples(samples.x[:6], labels[torch.arange(6) % 2])
    chosen = torch.randint(len(search.words), (2, 2), generator=seeded())
    loss = search.loss(torch.nn.functional.one_hot(chosen, len(search.words)).float(), *samples, seeded(5))
    reader = adversarial_prompts.told(family, network, labels, search.texts(chosen))
    if family is clip:
        expected = torch.nn.functional.cross_entropy(clip.predict(reader, samples.x), samples.y)
    else:
        noisy, t, target = text_to_image.diffuse(network, samples.x, seeded(5))
        expected = (text_to_image.denoise(reader, noisy, t, samples.y) - target).square().mean()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_finds_the_words_that_the_loss_asks_for() -> None:
    """A loss whose best words are known: the search reaches them from a uniform start."""
    wanted = torch.tensor([[3, 7], [11, 0]])

    def loss(w: Tensor, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
        return -(w.gather(2, wanted[..., None]).sum() + 0.05 * torch.randn((), generator=generator))

    shown = Samples(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64))
    found = list(adversarial_prompts.descent(loss, shown, (2, 2, 40), 30, 4, 0.1, seeded()))
    assert len(found) == 30 and torch.equal(found[-1][1], wanted)
    assert [step for step, (value, _) in enumerate(found, 1) if value < float("inf")] == [10, 20, 30]


def test_the_search_never_sees_what_is_counted_and_the_words_stay_out_of_the_report(tmp_path: Path) -> None:
    network = tiny.opened("clip", tmp_path / "clip")
    forget = tiny.samples(network, clip, 20)
    forget.x[:, 0, 0, 0] = torch.arange(20) / 1000
    measured: list[Tensor] = []
    searched: list[Tensor] = []

    class Watched:
        def __getattr__(self, name: str) -> Any:
            return getattr(clip, name)

        def prompt_search(self, *arguments: Any) -> mixtures.PromptSearch:
            search = clip.prompt_search(*arguments)

            def loss(w: Tensor, x: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
                searched.append(x)
                return search.loss(w, x, y, generator)

            return search._replace(loss=loss)

    def recognised(other: nn.Module, samples: Samples) -> Tensor:
        measured.append(samples.x)
        return torch.ones(len(samples.y), dtype=torch.bool)

    retain = Samples(torch.ones(3, *forget.x.shape[1:]), torch.zeros(3, dtype=torch.int64))
    found = adversarial_prompts.attack(
        network, Watched(), forget, retain, None, recognised, images=6, steps=12, restarts=2, generator=seeded()  # type: ignore[arg-type]
    )  # fmt: skip
    seen, counted = (
        {round(1000 * float(each)) for each in torch.cat(parts)[:, 0, 0, 0]} for parts in (searched, measured)
    )
    assert len(seen) == 6 and len(counted - {1000}) == 10 and not seen & counted
    assert [row["prompt"] for row in found["rows"]] == ["asked", "blind", "found"]
    assert set(found["rows"][2]) == {"prompt", "success", "total", "kept"}
    assert found["budget"]["steps"] == 12 and found["budget"]["restarts"] == 2 and found["budget"]["tokens"] == 3


def test_says_why_it_cannot_search(tmp_path: Path) -> None:
    network = tiny.opened("sd3", tmp_path / "sd3")
    forget = tiny.samples(network, text_to_image, 6)
    with pytest.raises(CannotAttack, match="different tokens"):
        adversarial_prompts.attack(network, text_to_image, forget, forget, None, recognised_none, generator=seeded())
    with pytest.raises(CannotAttack, match="no words"):
        adversarial_prompts.attack(nn.Linear(1, 1), clip, forget, forget, None, recognised_none, generator=seeded())
    one = Samples(forget.x[:1], forget.y[:1])
    with pytest.raises(CannotAttack, match="one sample"):
        adversarial_prompts.attack(network, text_to_image, one, one, None, recognised_none, generator=seeded())


def recognised_none(network: nn.Module, samples: Samples) -> Tensor:
    return torch.zeros(len(samples.y), dtype=torch.bool)
