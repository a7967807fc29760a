"""Which packs may stay when versions go: those of which every byte is a value that a version that stays has.

A tensor's layers are a chain, and each beginning of the chain is a state that some version had. Where no version that stays
has the state, its layer holds values that are to go, though later layers cover them: the chain is written anew. A pack is one
blob, so a pack with one such layer goes whole, and what it holds besides moves. Nothing is read or written here.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from app.weights.manifest import Layer, Manifest, Segment, Tensor

Chain = tuple[Layer, ...]


@dataclass(frozen=True)
class Staying:
    """A version that stays. `own`: its pack. `base`: number of the version, earlier in the order, that it is stored against."""

    number: int
    manifest: Manifest
    own: str | None
    base: int | None
    new_pack: str  # what its pack is called if it gets another one


@dataclass(frozen=True)
class Plan:
    """`kept` chains stay as they are; of `extended` ones the last layer stays, on what comes before it, written anew."""

    staying: tuple[Staying, ...]
    condemned: frozenset[str]
    kept: frozenset[Chain]
    extended: frozenset[Chain]


class _Round:
    """What is to be done if these packs go, and which others must go then."""

    def __init__(self, staying: tuple[Staying, ...], condemned: frozenset[str]) -> None:
        self.condemned = condemned
        self.kept: set[Chain] = set()
        self.extended: set[Chain] = set()
        self.writers: set[int] = set()
        self.covered: dict[str, set[tuple[int, int]]] = defaultdict(set)
        self._moved: set[Segment] = set()
        self._rewritten: set[Chain] = set()
        self._living = {tensor.layers for each in staying for _, tensor in each.manifest.tensors()}
        for each in staying:
            for file in each.manifest.files:
                self._segment(each, file.segment)
                for tensor in file.tensors:
                    self._tensor(each, tensor)

    def _segment(self, staying: Staying, segment: Segment) -> None:
        if segment.pack not in self.condemned:
            self.covered[segment.pack].add((segment.offset, segment.length))
        elif segment not in self._moved:
            self._moved.add(segment)
            self.writers.add(staying.number)

    def _tensor(self, staying: Staying, tensor: Tensor) -> None:
        chain = tensor.layers
        if self._clean(chain):
            self.kept.add(chain)
            self._cover(tensor, chain)
        elif self._extends(chain):
            self.extended.add(chain)
            self._cover(tensor, chain[-1:])
        elif chain not in self._rewritten:
            self._rewritten.add(chain)
            self.writers.add(staying.number)

    def _clean(self, chain: Chain) -> bool:
        stays = all(layer.pack not in self.condemned for layer in chain)
        return stays and all(chain[:length] in self._living for length in range(1, len(chain)))

    def _extends(self, chain: Chain) -> bool:
        before = chain[:-1]
        seen = before in self.kept or before in self.extended or before in self._rewritten
        return seen and chain[-1].pack not in self.condemned

    def _cover(self, tensor: Tensor, layers: Chain) -> None:
        for layer in layers:
            self.covered[layer.pack].add((layer.offset, tensor.stored_bytes(layer)))


def plan(staying: Iterable[Staying], going: Iterable[Manifest]) -> Plan:
    """`staying` in the order in which they are stored: what one is stored against comes before it."""
    order = tuple(staying)
    manifests = [*(each.manifest for each in order), *going]
    sizes = {pack.name: pack.size for manifest in manifests for pack in manifest.packs}
    condemned: frozenset[str] = frozenset()
    while True:
        found = _Round(order, condemned)
        whole = {name for name, runs in found.covered.items() if sum(length for _, length in runs) == sizes[name]}
        own = {each.own for each in order if each.number in found.writers and each.own}  # at most one pack a version
        more = condemned | (sizes.keys() - whole) | own
        if more == condemned:
            break
        condemned = more
    planned = Plan(order, condemned, frozenset(found.kept), frozenset(found.extended))
    return planned if _has_an_order(planned) else Plan(order, frozenset(sizes), frozenset(), frozenset())


def _has_an_order(planned: Plan) -> bool:
    """Whether the packs of each version can be listed so that its tensors' layers follow that order, one from each."""
    placed: dict[Chain, tuple[str, ...]] = {}
    of: dict[int, dict[tuple[str, str], tuple[str, ...]]] = {}
    for each in planned.staying:
        mine = of[each.number] = {}
        base = of[each.base] if each.base is not None else {}
        for key, tensor in each.manifest.tensors():
            chain = tensor.layers
            if chain in planned.kept:
                placed[chain] = tuple(layer.pack for layer in chain)
            elif chain in planned.extended:
                placed[chain] = (*placed[chain[:-1]], chain[-1].pack)
            elif chain not in placed:
                placed[chain] = (*base.get(key, ()), each.new_pack)
            mine[key] = placed[chain]
        if ordered(mine.values()) is None:
            return False
    return True


def ordered(chains: Iterable[tuple[str, ...]]) -> list[str] | None:
    """The packs, each after those that its layers lie on; None when there is no such order, or a chain has one twice."""
    graph: TopologicalSorter[str] = TopologicalSorter()
    for chain in sorted(set(chains)):
        if len(set(chain)) < len(chain):
            return None
        graph.add(chain[0])
        for before, after in zip(chain, chain[1:], strict=False):
            graph.add(after, before)
    try:
        return list(graph.static_order())
    except CycleError:
        return None
