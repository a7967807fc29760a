"""slug's step search beside the reference's way of judging a candidate. `python -m tests.benchmarks.bench_slug`.

theirs: per candidate a deep copy of the model, the layer written into it, then a whole evaluation: every name through the
text tower, the forget images one by one, all other images, the loss of both sets in both directions.
ours: the layer written in place, what precedes it and the other tower replayed. Same layers, steps and images; the same
shares, and so the same choice, are asserted before anything is timed. One thread; medians of interleaved rounds.
"""

import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from tests.tiny_pipelines import clip_tokenizer
from tests.trained import clip as trainer
from worker.families import Samples, clip
from worker.methods import slug

ROUNDS, PERSON, EACH, LAYERS = 3, 5, 2, 6
Layer = tuple[str, list[float]]


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        network = opened(Path(folder))
    every = trainer.sets(EACH, seed=1)
    gone = every.y == PERSON
    forget, retain = Samples(every.x[gone], every.y[gone]), Samples(every.x[~gone], every.y[~gone])
    draw = torch.Generator().manual_seed(0)
    layers = clip.layers(network, "tensor")
    theta = dict(network.named_parameters())
    eligible = {name: theta[name] for names in layers.values() for name in names}
    gradients = [
        slug.mean_gradient(network, eligible, loss, samples, 1, 64, draw, "bench")
        for loss, samples in ((clip.forget_loss, forget), (clip.training_loss, retain))
    ]
    front = slug.pareto_front(slug.weigh(layers, eligible, *gradients, "absolute"))[:LAYERS]
    ours: list[float] = []
    theirs: list[float] = []
    for layer in front:
        (name,) = layers[layer]
        first = float(theta[name].detach().norm() / gradients[0][name].norm()) / 10
        judge = slug.asker(network, clip, forget, retain, 1, 0)(layers[layer])
        for step_size in (first, 2 * first):
            origin = {name: theta[name].detach().clone()}
            slug.move(theta, origin, gradients[0], step_size)
            cached = judge()
            assert cached == by_reference(network, origin, gradients[0], step_size, forget, retain)
            ours.append(median(judge))
            slug.move(theta, origin, gradients[0], 0.0)
            theirs.append(
                median(lambda o=origin, s=step_size: by_reference(network, o, gradients[0], s, forget, retain))
            )
    for middle, tell in ((statistics.median, "median"), (statistics.mean, "mean")):
        pair = middle(ours), middle(theirs)
        figures = {"ratio": round(pair[1] / pair[0], 1), "ours": round(pair[0], 4), "theirs": round(pair[1], 4)}
        print(json.dumps({"name": f"slug.candidate.{tell}", **figures, "unit": "s", "n": len(ours)}))


def opened(directory: Path) -> nn.Module:
    """The architecture of the trained tests, with fresh weights: time does not depend on what they know."""
    tokenizer = clip_tokenizer(tuple(dict.fromkeys(" ".join(trainer.CAPTIONS.texts).split())), trainer.TOKENS)
    tokenizer.save_pretrained(directory)
    trainer.write_preprocessor(directory, trainer.SIZE)
    trainer.untrained(tokenizer).save_pretrained(directory)
    network = clip.load(directory, torch.device("cpu"))
    clip.caption(network, trainer.CAPTIONS)
    return network


@torch.no_grad()
def by_reference(
    network: nn.Module,
    origin: dict[str, torch.Tensor],
    gradient: dict[str, torch.Tensor],
    step_size: float,
    forget: Samples,
    retain: Samples,
) -> tuple[float, float]:
    edited = copy.deepcopy(network)
    slug.move(dict(edited.named_parameters()), origin, gradient, step_size)
    draw = torch.Generator().manual_seed(0)
    for samples in (forget, retain):
        for x, y in zip(samples.x.split(64), samples.y.split(64), strict=True):
            clip.training_loss(edited, x, y, draw)
            clip.forget_loss(edited, x, y, draw)
    prompts = clip.prompt_features(edited)
    shares = []
    for samples, batch in ((forget, 1), (retain, 64)):
        answers = torch.cat([clip.image_features(edited, part) for part in samples.x.split(batch)]) @ prompts.T
        beaten = (answers > answers.gather(1, samples.y[:, None])).sum(1)
        shares.append(slug.percent(beaten < 1))
    return shares[0], shares[1]


def median(run: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


if __name__ == "__main__":
    main()
