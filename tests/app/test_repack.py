"""Repack: whatever goes, in whatever order, each version that stays keeps every byte, and no blob keeps what only others had."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.weights import CheckpointDamaged, Manifest, decode, digest, encode, packs_of
from app.weights.living import Staying, ordered, plan
from app.weights.repack import repack
from tests.app.test_weights import Content, Store, restored, safetensors, write

SIZE = 64  # elements of 4 bytes; a mask takes 8 bytes
NAMES = ("a", "b", "c")


class Line:
    """Versions of a model in a store: what each was made from, its files, its manifest and its pack."""

    def __init__(self, store: Store) -> None:
        self.store, self.rounds = store, 0
        self.manifests: dict[int, Manifest] = {}
        self.own: dict[int, str | None] = {}
        self.parents: dict[int, int | None] = {}
        self.files: dict[int, dict[str, bytes]] = {}

    def add(self, number: int, parent: int | None, files: dict[str, bytes]) -> None:
        with TemporaryDirectory() as folder:
            directory = write(Path(folder), files)
            manifest, _ = self.store.add(directory, self.manifests[parent] if parent is not None else None)
        name = f"packs/{self.store.versions}"
        self.manifests[number], self.parents[number], self.files[number] = manifest, parent, files
        self.own[number] = name if name in packs_of(manifest) else None

    def retire(self, going: set[int]) -> frozenset[str]:
        """As the server does it; the newest that stays is the head. The packs that are gone."""
        self.rounds += 1
        order = self._order([number for number in self.manifests if number not in going])
        planned = plan(order, [self.manifests[number] for number in going])
        found = list(repack(planned, self.store.blobs, self.store.folder))
        for each in found:
            old = self.manifests[each.number]
            assert decode(encode(each.manifest)) == each.manifest and digest(each.manifest) == digest(old)
            self.manifests[each.number] = each.manifest
        packs = {each.number: each.pack for each in found if each.pack}
        self.own = {
            n: packs[n].name if n in packs else None if p in planned.condemned else p for n, p in self.own.items()
        }
        for number in going:
            del self.manifests[number], self.own[number]
        for name in planned.condemned:
            self.store.blobs.delete(name)
        return planned.condemned

    def _order(self, alive: list[int]) -> list[Staying]:
        line, at = [], max(alive)
        bases: dict[int, int | None] = {}
        number: int | None = at
        while number is not None:
            if number in alive:
                line.append(number)
            number = self.parents[number]
        order = line[::-1] + [each for each in alive if each not in line]
        for each in order:
            above = self.parents[each]
            while above is not None and above not in alive:
                above = self.parents[above]
            bases[each] = above if above is not None or each == order[0] else at
        name = f"packs/round-{self.rounds}"
        return [Staying(n, self.manifests[n], self.own[n], bases[n], f"{name}-{n}") for n in order]

    def check(self) -> None:
        for number, manifest in self.manifests.items():
            assert restored(manifest, self.store) == self.files[number]
        assert set(self.store.blobs.list("packs/")) == {
            name for each in self.manifests.values() for name in packs_of(each)
        }


def mark(version: int, tensor: int, element: int) -> bytes:
    """A value that no other version, tensor or element has."""
    return bytes([0xE0 | version, 0x70 | tensor, element, 0xA5])


def tensors(values: list[list[bytes]]) -> Content:
    return {name: ("I32", (SIZE,), b"".join(value)) for name, value in zip(NAMES, values, strict=True)}


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[tuple[int | None, dict[int, int]]], list[set[int]]]:
    """Of each version its parent and how many elements of which tensors it changed; then who goes, round after round."""
    count = draw(st.integers(2, 7))
    changes = st.dictionaries(st.integers(0, len(NAMES) - 1), st.sampled_from([1, 5, 20, SIZE]), max_size=len(NAMES))
    versions = [(draw(st.integers(0, at - 1)) if at else None, draw(changes)) for at in range(count)]
    going = draw(st.permutations(range(count - 1)))  # the newest is the head
    cuts = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    rounds = [set(going[sum(cuts[:at]) : sum(cuts[: at + 1])]) for at in range(len(cuts))]
    return versions, [each for each in rounds if each]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories())
def test_versions_that_stay_keep_every_byte_and_no_value_of_the_others_is_left(
    history: tuple[list[tuple[int | None, dict[int, int]]], list[set[int]]],
) -> None:
    versions, rounds = history
    with TemporaryDirectory() as folder:
        line = Line(Store(Path(folder)))
        values: dict[int, list[list[bytes]]] = {}
        for number, (parent, changed) in enumerate(versions):
            now = [list(each) for each in values[parent]] if parent is not None else [[b""] * SIZE for _ in NAMES]
            for tensor, count in changed.items() if parent is not None else ((at, SIZE) for at in range(len(NAMES))):
                for element in range(count):
                    at = (element * 7 + number) % SIZE
                    now[tensor][at] = mark(number, tensor, at)
            values[number] = now
            whole = tensors(now)
            shards = {"x.safetensors": {"a": whole["a"], "b": whole["b"]}, "y.safetensors": {"c": whole["c"]}}
            files = {name: safetensors(content) for name, content in shards.items()}
            line.add(number, parent, files | {"config.json": b"config of %d" % (number // 3)})
        for going in rounds:
            line.retire(going)
            line.check()
            _no_value_left(line, values)


def _no_value_left(line: Line, values: dict[int, list[list[bytes]]]) -> None:
    blobs = line.store.blobs
    stored = b"".join(blobs.read_range(name, 0, blobs.size(name)) for name in blobs.list("packs/"))
    living = {value for number in line.manifests for tensor in values[number] for value in tensor}
    every = {value for each in values.values() for tensor in each for value in tensor}
    assert [value for value in every - living if value in stored] == []
    assert all(value in stored for value in living)


@pytest.fixture
def line(tmp_path: Path) -> Line:
    """Three versions: each changed a quarter of `a`; `b` and `c` are as they were."""
    line = Line(Store(tmp_path))
    values = [[mark(0, tensor, at) for at in range(SIZE)] for tensor in range(len(NAMES))]
    for number in range(3):
        for at in range(number * 8, number * 8 + 16) if number else ():
            values[0][at] = mark(number, 0, at)
        line.add(number, number - 1 if number else None, {"x.safetensors": safetensors(tensors(values))})
    return line


def test_a_mask_on_a_version_that_stays_is_not_written_again(line: Line) -> None:
    """Its parent becomes a base in full; its own pack stays where it is."""
    (last,) = {line.own[2]}
    gone = line.retire({0})
    line.check()
    assert last not in gone and line.own[2] == last and len(gone) == 2
    assert packs_of(line.manifests[2]) == {last, line.own[1]}


def test_nothing_is_rewritten_when_a_leaf_goes(line: Line) -> None:
    before = dict(line.manifests)
    line.add(3, 1, {"x.safetensors": safetensors(tensors([[mark(3, 0, at) for at in range(SIZE)]] * 3))})
    own = line.own[3]
    line.manifests[2], line.manifests[3] = line.manifests[3], line.manifests[2]  # the head is the newest number
    line.own[2], line.own[3] = line.own[3], line.own[2]
    line.files[2], line.files[3] = line.files[3], line.files[2]
    line.parents[2], line.parents[3] = 1, 1
    assert line.retire({2}) == {own}
    line.check()
    assert line.manifests[1] == before[1] and line.manifests[3] == before[2]


def test_damaged_bytes_are_not_repacked(line: Line) -> None:
    name = line.own[0]
    assert name is not None
    size = line.store.blobs.size(name)
    line.store.blobs.put(name, b"\0" * size)
    with pytest.raises(CheckpointDamaged):
        line.retire({0})


def test_packs_are_listed_after_those_that_they_lie_on() -> None:
    assert ordered([("b", "c"), ("a", "b"), ("d",)]) in (
        ["a", "d", "b", "c"],
        ["d", "a", "b", "c"],
        ["a", "b", "d", "c"],
    )
    assert ordered([("a", "b"), ("b", "a")]) is None and ordered([("a", "a")]) is None
