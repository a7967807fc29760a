"""Families that restore images: masks, what the encoder is shown, and that nothing hidden reaches an output."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests import tiny, tiny_image_to_image
from worker.families import hidden_patches, inpainting_diffusion, masked_autoencoder, vq_autoencoder

CPU = torch.device("cpu")
every_network = pytest.mark.parametrize("name", tiny_image_to_image.NETWORKS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def directory(name: str, tmp_path: Path) -> Path:
    return tiny.write(name, tmp_path / "base")


@pytest.fixture
def family(name: str) -> ModuleType:
    return tiny.FAMILIES[tiny.NETWORKS[name]]


@pytest.fixture
def network(family: ModuleType, directory: Path) -> nn.Module:
    opened: nn.Module = family.load(directory, CPU)
    return opened


@pytest.mark.parametrize(
    ("pattern", "hidden"), [("centre_4", 16), ("centre_8", 64), ("outpainting", 192), ("random", 64), ("none", 0)]
)
def test_a_pattern_hides_as_many_patches_as_it_says(pattern: str, hidden: int) -> None:
    masks = hidden_patches(3, 16, 16, pattern, 0.25, generator())
    assert masks.dtype == torch.bool
    assert masks.flatten(1).sum(1).tolist() == [hidden] * 3
    if pattern.startswith("centre"):
        side = int(hidden**0.5)
        edge = (16 - side) // 2
        assert masks[0, edge : edge + side, edge : edge + side].all()
    if pattern == "random":
        assert not torch.equal(masks[0], masks[1])
        assert torch.equal(masks, hidden_patches(3, 16, 16, pattern, 0.25, generator()))


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_a_random_mask_leaves_something_on_either_side(share: float) -> None:
    hidden = hidden_patches(2, 2, 2, "random", share, generator()).flatten(1).sum(1)
    assert hidden.tolist() == [1, 1] if share < 0.5 else [3, 3]


@every_network
def test_nothing_hidden_reaches_the_output(family: ModuleType, network: nn.Module, directory: Path) -> None:
    if "norm_pix_loss" in json.loads((directory / "config.json").read_text()):
        network.config.norm_pix_loss = True  # type: ignore[union-attr]
    x = tiny.samples(network, family, 4).x
    mask = family.masks(network, 4, "random", 0.5, generator())
    hidden = family.hidden_pixels(network, mask)
    other = torch.where(hidden, torch.rand(x.shape, generator=generator(1)), x)
    one, two = (family.reconstruct(network, each, mask, torch.arange(4), 3) for each in (x, other))
    assert torch.equal(one, two)
    assert one.shape == x.shape
    assert one.abs().max() <= 1
    visible = torch.where(hidden, x, torch.rand(x.shape, generator=generator(1)))
    assert not torch.equal(one, family.reconstruct(network, visible, mask, torch.arange(4), 3))


@every_network
def test_the_encoder_is_a_part_and_shares_nothing_with_the_rest(family: ModuleType, network: nn.Module) -> None:
    inside, names = family.encoder(network), [name for name, _ in network.named_parameters()]
    assert 0 < len(inside) < len(family.trainable(network)) <= len(names)
    assert not any("decoder" in name or name.startswith(("up_blocks", "post_quant", "quantize")) for name in inside)
    tied: Any = network.decoder.decoder_norm if family is masked_autoencoder else None  # type: ignore[union-attr]
    if tied is not None:
        tied.weight = network.vit.layernorm.weight  # type: ignore[union-attr]
        assert set(inside) - set(family.encoder(network)) == {"vit.layernorm.weight"}


@every_network
def test_an_input_turns_back_into_its_pixels(family: ModuleType, network: nn.Module, directory: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    pixels = family.pixels(network, family.prepare(list(levels), directory, network))
    if pixels.shape[1] == 3:
        assert torch.allclose((pixels.permute(0, 2, 3, 1) + 1) * 127.5, torch.from_numpy(levels).float(), atol=1e-3)
    black, white = family.pixel_range(network)
    assert torch.allclose(family.pixels(network, black), -torch.ones(()))
    assert torch.allclose(family.pixels(network, white), torch.ones(()))


@every_network
def test_one_image_s_output_does_not_depend_on_its_batch(family: ModuleType, network: nn.Module) -> None:
    x = tiny.samples(network, family, 5).x
    mask = family.masks(network, 5, "centre_8", 0.5, generator())
    whole = family.reconstruct(network, x, mask, torch.arange(5), 3)
    alone = family.reconstruct(network, x[3:4], mask[3:4], torch.tensor([3]), 3)
    assert torch.allclose(whole[3:4], alone, atol=1e-5)


@every_network
def test_noise_views_keep_the_mask_and_lose_the_image(family: ModuleType, network: nn.Module) -> None:
    x = tiny.samples(network, family, 4).x
    mask = family.masks(network, 4, "centre_8", 0.5, generator())
    views = [family.views(network, each, mask, generator()) for each in (x, x.flip(0).clone())]
    noise = family.unit_noise(network, views[0], generator(1))
    assert noise.shape == x.shape
    noisy = [family.noise_views(network, each, mask, noise) for each in views]
    features = [family.encode(network, each)[0] for each in (*views, *noisy)]
    assert not torch.equal(features[0], features[1])
    assert not torch.equal(features[0], features[2])
    assert torch.equal(features[2], features[3])


@pytest.mark.parametrize("name", ["mae"])
def test_masked_autoencoder_encodes_and_decodes_as_the_library_does(network: nn.Module) -> None:
    x = tiny.samples(network, masked_autoencoder, 4).x
    mask = masked_autoencoder.masks(network, 4, "random", 0.75, generator())
    theirs: Any = network(x, noise=mask.flatten(1).float() + torch.arange(16) * 1e-3)
    features = masked_autoencoder.encode(network, (x, mask))
    assert torch.equal(theirs.mask.bool(), mask.flatten(1))
    assert torch.equal(theirs.logits, masked_autoencoder.decode(network, features, mask))
    ours = masked_autoencoder.reconstruction_loss(network, x, x, mask, generator())
    assert torch.allclose(theirs.loss, ours)


@pytest.mark.parametrize("name", ["mae"])
def test_positions_are_the_library_s_sines_also_in_a_fresh_network(network: nn.Module) -> None:
    inside: Any = network
    before = inside.decoder.decoder_pos_embed.clone()
    masked_autoencoder.reinitialise(network, generator())
    assert torch.equal(before, inside.decoder.decoder_pos_embed)
    inside.decoder.initialize_weights(16)
    assert torch.allclose(before, inside.decoder.decoder_pos_embed, atol=1e-6)
    assert torch.equal(inside.vit.embeddings.position_embeddings, before)  # of equal width here


@pytest.mark.parametrize("name", ["vq", "kl"])
def test_autoencoder_encodes_and_decodes_as_the_library_does(network: nn.Module) -> None:
    x = tiny.samples(network, vq_autoencoder, 4).x
    mask = vq_autoencoder.masks(network, 4, "none", 0.5, generator())
    theirs: Any = network(x)
    assert torch.equal(theirs.sample.clamp(-1, 1), vq_autoencoder.reconstruct(network, x, mask, torch.arange(4), 1))


@pytest.mark.parametrize("name", ["inpainting"])
def test_inpainting_features_are_what_the_up_blocks_read(network: nn.Module) -> None:
    x = tiny.samples(network, inpainting_diffusion, 4).x
    mask = inpainting_diffusion.masks(network, 4, "centre_8", 0.5, generator())
    views = inpainting_diffusion.views(network, x, mask, generator())
    features = inpainting_diffusion.encode(network, views)
    read: list[torch.Tensor] = []
    for block in network.up_blocks:  # type: ignore[union-attr]
        block.register_forward_pre_hook(lambda module, inputs: read.extend(inputs[1]))
    network.mid_block.register_forward_hook(lambda module, inputs, output: read.append(output))  # type: ignore[union-attr]
    network(*views[:2])
    assert len(features) == len(read)
    assert all(any(torch.equal(one, two) for two in read) for one in features)


@pytest.mark.parametrize("name", ["mae", "inpainting"])
def test_refuses_a_pattern_that_hides_nothing(family: ModuleType, network: nn.Module) -> None:
    with pytest.raises(ValueError, match="^pattern: "):
        family.masks(network, 1, "none", 0.5, generator())


@pytest.mark.parametrize("name", ["inpainting"])
@pytest.mark.parametrize(
    ("fields", "says"), [({"in_channels": 4}, "in_channels"), ({"num_class_embeds": 4}, "num_class_embeds")]
)
def test_refuses_a_u_net_that_is_not_image_conditioned(directory: Path, fields: dict[str, Any], says: str) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(ValueError, match=rf"^config\.json: {says}"):
        inpainting_diffusion.load(directory, CPU)


@pytest.mark.parametrize("name", ["vq"])
def test_refuses_an_image_that_the_encoder_cannot_halve(directory: Path) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": 7}))
    with pytest.raises(ValueError, match=r"^config\.json: sample_size"):
        vq_autoencoder.load(directory, CPU)
