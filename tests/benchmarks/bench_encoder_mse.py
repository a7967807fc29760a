"""One step of encoder MSE beside the released loop's, on the same networks. `python -m tests.benchmarks.bench_encoder_mse`.

The released loop runs the teacher on forgotten images and on the noise of retained ones too, and multiplies both by 0. Its network
stands behind a frozen VQ tokeniser, which it runs three times per step; `tokenised` is that layout: a transformer encoder
over a tokeniser's codes. Our step with the mask fixed draws the teacher's answers from what it computed once (`once` is what
that took), with random masks it runs the teacher on retained images and noise. Processor seconds of one thread, interleaved,
medians of steps.
"""

import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DModel, VQModel
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from worker.families import Samples, inpainting_diffusion, masked_autoencoder, vq_autoencoder
from worker.methods import encoder_mse

ROUNDS, STEPS, BATCH = 3, 3, 8
Tokenise = Callable[[Tensor], Tensor]


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        mae = opened(masked_autoencoder, transformer(3, 64, 8), Path(folder) / "mae")
        compare("masked_autoencoder.fixed", masked_autoencoder, mae, "centre_8")
        compare("masked_autoencoder.random", masked_autoencoder, mae, "random")
        compare("vq_autoencoder.fixed", vq_autoencoder, opened(vq_autoencoder, vq(64), Path(folder) / "vq"), "none")
        unet = opened(inpainting_diffusion, inpainting(), Path(folder) / "unet")
        compare("inpainting_diffusion", inpainting_diffusion, unet, "centre_8")
        over_codes = opened(masked_autoencoder, transformer(4, 16, 1), Path(folder) / "codes")
        tokeniser = vq(64).eval()

        @torch.no_grad()
        def tokenise(pictures: Tensor) -> Tensor:
            codes, _, _ = tokeniser.quantize(tokeniser.encode(pictures).latents)
            return codes

        compare("tokenised.random", masked_autoencoder, over_codes, "random", tokenise)


def transformer(channels: int, size: int, patch: int) -> nn.Module:
    return ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=192,
            num_hidden_layers=6,
            num_attention_heads=6,
            intermediate_size=768,
            decoder_hidden_size=96,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=3,
            decoder_intermediate_size=192,
            image_size=size,
            patch_size=patch,
            num_channels=channels,
        )
    )


def vq(size: int) -> Any:
    down, up = ("DownEncoderBlock2D",) * 3, ("UpDecoderBlock2D",) * 3
    return VQModel(
        sample_size=size,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=(32, 32, 64),
        latent_channels=4,
        num_vq_embeddings=256,
    )


def inpainting() -> Any:
    return UNet2DModel(
        sample_size=32,
        in_channels=7,
        out_channels=3,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def opened(family: ModuleType, network: Any, directory: Path) -> nn.Module:
    network.save_pretrained(directory)
    schedule: Any = DDIMScheduler()
    schedule.save_pretrained(directory)
    loaded: nn.Module = family.load(directory, torch.device("cpu"))
    return loaded


def compare(name: str, family: ModuleType, base: nn.Module, pattern: str, tokenise: Tokenise | None = None) -> None:
    """`tokenise` turns the pictures, 64 pixels a side, into what the network takes: before the loop here, in every pass there."""
    shape = (3, 64, 64) if tokenise else family.image_shape(base)
    pictures = torch.rand(2, STEPS * BATCH, *shape) * 2 - 1
    forget, retain = (
        Samples(tokenise(each) if tokenise else each, torch.zeros(len(each), dtype=torch.int64)) for each in pictures
    )
    assert_equal_targets(family, base, forget.x[:2], retain.x[:2], pattern)
    times: dict[str, list[float]] = {"ours": [], "theirs": [], "once": []}
    for _ in range(ROUNDS):
        network = copy.deepcopy(base)
        stamps = [time.process_time()]
        encoder_mse.unlearn(
            network,
            family,
            forget,
            retain,
            epochs=2,
            batch_size=BATCH,
            pattern=pattern,  # type: ignore[arg-type]
            generator=torch.Generator().manual_seed(0),
            on_step=lambda *told: stamps.append(time.process_time()),  # noqa: B023
        )
        gaps = [after - before for before, after in zip(stamps, stamps[1:], strict=False)]
        times["ours"] += gaps[1:]
        times["once"].append(gaps[0] - statistics.median(gaps[1:]))
        times["theirs"] += released_loop(family, base, pictures, pattern, tokenise or (lambda x: x))
    medians = {side: round(statistics.median(each), 4) for side, each in times.items()}
    ratio = round(medians["theirs"] / medians["ours"], 2)
    print(json.dumps({"name": f"encoder_mse.step.{name}", "ratio": ratio, **medians, "unit": "s", "n": 2 * BATCH}))


def released_loop(
    family: ModuleType, base: nn.Module, pictures: Tensor, pattern: str, tokenise: Tokenise
) -> list[float]:
    """Seconds of each step: student, teacher and noise, each on the whole batch, behind the tokeniser."""
    network, teacher = copy.deepcopy(base), copy.deepcopy(base)
    generator = torch.Generator().manual_seed(0)
    theta = family.encoder(network)
    mover = encoder_mse.make_optimizer(theta, 5e-5, 0.95, 0.05)
    own = torch.arange(2 * BATCH) < BATCH  # retained
    seconds = []
    for forget, retain in zip(*(each.split(BATCH) for each in pictures), strict=True):
        begun = time.process_time()
        x = torch.cat([retain, forget])
        noise = torch.randn(x.shape) * x.std() + x.mean()
        mask = family.masks(network, len(x), pattern, 0.75, generator)
        views = family.views(network, tokenise(x), mask, generator)
        features = family.encode(network, views)
        with torch.no_grad():
            guide = family.encode(teacher, family.views(teacher, tokenise(x), mask, generator))
            misguide = family.encode(teacher, family.noise_views(teacher, views, mask, tokenise(noise)))
        loss = torch.zeros(())
        for feature, one, two in zip(features, guide, misguide, strict=True):
            loss = loss + ((feature - one).square().flatten(1).mean(1) * 2 * own).mean()
            loss = loss + 0.2 * ((feature - two).square().flatten(1).mean(1) * 2 * ~own).mean()
        encoder_mse.take_step(mover, loss, 5e-5, 3.0)
        seconds.append(time.process_time() - begun)
    return seconds


def assert_equal_targets(family: ModuleType, base: nn.Module, forget: Tensor, retain: Tensor, pattern: str) -> None:
    """What our teacher is asked in one pass is what theirs answers in two, row by row."""
    generator = torch.Generator().manual_seed(0)
    x = torch.cat([retain, forget])
    mask = family.masks(base, len(x), pattern, 0.75, generator)
    views = family.views(base, x, mask, generator)
    state = generator.get_state()
    ours = encoder_mse.targets(base, family, views, mask, len(retain), "unit", None, x, generator)  # type: ignore[arg-type]
    generator.set_state(state)
    n = family.unit_noise(base, tuple(each[len(retain) :] for each in views), generator)
    with torch.no_grad():
        guide = family.encode(base, views)
        misguide = family.encode(base, family.noise_views(base, views, mask, torch.cat([x[: len(retain)], n])))
    for one, two, three in zip(ours, guide, misguide, strict=True):
        assert torch.allclose(one, torch.cat([two[: len(retain)], three[len(retain) :]]), atol=1e-4)


if __name__ == "__main__":
    main()
