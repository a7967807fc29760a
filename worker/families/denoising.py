"""The denoiser of a pipeline at work: latents and images, noise added and predicted, guidance, sampling.

x is a latent: the mean of the VAE's posterior, shifted and scaled as the pipeline does. What a denoiser predicts is read from
the scheduler's config:

    epsilon, v_prediction, sample    x_t = sqrt(a_t) x + sqrt(1 - a_t) eps, t uniform
    flow matching                    x_t = (1 - s) x + s eps, target eps - x; s from the scheduler's own grid at a
                                     logit-normal position (Esser et al., arXiv 2403.03206)

Guidance (Ho and Salimans, arXiv 2207.12598) is p(null) + g * (p(c) - p(null)), in one batch; a denoiser with a guidance
embedding (Flux dev) is told g instead. On a GPU the denoiser runs in bfloat16 under autocast; the VAE in float32.
"""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from worker.families.directory import read_config
from worker.families.inputs import check_labels
from worker.families.pipelines import CLASSES, FLUX, INDEX, PARTS, SD3, SDXL, denoiser, held, is_flow
from worker.families.prompts import Encoded, null_label, prompts

IMAGES_AT_ONCE = 8  # through the VAE


def image_shape(source: nn.Module | Path) -> tuple[int, int, int]:
    """(C, h, w) of a latent."""
    vae, config = configs(source)
    side = vae.get("sample_size") // vae_factor(vae) if "sample_size" not in config else config["sample_size"]
    height, width = (side, side) if isinstance(side, int) else side
    return int(vae.get("latent_channels", 4)), int(height), int(width)


def picture_size(source: nn.Module | Path) -> tuple[int, int]:
    """(H, W) of an image in pixels."""
    _, height, width = image_shape(source)
    factor = vae_factor(configs(source)[0])
    return height * factor, width * factor


def configs(source: nn.Module | Path) -> tuple[Any, Any]:
    """The VAE's and the denoiser's; what a U-Net's or an SD3 transformer's leaves open has no default size here."""
    if isinstance(source, Path):
        kind = read_config(source, INDEX).get("_class_name")
        if kind not in CLASSES:
            raise ValueError(f"{INDEX}: _class_name must be one of {', '.join(CLASSES)}")
        found = [read_config(source, f"{name}/config.json") for name in ("vae", next(iter(PARTS[kind])))]
    else:
        opened: list[Any] = [source.get_submodule("vae"), denoiser(source)]
        found = [dict(part.config) for part in opened]
    if not any(config.get("sample_size") for config in (found[1], found[0])):
        raise ValueError("vae/config.json: sample_size is needed to know which images the pipeline makes")
    return found[0], {key: value for key, value in found[1].items() if key != "sample_size" or value}


def vae_factor(vae: Any) -> int:
    return int(2 ** (len(vae["block_out_channels"]) - 1))


@torch.no_grad()
def encode_images(network: nn.Module, pixels: Tensor) -> Tensor:
    vae: Any = network.get_submodule("vae")
    means = torch.cat([vae.encode(part).latent_dist.mean for part in pixels.split(IMAGES_AT_ONCE)])
    shift, scale = latent_scale(vae)
    return (means - shift.to(means)) * scale.to(means)


@torch.no_grad()
def decode_latents(network: nn.Module, x: Tensor) -> Tensor:
    """Latents -> images (N, 3, H, W) in [-1, 1]."""
    vae: Any = network.get_submodule("vae")
    shift, scale = latent_scale(vae)
    whole = x / scale.to(x) + shift.to(x)
    return torch.cat([vae.decode(part).sample for part in whole.split(IMAGES_AT_ONCE)]).clamp(-1, 1)


def latent_scale(vae: Any) -> tuple[Tensor, Tensor]:
    """What the pipelines take from a latent, and multiply it by: one number each, or one per channel."""
    config = vae.config
    if config.latents_mean is not None and config.latents_std is not None:
        mean, std = (torch.tensor(each).view(1, -1, 1, 1) for each in (config.latents_mean, config.latents_std))
        return mean, config.scaling_factor / std
    return torch.tensor(config.shift_factor or 0.0), torch.tensor(config.scaling_factor)


def predict(network: nn.Module, x: Tensor, t: Tensor, prompt: Encoded, guidance: float) -> Tensor:
    trained: Any = denoiser(network)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
        if held(network).kind == FLUX:
            output = predict_packed(trained, x, t, prompt, guidance)
        elif held(network).kind == SD3:
            output = trained(x, prompt.states, prompt.pooled, t).sample
        else:
            added = (
                {"text_embeds": prompt.pooled, "time_ids": sizes(network, len(x))}
                if held(network).kind == SDXL
                else None
            )
            output = trained(x, t, prompt.states, added_cond_kwargs=added).sample
    return output.float()


def sizes(network: nn.Module, count: int) -> Tensor:
    """SDXL's size conditioning: original size, no crop, target size."""
    height, width = picture_size(network)
    return torch.tensor([[height, width, 0, 0, height, width]]).to(next(network.parameters())).repeat(count, 1)


def predict_packed(trained: Any, x: Tensor, t: Tensor, prompt: Encoded, guidance: float) -> Tensor:
    """Flux reads 2 x 2 latent pixels as one token, with its place in the picture; text tokens have no place."""
    count, channels, height, width = x.shape
    packed = x.view(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    rows, columns = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
    places = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).to(x)
    output = trained(
        packed,
        prompt.states,
        prompt.pooled,
        t / 1000,
        places,
        prompt.states.new_zeros(prompt.states.shape[1], 3),
        x.new_full((count,), guidance) if trained.config.guidance_embeds else None,
    ).sample
    patches = output.view(count, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(x.shape)


def told_guidance(network: nn.Module) -> bool:
    """Whether guidance is an input of the denoiser, which then never sees the null prompt."""
    config: Any = denoiser(network).config
    return bool(config.get("guidance_embeds"))


def diffuse(network: nn.Module, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, t and what the denoiser should predict, all drawn from the generator: the same on every device."""
    count = times(network)
    if is_flow(network):
        at = (torch.randn(len(x), generator=generator).sigmoid() * count).long().clamp(max=count - 1)
    else:
        at = torch.randint(count, (len(x),), generator=generator)
    return noised(network, x, torch.randn(x.shape, generator=generator).to(x.device), at.to(x.device))


def times(network: nn.Module) -> int:
    """How many noise levels the scheduler trains with."""
    scheduler: Any = held(network).scheduler
    return int(scheduler.config.num_train_timesteps)


def noised(network: nn.Module, x: Tensor, noise: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, t and the target at noise levels `at` (N,), from 0, the least, to `times`."""
    scheduler: Any = held(network).scheduler
    if is_flow(network):
        s = scheduler.sigmas.flip(0).to(x)[at][:, None, None, None]
        return (1 - s) * x + s * noise, scheduler.timesteps.flip(0).to(x)[at], noise - x
    schedule: Any = held(network).schedule
    targets = {
        "epsilon": lambda: noise,
        "sample": lambda: x,
        "v_prediction": lambda: schedule.get_velocity(x, noise, at),
    }
    return schedule.add_noise(x, noise, at), at, targets[schedule.config.prediction_type]()


def guided(network: nn.Module, x: Tensor, t: Tensor, y: Tensor, guidance_scale: float) -> Tensor:
    return predict_guided(network, x, t, asked(network, y, guidance_scale), guidance_scale)


def asked(network: nn.Module, y: Tensor, guidance_scale: float) -> Encoded:
    """The prompts that a guided prediction needs, encoded: the null prompts first, where it needs them."""
    if guidance_scale == 1 or told_guidance(network):
        return prompts(network, y)
    return prompts(network, torch.cat([torch.full_like(y, null_label(network)), y]))


def predict_guided(network: nn.Module, x: Tensor, t: Tensor, prompt: Encoded, guidance_scale: float) -> Tensor:
    """p(null) + g * (p(c) - p(null)); 1 is unguided, and a guidance embedding takes g as it is."""
    if len(prompt.states) == len(x):
        return predict(network, x, t, prompt, guidance_scale)
    without, within = predict(network, torch.cat([x, x]), torch.cat([t, t]), prompt, guidance_scale).chunk(2)
    return without + guidance_scale * (within - without)


@torch.no_grad()
def sample(
    network: nn.Module,
    labels: Tensor,
    seeds: Tensor,
    *,
    steps: int,
    guidance_scale: float,
    eta: float = 0.0,
    batch_size: int = 32,
) -> Tensor:
    """Images (N, 3, H, W) in [-1, 1] by the pipeline's own scheduler, one per text (the null prompt too); an image's noise
    depends on its own seed only. `eta` is DDIM's, and other schedulers do not read it."""
    check_labels(labels, null_label(network) + 1, "labels")
    if seeds.shape != labels.shape:
        raise ValueError(f"seeds: one per label is needed, {len(labels)} and not {tuple(seeds.shape)}")
    labels = labels.to(next(network.parameters()).device)
    parts = zip(labels.split(batch_size), seeds.split(batch_size), strict=True)
    return torch.cat([sample_batch(network, *part, steps, guidance_scale, eta) for part in parts])


def sample_batch(network: nn.Module, y: Tensor, seeds: Tensor, steps: int, guidance_scale: float, eta: float) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
    shape = image_shape(network)
    template: Any = held(network).scheduler
    scheduler: Any = template.from_config(template.config)
    set_times(network, scheduler, steps, y.device)
    understood = inspect.signature(scheduler.step).parameters
    options = {key: value for key, value in (("eta", eta), ("generator", generators)) if key in understood}
    x = torch.stack([torch.randn(shape, generator=each) for each in generators]).to(y.device)
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    prompt = asked(network, y, guidance_scale)
    for t in scheduler.timesteps:
        scaled = x if is_flow(network) else scheduler.scale_model_input(x, t)
        prediction = predict_guided(network, scaled, t.expand(len(x)), prompt, guidance_scale)
        x = scheduler.step(prediction, t, x, **options).prev_sample
    return decode_latents(network, x)


def set_times(network: nn.Module, scheduler: Any, steps: int, device: torch.device) -> None:
    """As the pipelines do: flow schedules may shift with the picture's size, and Flux starts from its own."""
    options: dict[str, Any] = {}
    config = scheduler.config
    if is_flow(network) and config.get("use_dynamic_shifting"):
        _, height, width = image_shape(network)
        patch = 2 if held(network).kind == FLUX else int(configs(network)[1]["patch_size"])
        smallest, largest = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        slope = (high - low) / (largest - smallest)
        options["mu"] = (height // patch) * (width // patch) * slope + low - slope * smallest
    if held(network).kind == FLUX:
        options["sigmas"] = np.linspace(1.0, 1 / steps, steps)
    scheduler.set_timesteps(steps, device=device, **options)


@torch.no_grad()
def trajectory(
    network: nn.Module, y: Tensor, generator: torch.Generator, *, steps: int, guidance_scale: float
) -> tuple[Tensor, Tensor]:
    """What the network meets on its way from noise to an image of each text: x_t (steps, N, C, h, w) and t (steps,)."""
    noise = torch.randn((len(y), *image_shape(network)), generator=generator).to(y.device)
    met, t = walked(network, noise, asked(network, y, guidance_scale), steps, guidance_scale)
    return met[:-1], t


@torch.no_grad()
def walked(
    network: nn.Module, noise: Tensor, prompt: Encoded, steps: int, guidance_scale: float
) -> tuple[Tensor, Tensor]:
    """From noise (N, C, h, w) to latents: every x_t, the latents last (steps + 1, N, C, h, w), and t (steps,).

    Diffusion walks by DDIM, whose steps are as many as asked for whatever the pipeline's scheduler.
    """
    template: Any = held(network).scheduler
    kind: Any = type(template) if is_flow(network) else DDIMScheduler
    scheduler = kind.from_config(template.config, **({} if is_flow(network) else {"clip_sample": False}))
    set_times(network, scheduler, steps, noise.device)
    met = [noise]
    for t in scheduler.timesteps:
        prediction = predict_guided(network, met[-1], t.expand(len(noise)), prompt, guidance_scale)
        met.append(scheduler.step(prediction, t, met[-1]).prev_sample)
    return torch.stack(met), scheduler.timesteps
