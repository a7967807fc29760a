"""Methods for concepts of generators: each last line of a box, the closed forms, and where the attention goes."""

import copy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from tests import tiny
from tests.tiny_pipelines import CAPTIONS, NAMES, PIPELINES, write_pipeline
from worker.families import Samples, attention, class_diffusion, text_to_image
from worker.families.pipelines import denoiser
from worker.methods import esd, forget_me_not, overwrite, saddle, uce

ALL_PIPELINES = pytest.mark.parametrize("name", PIPELINES)


def pipeline(name: str, directory: Path) -> nn.Module:
    network = text_to_image.load(write_pipeline(name, directory), torch.device("cpu"))
    text_to_image.caption(network, CAPTIONS)
    return network


def sets(network: nn.Module, seed: int = 0) -> tuple[Samples, Samples]:
    """The first label is to be forgotten; the others stay."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((9, *text_to_image.image_shape(network)), generator=generator)
    return Samples(x[:3], torch.zeros(3, dtype=torch.int64)), Samples(x[3:], torch.arange(6) % 3 + 1)


def run(method: Any, base: nn.Module, forget: Samples, retain: Samples, **recipe: Any) -> nn.Module:
    network = copy.deepcopy(base)
    family: ModuleType = recipe.pop("family", text_to_image)
    method.unlearn(network, family, forget, retain, **recipe, generator=torch.Generator().manual_seed(0))
    return network


def moved(base: nn.Module, network: nn.Module) -> set[str]:
    after = network.state_dict()
    return {name for name, tensor in base.state_dict().items() if not torch.equal(tensor, after[name])}


def same(one: nn.Module, other: nn.Module) -> bool:
    return not moved(one, other)


@ALL_PIPELINES
def test_uce_is_the_dense_solution(name: str, tmp_path: Path) -> None:
    base = pipeline(name, tmp_path)
    network = run(uce, base, *sets(base), erase_scale=0.7, preserve_scale=1.3, ridge=0.4)
    with torch.no_grad():
        erased, guide, kept = (
            text_to_image.prompt_vectors(base, torch.tensor(rows)).double().T for rows in ([0], [4], [1, 2, 3])
        )
    after = text_to_image.projections(network)
    assert len(after) > 0
    for key, before in text_to_image.projections(base).items():
        W = before.detach().double()
        left = 0.4 * W + 0.7 * (W @ guide) @ erased.T + 1.3 * (W @ kept) @ kept.T
        right = 0.4 * torch.eye(W.shape[1]).double() + 0.7 * erased @ erased.T + 1.3 * kept @ kept.T
        expected = left @ torch.linalg.inv(right)
        assert (after[key].double() - expected).norm() <= 1e-5 * expected.norm()
        assert (W - expected).norm() > 1e-3 * expected.norm()


@ALL_PIPELINES
def test_uce_is_a_patch_of_low_rank_that_can_be_taken_back(name: str, tmp_path: Path) -> None:
    base = pipeline(name, tmp_path)
    forget, retain = sets(base)
    network = run(uce, base, forget, retain, guide="next")
    before, after = text_to_image.projections(base), text_to_image.projections(network)
    assert moved(base, network) == set(before)
    kept, nobody = torch.tensor([1, 2, 3]), torch.tensor([], dtype=torch.int64)
    c, p, g, none = (uce.columns(base, text_to_image, rows) for rows in (forget.y[:1], kept, kept[:1], nobody))
    assert none.shape == (c.shape[0], 0)
    C, left = torch.cat([c, p], 1), torch.cat([g - c, torch.zeros_like(p)], 1)
    V = uce.right_factor(C, 0.5)
    for key, W in before.items():
        change = (after[key] - W).detach()
        assert torch.linalg.matrix_rank(change, atol=1e-5, rtol=1e-3) <= c.shape[1]
        undone = nn.Parameter(after[key].detach().clone())
        uce.edit(undone, -left @ torch.linalg.inv(torch.eye(V.shape[0]) + V @ left), V)
        assert (undone - W).norm() <= 1e-5 * W.norm()


def test_uce_reads_the_concept_as_its_guide_and_keeps_the_kept(tmp_path: Path) -> None:
    base = pipeline("sd", tmp_path)
    forget, retain = sets(base)
    network = run(uce, base, forget, retain, guide="next", ridge=1e-4)
    alone = run(uce, base, forget, retain, guide="next", ridge=1e-4, preserve_scale=0.0)
    vectors = text_to_image.prompt_vectors(base, torch.arange(4)).detach().T
    for key, W in text_to_image.projections(base).items():
        edited, lonely = (text_to_image.projections(each)[key] for each in (network, alone))
        assert (edited @ vectors[:, 0] - W @ vectors[:, 1]).norm() < 0.01 * (W @ vectors[:, 1]).norm()
        hurt = [(each @ vectors[:, 1:] - W @ vectors[:, 1:]).norm() for each in (edited, lonely)]
        assert hurt[0] < 0.1 * hurt[1]


def test_uce_guides_to_a_label_that_stays_and_says_so_where_none_does(tmp_path: Path) -> None:
    base = pipeline("sd", tmp_path)
    texts = uce.guide_texts(base, text_to_image, torch.tensor([0, 1, 3]), torch.tensor([0, 1, 3]), "next")
    assert texts.tolist() == [2, 2, 2]
    everyone = Samples(sets(base)[1].x[:4], torch.arange(4))
    with pytest.raises(ValueError, match=r"forget\.y: every label"):
        run(uce, base, everyone, everyone, guide="next")


def test_uce_tells_how_much_each_map_changed(tmp_path: Path) -> None:
    base = pipeline("sd", tmp_path)
    network, told = copy.deepcopy(base), []
    trace = uce.unlearn(
        network,
        text_to_image,
        *sets(base),
        generator=torch.Generator(),
        on_step=lambda *step: told.append(float(step[2]["relative_change"])),
    )
    assert (trace["erased"], trace["preserved"]) == (1, 3)
    assert list(trace["relative_change"].values()) == told
    name, W = next(iter(text_to_image.projections(base).items()))
    change = (text_to_image.projections(network)[name] - W).norm() / W.norm()
    assert trace["relative_change"][name] == pytest.approx(float(change), rel=1e-4)


ESD = {"steps": 3, "sampling_steps": 4, "trajectories": 2, "learning_rate": 1e-3}


@ALL_PIPELINES
def test_esd_moves_its_variant_s_weights_and_no_other(name: str, tmp_path: Path) -> None:
    base = pipeline(name, tmp_path)
    cross, all_of_it = set(text_to_image.cross_attention(base)), set(text_to_image.trainable(base))
    by_name = moved(base, run(esd, base, *sets(base), **ESD, variant="x"))
    unconditional = moved(base, run(esd, base, *sets(base), **ESD, variant="u"))
    assert by_name and by_name <= cross
    assert unconditional and unconditional <= all_of_it - cross


def test_esd_reads_no_image_and_no_retain_set(tmp_path: Path) -> None:
    base = pipeline("sd", tmp_path)
    (forget, retain), (other, others) = sets(base), sets(base, 1)
    assert same(run(esd, base, forget, retain, **ESD), run(esd, base, other, others, **ESD))
    assert not same(run(esd, base, forget, retain, **ESD), run(esd, base, Samples(other.x, other.y + 1), others, **ESD))


def test_esd_s_target_is_guidance_away_and_training_comes_nearer_to_it(tmp_path: Path) -> None:
    base = pipeline("sd_v", tmp_path)
    x, t, y = torch.randn(11, 4, 8, 8), torch.arange(11) * 9, torch.arange(11) % 4
    target = esd.erased_targets(base, text_to_image, x, t, y, 1.5)
    with torch.no_grad():
        nothing, something = (text_to_image.denoise(base, x, t, each) for each in (torch.full_like(y, 4), y))
    assert torch.allclose(target, nothing - 1.5 * (something - nothing), atol=1e-5)
    losses: list[float] = []
    recipe = ESD | {"steps": 40, "batch_size": 8, "learning_rate": 1e-2}
    run(esd, base, *sets(base), **recipe, on_step=lambda *told: losses.append(float(told[2]["forget_loss"])))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("method", [overwrite, saddle])
@ALL_PIPELINES
def test_only_what_reads_the_text_moves_when_told_so(method: Any, name: str, tmp_path: Path) -> None:
    base = pipeline(name, tmp_path)
    network = run(method, base, *sets(base), steps=2, batch_size=2, train="cross_attention")
    assert moved(base, network) and moved(base, network) <= set(text_to_image.cross_attention(base))


@pytest.fixture
def unet(tmp_path: Path) -> nn.Module:
    return class_diffusion.load(tiny.write("unet", tmp_path), torch.device("cpu"))


def labelled(network: nn.Module, seed: int = 1) -> tuple[Samples, Samples]:
    whole = tiny.samples(network, class_diffusion, 40, seed)
    gone = whole.y == 0
    return Samples(whole.x[gone], whole.y[gone]), Samples(whole.x[~gone], whole.y[~gone])


@pytest.mark.parametrize("method", [overwrite, saddle])
def test_at_the_base_the_help_term_asks_for_nothing_and_without_it_the_retain_set_is_never_read(
    method: Any, unet: nn.Module
) -> None:
    recipe = {"family": class_diffusion, "steps": 2, "batch_size": 8}
    (forget, retain), (_, other) = labelled(unet), labelled(unet, 2)
    help_losses: list[float] = []
    run(method, unet, forget, retain, **recipe, on_step=lambda *told: help_losses.append(float(told[2]["help_loss"])))
    assert help_losses[0] == 0
    assert help_losses[1] > 0
    alone = run(method, unet, forget, retain, **recipe, beta=0.0)
    assert same(alone, run(method, unet, forget, other, **recipe, beta=0.0))
    assert not same(alone, run(method, unet, forget, retain, **recipe))


@pytest.mark.parametrize("what", ["next", "uniform", "null"])
def test_overwrite_comes_nearer_to_the_base_s_other_prediction_and_stays_at_the_kept(
    what: str, unet: nn.Module
) -> None:
    forget, retain = labelled(unet)
    recipe = {"family": class_diffusion, "steps": 20, "batch_size": 8, "learning_rate": 1e-2, "overwrite_with": what}
    with torch.no_grad():  # labels of a fresh network hardly differ: make them
        class_diffusion.label_tables(unet)["class_embedding.weight"].mul_(20)
    network, without = (run(overwrite, unet, forget, retain, **recipe, beta=beta) for beta in (3.0, 0.0))
    t = torch.full((len(forget.y),), 50)
    drawn = {"next": [1], "uniform": [1, 2, 3], "null": [4]}[what]

    def says(network: nn.Module, x: Tensor, label: int) -> Tensor:
        return class_diffusion.denoise(network, x, t[:1].expand(len(x)), torch.full((len(x),), label)).detach()

    wanted = torch.stack([says(unet, forget.x, label) for label in drawn]).mean(0)
    before, after = (F.mse_loss(says(each, forget.x, 0), wanted) for each in (unet, network))
    assert after < 0.5 * before
    kept = [
        sum(float(F.mse_loss(says(each, retain.x, label), says(unet, retain.x, label))) for label in (1, 2, 3))
        for each in (network, without)
    ]
    assert kept[0] < 0.5 * kept[1]


def test_overwrite_refuses_to_move_cross_attention_that_is_not_there(unet: nn.Module) -> None:
    with pytest.raises(ValueError, match="train: the network has no cross attention"):
        run(overwrite, unet, *labelled(unet), family=class_diffusion, train="cross_attention")


def test_saddle_s_ascent_ends_at_the_margin(unet: nn.Module) -> None:
    forget, retain = labelled(unet)
    told: list[dict[str, float]] = []
    recipe = {"family": class_diffusion, "steps": 50, "batch_size": 8, "learning_rate": 1e-2, "margin": 0.2}

    def note(step: int, total: int, figures: dict[str, Any], moving: Any) -> None:
        told.append({name: float(value) for name, value in figures.items()})

    run(saddle, unet, forget, retain, **recipe, beta=0.0, on_step=note)
    assert told[0]["forget_rise"] == 0
    assert told[0]["forget_loss"] == pytest.approx(0.2)
    late = [each["forget_rise"] for each in told[-10:]]
    assert min(late) > 0.1
    assert told[-1]["forget_loss"] < 0.05
    still = [each["forget_rise"] for each in told if each["forget_loss"] == 0]
    assert all(rise >= 0.2 for rise in still)


def test_an_image_beyond_the_margin_gives_no_gradient(unet: nn.Module) -> None:
    forget, _ = labelled(unet)
    worse = copy.deepcopy(unet)
    with torch.no_grad():
        worse.get_parameter("conv_out.bias").fill_(3.0)
    rise = saddle.error_rise(worse, unet, class_diffusion, *forget, torch.Generator().manual_seed(0))
    assert rise.shape == (len(forget.y),)
    assert bool((rise > 1).all())
    gradients = torch.autograd.grad((1 - rise).clamp(min=0).mean(), [*worse.parameters()], allow_unused=True)
    assert all(gradient is None or not gradient.any() for gradient in gradients)


@ALL_PIPELINES
def test_forget_me_not_takes_attention_away_from_the_concept(name: str, tmp_path: Path) -> None:
    base = pipeline(name, tmp_path)
    forget, retain = sets(base)
    recipe = {"steps": 6, "learning_rate": 1e-2}
    network = run(forget_me_not, base, forget, retain, **recipe)
    x, t = forget.x, torch.full((3,), 60)

    def paid(network: nn.Module) -> Tensor:
        return forget_me_not.attention_norm(text_to_image.attention_maps(network, x, t, forget.y)).detach()

    assert paid(network) < 0.7 * paid(base)
    assert same(network, run(forget_me_not, base, forget, sets(base, 1)[1], **recipe))
    gone = moved(base, run(forget_me_not, base, forget, retain, **recipe, train="cross_attention"))
    assert gone and gone <= set(text_to_image.cross_attention(base))


@ALL_PIPELINES
def test_maps_are_the_attention_that_the_layers_pay(name: str, tmp_path: Path) -> None:
    """With values only where the text is, a layer's output is what its map says."""
    base = pipeline(name, tmp_path)
    seen: list[tuple[Any, Tensor, Tensor, Any]] = []

    def look(layer: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        picture = inputs[0] if inputs else named["hidden_states"]
        seen.append((layer, picture, named["encoder_hidden_states"], named.get("image_rotary_emb")))

    hooks = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in attention.readers(base)]
    with torch.no_grad():
        text_to_image.denoise(base, sets(base)[0].x, torch.full((3,), 60), torch.arange(3))
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(attention.readers(base)) > 0
    for layer, picture, text, places in seen:
        joint = getattr(layer, "add_k_proj", None) is not None
        with torch.no_grad():
            for part in layer.to_v.parameters() if joint else ():
                part.zero_()
            values = (layer.add_v_proj if joint else layer.to_v)(text).unflatten(-1, (layer.heads, -1))
            paid = attention.attention(layer, picture, text, places)
            expected = layer.to_out[0](torch.einsum("nhpt,nthd->nphd", paid, values).flatten(2))
            named = {} if places is None else {"image_rotary_emb": places}
            output = layer(hidden_states=picture, encoder_hidden_states=text, **named)
        assert torch.allclose(output[0] if joint else output, expected, atol=1e-5)
    assert any(isinstance(layer, Attention) for layer, *_ in seen) or name.startswith("flux")


def test_maps_hold_the_name_s_tokens_and_the_end_and_nothing_else(tmp_path: Path) -> None:
    base = pipeline("sd", tmp_path)
    tokenizer: Any = base.tokenizers["text_encoder"]  # type: ignore[index]
    ids = tokenizer(CAPTIONS.texts[2]).input_ids
    words = [tokenizer.decode([token]).strip() for token in ids]
    found = attention.subject_tokens(base, torch.tensor([2, 4]))
    assert [words[at] for at in found[0].nonzero().flatten().tolist()] == [*NAMES[2].split(), "<|endoftext|>"]
    assert found[1].nonzero().flatten().tolist() == [1]
    x = sets(base)[0].x[:1]
    for each in text_to_image.attention_maps(base, x, torch.tensor([5]), torch.tensor([2])):
        assert bool((each[..., found[0]] > 0).all())
        assert not each[..., ~found[0]].any()
    assert not any(layer._forward_pre_hooks for layer in denoiser(base).modules())
