"""A new fingerprint key takes over, and an old one ends: both can be interrupted anywhere and repeated.

    rotate: a key joins          every upload from now on has marks under it, too
            sets are marked      each registered set's index gets marks under it, from the set's images
            it is current        tombstones that match a registered sample are translated to it
    retire: translated again     what was laid meanwhile
            the rest dropped     with the key's row, in one transaction
            the key destroyed    and its marks taken out of the indexes

A sealed forget set keeps the marks that it came with: its own key would be needed, and it goes with its request. So does a
tombstone that matches no registered sample: it works as long as its key lives.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.deployment import Deployment
from app.errors import Refused
from app.fingerprint_keys import State, state_of, use
from app.privacy.fingerprints import FIRST, check_of, in_order, joined, mark, marks_of, parted, with_marks
from app.privacy.images import digest_of, read_set
from app.privacy.selection import Index, read_index
from app.records import dataset as datasets
from app.records import held_tombstone as held_tombstones
from app.records import history
from app.records import job as jobs
from app.records import named_key as named_keys
from app.records import tombstone as tombstones
from app.records.base import now
from app.records.dataset import Dataset
from app.records.named_key import NamedKey
from app.storage import BlobMissing

RESOURCE = "keyring"


@dataclass(frozen=True)
class Rotated:
    """`translated`: tombstones that the new key serves; `kept`: those that still need an older one."""

    name: str
    sets: int
    samples: int
    translated: int
    kept: int


@dataclass(frozen=True)
class Retired:
    """`dropped`: tombstones that protect no more, of how many models."""

    name: str
    dropped: int
    models: int
    done: bool


def rotate(lethe: Deployment, actor: str = "operator") -> Rotated:
    """Make the next fingerprint key, or finish an interrupted rotation to it."""
    name, before = _join(lethe, actor)
    with lethe.store.read() as session:
        listed = datasets.registered(session)
    marked = [_mark_set(lethe, dataset_id, name, before) for dataset_id in listed]
    pairs = _pairs(lethe, listed, name)
    with lethe.store.write() as session:
        joining = next((each for each in named_keys.hold(session) if each.name == name), None)
        if joining is None:
            raise Refused("key-retired", "name", f"{name} was retired as it joined.", "Rotate again.", 409)
        translated = _translate(session, pairs, name)
        session.flush()
        kept = sum(count for key, count in tombstones.counts(session).items() if key != name)
        done = Rotated(name, sum(each is not None for each in marked), sum(filter(None, marked)), translated, kept)
        if joining.current_since is None:  # else another run was first
            joining.current_since = session.scalar(select(now()))
            history.write(session, actor, "fingerprints.rotated", RESOURCE, details=asdict(done))
    return done


def retire(lethe: Deployment, name: str, code: str, yes: bool, actor: str = "operator") -> Retired:
    """End an old key, or one that joins and shall not. Without `yes` nothing is dropped: it is only said what would be."""
    with lethe.store.read() as session:
        row, current = session.get(NamedKey, name), named_keys.current(session).name
        listed = datasets.registered(session)
    _refuse_unless_old(row, name, current)
    pairs = _pairs(lethe, listed, current)
    with lethe.store.write() as session:
        row = next((each for each in named_keys.hold(session) if each.name == name), None)
        if row is not None:
            _translate(session, pairs, current)
            lost = state_of(lethe, row) in (State.LOST, State.ANOTHER)  # nothing new will be known by it
            if row.current_since is not None and not lost:  # nor was anything by one that only joined
                _refuse_needed(session, name)
        rest = tombstones.under(session, name)
        found = Retired(name, len(rest), len({each.model_id for each in rest}), yes)
        if not yes:
            return found
        if row is not None:
            tombstones.drop_under(session, name)
            row.retired_at = session.scalar(select(now()))
            details = {"name": name, "code": code, "tombstones": found.dropped, "models": found.models}
            history.write(session, actor, "fingerprints.retired", RESOURCE, details=details)
    lethe.keyring.destroy_named(name)
    for dataset_id in listed:
        _rewrite(lethe, dataset_id, lambda index: _without(index, name))
    return found


def _join(lethe: Deployment, actor: str) -> tuple[str, dict[str, bytes]]:
    """The name of the key that joins, made now or by a rotation that was interrupted, and the current key, if it is there,
    to check by it that images are as they were."""
    with lethe.store.write() as session:
        living = named_keys.hold(session)
        current = named_keys.current(session)
        lost = state_of(lethe, current) in (State.LOST, State.ANOTHER)
        before = {} if lost else {current.name: use(lethe, current)}
        if current.check_value is None:
            current.check_value = check_of(before[current.name])
        if living[0].current_since is None:
            use(lethe, living[0])
            return living[0].name, before
        name = (
            f"{FIRST}-{1 + sum(each.purpose == named_keys.Purpose.FINGERPRINT for each in named_keys.every(session))}"
        )
        named_keys.add(session, name, check_of(lethe.keyring.named_key(name)))
        history.write(session, actor, "fingerprints.key_made", RESOURCE, details={"name": name})
    return name, before


def _mark_set(lethe: Deployment, dataset_id: str, name: str, before: dict[str, bytes]) -> int | None:
    """Give every sample of a set a mark under the key that joins. How many got one; None for a set that is gone."""
    with lethe.store.read() as session:
        dataset = session.get_one(Dataset, dataset_id)
    try:
        index = read_index(dataset, lethe.keyring, lethe.blobs)
        if all(name in map(_key_of, marks_of(sample)) for sample in index["samples"]):
            return 0
        with lethe.blobs.open(dataset.blob) as file:
            digests = [digest_of(pixels) for pixels in read_set(file)[1]]
    except BlobMissing:
        if _gone(lethe, dataset_id):
            return None
        raise _damaged(dataset_id) from None
    for known, key in before.items():
        for sample, digest in zip(index["samples"], digests, strict=True):
            if known in map(_key_of, marks_of(sample)) and mark(known, key, digest) not in marks_of(sample):
                raise _damaged(dataset_id)
    key = lethe.keyring.named_key(name, make=False)
    return _rewrite(lethe, dataset_id, lambda index: _with(index, [mark(name, key, digest) for digest in digests]))


def _rewrite(lethe: Deployment, dataset_id: str, change: Callable[[Index], Index]) -> int | None:
    """Replace a set's index while nobody can erase the set. How many samples it has; None for a set that is gone."""
    with lethe.store.write() as session:
        dataset = session.get_one(Dataset, dataset_id, with_for_update=True)
        if dataset.purged_at is not None:
            return None
        before = read_index(dataset, lethe.keyring, lethe.blobs)
        after = change(before)
        if after != before:
            lethe.blobs.put(dataset.index_blob, json.dumps(after).encode())
    return len(after["samples"])


def _with(index: Index, added: list[str]) -> Index:
    """Each sample's new mark first."""
    samples = [
        with_marks(sample, [new, *(each for each in in_order(sample) if each != new)])
        for sample, new in zip(index["samples"], added, strict=True)
    ]
    return {**index, "samples": samples}


def _without(index: Index, name: str) -> Index:
    return {**index, "samples": [_stripped(sample, name) for sample in index["samples"]]}


def _stripped(sample: dict[str, Any], name: str) -> dict[str, Any]:
    kept = [each for each in in_order(sample) if _key_of(each) != name]
    return with_marks(sample, kept) if kept else sample


def _pairs(lethe: Deployment, listed: list[str], name: str) -> dict[str, str]:
    """The mark under `name` for every older mark of a registered sample."""
    pairs: dict[str, str] = {}
    for dataset_id in listed:
        with lethe.store.read() as session:
            dataset = session.get_one(Dataset, dataset_id)
        try:
            samples = read_index(dataset, lethe.keyring, lethe.blobs)["samples"]
        except BlobMissing:
            continue
        for sample in samples:
            found = {_key_of(each): each for each in marks_of(sample)}
            if name in found:
                pairs |= {each: found[name] for key, each in found.items() if key != name}
    return pairs


def _translate(session: Session, pairs: dict[str, str], name: str) -> int:
    """Tombstones, laid and held, of which a registered sample tells the mark under `name`. How many of those laid."""
    laid: dict[tuple[str, str], set[str]] = {}
    held: dict[str, set[str]] = {}
    translated = 0
    for row in tombstones.not_under(session, name):
        if (new := pairs.get(joined(row.key_name, row.fingerprint))) is not None:
            laid.setdefault((row.model_id, row.request_id), set()).add(new)
            session.delete(row)
            translated += 1
    for each in held_tombstones.not_under(session, name):
        if (new := pairs.get(joined(each.key_name, each.fingerprint))) is not None:
            held.setdefault(each.checkpoint_id, set()).add(new)
            session.delete(each)
    session.flush()
    for (model_id, request_id), marks in laid.items():
        tombstones.lay(session, model_id, request_id, marks)
        session.flush()
    for checkpoint_id, marks in held.items():
        held_tombstones.hold(session, checkpoint_id, marks - held_tombstones.of_checkpoint(session, checkpoint_id))
    return translated


def _refuse_unless_old(row: NamedKey | None, name: str, current: str) -> None:
    if row is None or row.purpose != named_keys.Purpose.FINGERPRINT:
        raise Refused("unknown-key", "name", "There is no such fingerprint key.", "See `lethe keyring status`.", 404)
    if name == current:
        rule, remedy = "New uploads are marked with it.", "Run `lethe keyring rotate-fingerprints` first."
        raise Refused("key-current", "name", rule, remedy, 409)


def _refuse_needed(session: Session, name: str) -> None:
    """While something that will lay tombstones knows its samples by this key only."""
    current = named_keys.current(session)
    needed = {
        "forget sets": datasets.sealed_before(session, current.made_at),
        "running jobs": jobs.running_since_before(session, current.current_since or 0.0),
        "samples of quarantined versions": len(held_tombstones.under(session, name)),
    }
    if any(needed.values()):
        counts = ", ".join(f"{count} {what}" for what, count in needed.items() if count)
        remedy = "They go as requests end (one that failed, when its retention is over): try again then, or cancel those requests."
        raise Refused("key-needed", "name", f"{counts} may be known by this key only.", remedy, 409)


def _key_of(text: str) -> str:
    return parted(text)[0]


def _gone(lethe: Deployment, dataset_id: str) -> bool:
    with lethe.store.read() as session:
        dataset = session.get_one(Dataset, dataset_id)
    return dataset.purged_at is not None or dataset.adopted_by == datasets.WITHDRAWN


def _damaged(dataset_id: str) -> Refused:
    return Refused(
        "set-damaged",
        dataset_id,
        "Its images are not those that it was registered with.",
        "Restore the blobs from their backup, or delete the set; then run this again.",
    )
