"""Train, beforehand, every base network that `make verify` uses: `python -m tests.trained`. What is there already is kept.

A name is given to `trained` with the same maker and the same sources as where it is used, or the work would be done twice.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tests.trained import (
    clip,
    concept_judge,
    feature_judge,
    flow,
    identities,
    inpainting_diffusion,
    masked_autoencoder,
    stable_diffusion,
    trained,
    vision_language,
    vq_autoencoder,
)

NETWORKS: Mapping[str, Callable[[], Path]] = {
    "clip": partial(trained, "clip", clip.make, clip, identities),
    "vision_language": partial(trained, "vision_language", vision_language.make, vision_language, identities),
    "feature_judge": partial(trained, "feature_judge", feature_judge.make, feature_judge),
    "masked_autoencoder": partial(
        trained, "masked_autoencoder", masked_autoencoder.make, masked_autoencoder, feature_judge
    ),
    "vq_autoencoder": partial(trained, "vq_autoencoder", vq_autoencoder.make, vq_autoencoder, feature_judge),
    "inpainting_diffusion": partial(
        trained, "inpainting_diffusion", inpainting_diffusion.make, inpainting_diffusion, feature_judge
    ),
    "concept_judge": concept_judge.directory,
    "text_to_image_autoencoder": stable_diffusion.autoencoder_directory,
    "stable_diffusion": stable_diffusion.directory,
    "flow": flow.directory,
}


def main() -> None:
    torch.set_num_threads(1)
    columns = (TextColumn("{task.description:<26}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns) as progress:
        bar = progress.add_task("", total=len(NETWORKS))
        for name, directory in NETWORKS.items():
            progress.update(bar, description=name)
            begun = time.monotonic()
            folder = directory()
            progress.console.print(f"{name:<26} {time.monotonic() - begun:6.0f} s  {folder}")
            progress.advance(bar)
        progress.update(bar, description="done")


if __name__ == "__main__":
    main()
