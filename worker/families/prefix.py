"""Layers that may be edited one by one, and what of a network's answer cannot change when only they do.

A layer is a weight matrix or a kernel, or several that work as one. A module that has finished before the first edited
tensor is read gives the same output every time, so its `forward` is replaced by that output while the answer is asked for
again. Of these outputs only those are kept that something still reads. Nothing here knows what kind of network it is.
"""

import copy
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Ask = Callable[[], Tensor]

NOT_LAYERS = ("bias", "norm", "embed", "position", "token", "probe", "scale")
BLOCKS = (
    (r"(.*?)\.?(?:[qkv]_proj|to_[qkv]|query|key|value)$", r"\1.qkv"),
    (r"(.*)\.(?:fc[12]|net\.0\.proj|net\.2)$", r"\1"),
    (r"(.*\.SelfAttention)\.[qkv]$", r"\1.qkv"),
    (r"(.*\.DenseReluDense)\.w[io](?:_[01])?$", r"\1"),
    (r"(.*)\.(?:intermediate|(?<!attention\.)output)\.dense$", r"\1.mlp"),
    (r"(.*)\.pwconv[12]$", r"\1.mlp"),
)


def editable(network: nn.Module, group: str, towers: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Layer -> names of its tensors. `towers`: how a tensor's name begins -> the tower that the layer's name begins with.

    `group`: `tensor` is one tensor each, `block` joins query, key and value, and the two halves of a feed-forward part.
    """
    found: dict[str, tuple[str, ...]] = {}
    for name, tensor in network.named_parameters():
        start = next((each for each in towers if name.startswith(each)), None)
        if start is None or tensor.ndim < 2 or any(part in name for part in NOT_LAYERS):
            continue
        layer = f"{towers[start]}.{name.removeprefix(start).removesuffix('.weight')}"
        for pattern, joined in BLOCKS if group == "block" else ():
            layer = re.sub(pattern, joined, layer)
        found[layer] = (*found.get(layer, ()), name)
    return found


@torch.no_grad()
def replayed(network: nn.Module, names: Collection[str], ask: Ask) -> Ask:
    """`ask` runs the network (in eval mode, the same way each time); the answer to it after only `names` changed.

    The returned function gives what `ask` would give, bit for bit, as long as no other tensor moves.
    """
    outputs, answer, reached = recorded(network, {id(network.get_parameter(name)) for name in names}, ask)
    if not reached:
        return lambda: answer
    with standing_in(network, outputs), Readers() as readers:
        ask()
    pruned = {
        module: [
            each if not isinstance(each, Tensor) or id(each) in readers.read else each.new_empty(0) for each in calls
        ]
        for module, calls in outputs.items()
    }

    @torch.no_grad()
    def again() -> Tensor:
        with standing_in(network, pruned):
            return ask()

    return again


def recorded(network: nn.Module, moving: set[int], ask: Ask) -> tuple[dict[str, list[Any]], Tensor, bool]:
    """Per outermost module that is done before a tensor of `moving` is read, the output of each call; then the answer,
    and whether one was read at all."""
    outputs: dict[str, list[Any]] = {}
    late: set[str] = set()
    reached = False

    def enter(owns: bool) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            nonlocal reached
            reached = reached or owns

        return hook

    def leave(name: str, holds: bool) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal reached
            reached = reached or holds  # a module may read its child's tensor without calling the child
            if reached:
                late.add(name)
            outputs.setdefault(name, []).append(own_copy(output))

        return hook

    hooks = []
    for name, module in network.named_modules():
        owns = any(id(each) in moving for each in module.parameters(recurse=False))
        holds = any(id(each) in moving for each in module.parameters())
        hooks += [
            module.register_forward_pre_hook(enter(owns)),
            module.register_forward_hook(leave(name, holds)),
        ]
    try:
        answer = ask()
    finally:
        for hook in hooks:
            hook.remove()
    early = outputs.keys() - late
    outermost = {name for name in early if not any(parent in early for parent in parents(name))}
    return {name: outputs[name] for name in outermost}, answer, reached


def parents(name: str) -> Iterator[str]:
    while name:
        name = name.rpartition(".")[0]
        yield name


@contextmanager
def standing_in(network: nn.Module, outputs: Mapping[str, list[Any]]) -> Iterator[None]:
    """Within the block these modules answer from the record, call by call."""
    patched = [network.get_submodule(name) for name in outputs]
    for module, calls in zip(patched, outputs.values(), strict=True):
        module.__dict__["forward"] = from_record(calls)
    try:
        yield
    finally:
        for module in patched:
            del module.__dict__["forward"]


def from_record(calls: list[Any]) -> Callable[..., Any]:
    left = iter(calls)
    return lambda *inputs, **options: own_copy(next(left))


def own_copy(output: Any) -> Any:
    """Of a container, so that a caller may put other tensors into the one it got."""
    return output if isinstance(output, Tensor) else copy.copy(output)


class Readers(TorchFunctionMode):
    """Notes every tensor that a torch function, a tensor's method or attribute is given."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.note([args, kwargs or {}])
        return func(*args, **(kwargs or {}))

    def note(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self.read.add(id(value))
        elif isinstance(value, dict):
            for each in value.values():
                self.note(each)
        elif isinstance(value, list | tuple):
            for each in value:
                self.note(each)
