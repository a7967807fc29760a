"""SLUG: Targeted Unlearning with Single Layer Unlearning Gradient.

Zikui Cai, Yaoteng Tan, M. Salman Asif. ICML 2025. arXiv 2407.11867.

One step along one gradient, in the one layer that matters most to what is to be forgotten and least to what is kept.

    Input   weights theta_o, forget sets D_f^1..D_f^k of one label each, retain set D_r
    1.  g_f <- grad of the mean forget loss over D_f,  g_r <- grad of the mean training loss over D_r, at theta_o
    2.  per layer l:  importance <- ||g_f,l|| / ||theta_l||,  alignment <- | cos(g_f,l, g_r,l) |
    3.  front <- per tower, the layers that no other beats in both: more important and less aligned
    4.  per layer of the front: theta_l <- theta_o,l + lambda * g_f,l (ASCENT on the forget loss), with lambda from
        lambda_0 = ||theta_l|| / (10 ||g_f,l||): double until D_f is forgotten and D_r begins to pay, then bisect
    5.  patch(D_f) <- the (l, lambda) that keeps D_r within bounds, forgets most, and then keeps most; of equals, the middle
        one of the layer that leaves it most room
    6.  theta <- theta_o + the k patches, one layer each; measured again. Elsewhere theta = theta_o, bit for bit

Symbols: theta `network`, D_f `forget`, D_r `retain`, l `layer`, lambda `step_size`; forget loss `family.forget_loss`
(CLIP: mean(1 - cos) of the pairs), training loss `family.training_loss`; whether a sample is still recognised `family.prober`.

Where we differ from the released code, and why:
- lambda > 0 climbs. The release's Hugging Face path stores the gradient of +L and still searches negative lambda: downhill.
- A candidate is judged by D_f and by D_r; there by D_f alone. What costs D_r more than `retain_drop` points is not chosen,
  unless every candidate does; then the one that costs least is.
- The best candidate is kept. There the last one is, which may not even forget.
- The search ends when the bracket is narrower than `tolerance`, or when its ends differ by one sample of D_f: no finer
  answer exists. There: always ten tries.
- A step that forgets D_f at no cost is lengthened as long as it costs nothing. The shortest one forgets the images that it
  was measured on and few others, the longest is about to cost: among equals the middle one is taken.
- The layer is chosen by what the search measured, among equals the one with the widest range of such steps. There: by hand,
  or the deepest of the front.
- Gradients: forget and retain never mix (there `.grad` runs on from one into the other), batches weigh by their size.
- g_r is drawn with a seed of its own, so it depends on theta_o and D_r alone and is remembered between requests.
- Layers are tensors (`group="tensor"`) or blocks (query, key and value; both halves of a feed-forward part). The release
  ranks tensors and then moves the block.
- Several labels: every gradient is taken at theta_o and the patches are added, as published. Here each label's step is
  searched with the earlier patches in place, since what two patches cost together is more than the sum; and two patches on
  one tensor are undefined there: here the later label takes the next layer of its own front.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from worker.families import Layered, Samples

OnStep = Callable[[int, int, dict[str, Any], dict[str, Any] | None], None]
Resume = Callable[[dict[str, Any]], int]
Remember = Callable[[str, Callable[[], Any]], Any]
Layers = Mapping[str, tuple[str, ...]]  # layer -> names of its tensors
Tensors = dict[str, Tensor]  # by name
Shares = Callable[[], tuple[float, float]]  # percent of D_f, and of D_r, that is still recognised
TINY = 1e-12  # below it a norm counts as zero


def unlearn(
    network: nn.Module,
    family: "Layered",
    forget: "Samples",
    retain: "Samples",
    *,
    patches: Literal["label", "one"] = "label",
    group: Literal["tensor", "block"] = "tensor",
    tower: Literal["any", "vision", "text"] = "any",
    alignment: Literal["absolute", "signed"] = "absolute",
    top: int = 1,
    forget_at_most: float = 0.0,
    retain_drop: float = 2.0,
    front_at_most: int = 100,
    tries: int = 12,
    tolerance: float = 0.1,
    probe_samples: int = 500,
    passes: int = 1,
    batch_size: int = 64,
    generator: torch.Generator,
    on_step: OnStep = lambda step, total, figures, moving: None,
    resume: Resume = lambda moving: 0,
    remember: Remember = lambda name, make: make(),
) -> dict[str, Any]:
    family.check(network, forget, "forget")
    family.check(network, retain, "retain")
    parts, kept, gone = split(network.eval(), family, forget, retain, patches)
    layers = eligible(family.layers(network, group), tower)
    theta = {name: network.get_parameter(name) for name in chain(*layers.values())}
    # 1.
    fixed = torch.Generator().manual_seed(0)
    g_r = remember(
        f"retain gradient, {tower} {group} {passes} {batch_size} {gone}",
        lambda: mean_gradient(network, theta, family.training_loss, kept, passes, batch_size, fixed, "retain"),
    )
    loss = family.forget_loss
    g_f = [mean_gradient(network, theta, loss, part, passes, batch_size, generator, "forget") for part in parts]
    # 2. and 3.
    points = [weigh(layers, theta, gradient, g_r, alignment) for gradient in g_f]
    fronts = [pareto_front(each)[:front_at_most] for each in points]
    # 4. to 6.
    seed = int(torch.randint(2**62, (), generator=generator))
    shown, few = [some(part, probe_samples, generator) for part in parts], some(kept, probe_samples, generator)
    top = max(1, min(top, family.label_count(network) // 10))
    asks = [asker(network, family, part, few, top, seed) for part in shown]
    before = [ask(())() for ask in asks]
    found: list[dict[str, list[Trial]]] = [{} for _ in parts]
    chosen: list[tuple[str, Trial]] = []
    step, total = 0, sum(len(front) for front in fronts)
    for front, whole, ask, trials, part in zip(fronts, g_f, asks, found, shown, strict=True):
        taken = {name for layer, _ in chosen for name in layers[layer]}
        free = [layer for layer in front if not taken & set(layers[layer])] or front
        limits = Limits(*ask(())(), 100 / len(part.y), forget_at_most, retain_drop, tries, tolerance)
        for layer in front:
            if layer in free:
                gradient = {name: whole[name] for name in layers[layer]}
                trials[layer] = search(ask(layers[layer]), theta, gradient, limits)
            step += 1
            on_step(step, total, figures_of(trials), None)
        layer, best = choose(trials)
        move(theta, {name: theta[name].detach().clone() for name in layers[layer]}, whole, best.step_size)
        chosen.append((layer, best))
    after = [ask([name for layer, _ in chosen for name in layers[layer]])() for ask in asks]
    return trace(layers, points, fronts, found, chosen, cosines(g_f), before, after)


class Point(NamedTuple):
    """One layer of step 2."""

    layer: str
    importance: float
    alignment: float


class Trial(NamedTuple):
    """One candidate of step 4: shares of D_f and D_r still recognised, and by how much it costs D_r too much (points)."""

    step_size: float
    forget: float
    retain: float
    excess: float


class Limits(NamedTuple):
    """What a search starts from and keeps to."""

    forget_before: float
    retain_before: float
    resolution: float  # one sample of D_f, in points
    forget_at_most: float
    retain_drop: float
    tries: int
    tolerance: float


def split(
    network: nn.Module, family: "Layered", forget: "Samples", retain: "Samples", patches: str
) -> tuple[list["Samples"], "Samples", list[int]]:
    """D_f by label, D_r without samples of these labels, and which labels D_r lost; or both as they are."""
    if patches == "one":
        return [forget], retain, []
    of_forget, of_retain = family.labels_of(network, forget.y), family.labels_of(network, retain.y)
    labels = of_forget.unique()
    kept = ~torch.isin(of_retain, labels)
    if not bool(kept.any()):
        raise ValueError("retain.y: every label that it holds is to be forgotten")
    parts = [type(forget)(forget.x[of_forget == label], forget.y[of_forget == label]) for label in labels]
    return parts, type(retain)(retain.x[kept], retain.y[kept]), of_retain[~kept].unique().tolist()


def eligible(layers: Layers, tower: str) -> Layers:
    chosen = {layer: names for layer, names in layers.items() if tower in ("any", layer.partition(".")[0])}
    if not chosen:
        raise ValueError(f"forget: the network has no editable layer in the tower {tower}")
    return chosen


def mean_gradient(
    network: nn.Module,
    theta: Mapping[str, Tensor],
    loss: Callable[[nn.Module, Tensor, Tensor, torch.Generator], Tensor],
    samples: "Samples",
    passes: int,
    batch_size: int,
    generator: torch.Generator,
    name: str,
) -> Tensors:
    """The gradient of the mean loss over `passes` passes in batches as equal as can be, each pass in a fresh order."""
    total = {name: torch.zeros_like(weight) for name, weight in theta.items()}
    count = len(samples.y)
    for _ in range(passes):
        order = torch.randperm(count, generator=generator).to(samples.y.device)
        for rows in order.tensor_split(-(-count // batch_size)):
            value = loss(network, samples.x[rows], samples.y[rows], generator) * (len(rows) / count / passes)
            gradients = torch.autograd.grad(value, list(theta.values()), allow_unused=True)
            for running, gradient in zip(total.values(), gradients, strict=True):
                if gradient is not None:
                    running.add_(gradient)
    size = float(norm(total.values()))
    if not TINY < size < float("inf"):
        raise ValueError(f"{name}: the gradient of its loss is {'0' if size <= TINY else 'not finite'}")
    return total


def norm(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack([tensor.detach().float().norm() for tensor in tensors]).norm()


def dot(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return sum(float((one[name] * other[name]).sum()) for name in one)


def weigh(layers: Layers, theta: Mapping[str, Tensor], forget: Tensors, retain: Tensors, alignment: str) -> list[Point]:
    """Importance and alignment of every layer that the forget gradient reaches."""
    points = []
    for layer, names in layers.items():
        g_f, g_r = ({name: gradient[name] for name in names} for gradient in (forget, retain))
        sizes = [float(norm(each)) for each in (g_f.values(), g_r.values(), (theta[name] for name in names))]
        if sizes[0] > TINY and sizes[2] > TINY:
            cosine = dot(g_f, g_r) / max(sizes[0] * sizes[1], TINY)
            points.append(Point(layer, sizes[0] / sizes[2], abs(cosine) if alignment == "absolute" else cosine))
    return points


def pareto_front(points: list[Point]) -> list[str]:
    """Per tower, the layers that no other layer of it beats in both; the most important first."""
    front = [
        point
        for point in points
        if not any(
            other.alignment < point.alignment and other.importance > point.importance
            for other in points
            if other.layer.partition(".")[0] == point.layer.partition(".")[0]
        )
    ]
    return [point.layer for point in sorted(front, key=lambda point: -point.importance)]


def some(samples: "Samples", count: int, generator: torch.Generator) -> "Samples":
    rows = torch.randperm(len(samples.y), generator=generator)[:count].sort().values.to(samples.y.device)
    return type(samples)(samples.x[rows], samples.y[rows])


def asker(
    network: nn.Module, family: "Layered", forget: "Samples", retain: "Samples", top: int, seed: int
) -> Callable[[Collection[str]], Shares]:
    """Tensor names -> what to ask after each change of them, D_f by its `top` answers and D_r by the first. Always with
    the same noise."""
    options = {} if top == 1 else {"top": top}  # a family whose answers have no second place takes none

    def of(names: Collection[str]) -> Shares:
        of_forget = family.prober(network, names, forget, torch.Generator().manual_seed(seed), **options)
        of_retain = family.prober(network, names, retain, torch.Generator().manual_seed(seed))
        return lambda: (percent(of_forget()), percent(of_retain()))

    return of


def percent(recognised: Tensor) -> float:
    return 100 * float(recognised.double().mean())


def search(ask: Shares, theta: Mapping[str, nn.Parameter], gradient: Tensors, limits: Limits) -> list[Trial]:
    """Every candidate of one layer; afterwards its tensors are as they were, bit for bit."""
    origin = {name: theta[name].detach().clone() for name in gradient}
    low, high = Trial(0.0, limits.forget_before, limits.retain_before, 0.0), None
    step_size = float(norm(origin.values()) / norm(gradient.values())) / 10
    trials: list[Trial] = []
    while len(trials) < limits.tries and not settled(low, high, limits):
        move(theta, origin, gradient, step_size)
        forget, retain = ask()
        trial = Trial(step_size, forget, retain, max(0.0, limits.retain_before - limits.retain_drop - retain))
        trials.append(trial)
        forgotten, free = forget <= limits.forget_at_most, retain >= limits.retain_before
        if trial.excess > 0 or (forgotten and not free):
            high = trial
        else:
            low = trial
        step_size = step_size * 2 if high is None else (low.step_size + high.step_size) / 2
    move(theta, origin, gradient, 0.0)
    return trials


@torch.no_grad()
def move(theta: Mapping[str, nn.Parameter], origin: Tensors, gradient: Tensors, step_size: float) -> None:
    """theta_l <- theta_o,l + lambda * g_f,l, in place."""
    for name, anchor in origin.items():
        theta[name].copy_(torch.add(anchor, gradient[name], alpha=step_size) if step_size else anchor)


def settled(low: Trial, high: Trial | None, limits: Limits) -> bool:
    """Whether nothing better can lie between a step that is too short and one that is long enough, or too long."""
    if high is None:
        return False
    narrow = high.step_size - low.step_size <= limits.tolerance * high.step_size
    return narrow or abs(low.forget - high.forget) <= limits.resolution * 1.001


def merit(trial: Trial) -> tuple[float, float, float]:
    """What the smallest of is best: within bounds, then forgotten, then kept."""
    return trial.excess, trial.forget, -trial.retain


def choose(trials: dict[str, list[Trial]]) -> tuple[str, Trial]:
    """Among equals the layer whose step has most room, from too short to too long, and the middle of that room."""
    best = min(merit(trial) for each in trials.values() for trial in each)
    equals = {layer: sorted(trial for trial in each if merit(trial) == best) for layer, each in trials.items()}
    layer = max(
        equals, key=lambda layer: equals[layer][-1].step_size / equals[layer][0].step_size if equals[layer] else 0
    )
    return layer, equals[layer][len(equals[layer]) // 2]


def figures_of(trials: dict[str, list[Trial]]) -> dict[str, Tensor]:
    """The best candidate until now."""
    _, best = choose(trials) if trials else ("", Trial(0.0, 100.0, 100.0, 0.0))
    return {"forget_share": torch.tensor(best.forget), "retain_share": torch.tensor(best.retain)}


def cosines(gradients: list[Tensors]) -> list[list[float]]:
    """Of each label's whole forget gradient with each other's."""
    sizes = [float(norm(gradient.values())) for gradient in gradients]
    pairs = [[dot(one, other) for other in gradients] for one in gradients]
    return [[round(pairs[i][j] / sizes[i] / sizes[j], 4) for j in range(len(sizes))] for i in range(len(sizes))]


def trace(
    layers: Layers,
    points: list[list[Point]],
    fronts: list[list[str]],
    found: list[dict[str, list[Trial]]],
    chosen: list[tuple[str, Trial]],
    cosine_matrix: list[list[float]],
    before: list[tuple[float, float]],
    after: list[tuple[float, float]],
) -> dict[str, Any]:
    """What was weighed and chosen; a label is called by its place among those that are forgotten."""
    return {
        "front": [
            [{**point._asdict(), "on_front": point.layer in front, "chosen": point.layer == layer} for point in each]
            for each, front, (layer, _) in zip(points, fronts, chosen, strict=True)
        ],
        "search": [{layer: [trial._asdict() for trial in trials] for layer, trials in each.items()} for each in found],
        "cosines": cosine_matrix,
        "patches": [{"layer": layer, "tensors": list(layers[layer]), **trial._asdict()} for layer, trial in chosen],
        "choice": [
            {"forget_before": old[0], "retain_before": old[1], "forget_after": new[0], "retain_after": new[1]}
            for old, new in zip(before, after, strict=True)
        ],
    }
