"""SalUn's mask and step on a ResNet-18-sized network, beside what the released code does. `python -m tests.benchmarks.bench_salun`.

mask: one partial selection against two full argsorts over the pooled gradient, equal masks asserted first.
step: a whole training step with the masked update against one with plain SGD, interleaved. One thread each.
"""

import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

from worker.methods import salun

ROUNDS, BATCH, FRACTION = 9, 32, 0.5


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", num_labels=10
    )
    network = ResNetForImageClassification(config).eval()
    theta = list(network.parameters())
    gradient = [torch.randn_like(weight).abs() for weight in theta]
    mask(gradient)
    step(network, theta, salun.saliency_mask(gradient, FRACTION))


def mask(gradient: list[Tensor]) -> None:
    pool = torch.cat([each.flatten() for each in gradient])

    def ranked() -> Tensor:
        ranks = torch.argsort(torch.argsort(pool, descending=True))
        return ranks < int(FRACTION * len(pool))

    ours = torch.cat([each.flatten() for each in salun.saliency_mask(gradient, FRACTION)])
    assert torch.equal(ours, ranked())
    tell("salun.mask", lambda: salun.saliency_mask(gradient, FRACTION), ranked, len(pool))


def step(network: ResNetForImageClassification, theta: list[torch.nn.Parameter], kept: list[Tensor]) -> None:
    bits = [-each.to(torch.int8) for each in kept]
    masked = salun.make_optimizer(theta, "sgd", 1e-6, 0.9)
    plain = torch.optim.SGD(theta, 1e-6, momentum=0.9, weight_decay=5e-4)
    x, y = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))

    def backward() -> None:
        plain.zero_grad()
        F.cross_entropy(network(x).logits, y).backward()

    def with_mask() -> None:
        backward()
        salun.masked_step(masked, theta, bits, 5e-4, 0)

    def without() -> None:
        backward()
        plain.step()

    before = [weight.detach().clone() for weight in theta]
    with_mask()
    for weight, old, part in zip(theta, before, kept, strict=True):
        assert torch.equal(weight[~part], old[~part])
    tell("salun.step", with_mask, without, BATCH)


def tell(name: str, ours: Callable[[], object], theirs: Callable[[], object], n: int) -> None:
    """Medians of interleaved rounds; ratio is ours over theirs."""
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(ROUNDS):
        for side, run in (("ours", ours), ("theirs", theirs)):
            begun = time.perf_counter()
            run()
            times[side].append(time.perf_counter() - begun)
    medians = {side: round(statistics.median(each), 4) for side, each in times.items()}
    ratio = round(medians["ours"] / medians["theirs"], 3)
    print(json.dumps({"name": name, "ratio": ratio, **medians, "unit": "s", "n": n}))


if __name__ == "__main__":
    main()
