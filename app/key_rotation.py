"""What an operator does to keys as a whole: wrap all of them under a new master key, renew the API keys' secret, and replace the
key that tells duplicates."""

from dataclasses import dataclass
from pathlib import Path

from app.deployment import Deployment
from app.errors import Refused
from app.privacy import master_rotation
from app.privacy.fingerprints import check_of
from app.records import history
from app.records import named_key as named_keys
from app.records import request as requests
from app.records.named_key import NamedKey, Purpose

RESOURCE = "keyring"


@dataclass(frozen=True)
class Rewrapped:
    """`data`, `named`, `unreadable`: keys in the folder now. Not `done`: the operator has to put the new file in its place."""

    data: int
    named: int
    unreadable: int
    done: bool


@dataclass(frozen=True)
class Replaced:
    """`dropped`: requests that later ones for the same are not told of any more."""

    name: str
    dropped: int
    done: bool


def rotate_master(lethe: Deployment, new: Path | None, actor: str = "operator") -> Rewrapped:
    """One rotation of the master key, or the rest of an interrupted one."""
    ring = lethe.keyring
    with master_rotation.alone(ring):
        master_rotation.begin(ring, new)
        while master_rotation.rewrap(ring):
            continue  # until a pass finds nothing to do
        counts = ring.counts()
        if done := master_rotation.promote(ring):
            if ring.outside and counts["unreadable"]:
                raise _too_early(lethe, counts["unreadable"])
            with (
                lethe.store.write() as session
            ):  # before the last step: an interrupted rotation says it twice, never not at all
                history.write(session, actor, "keyring.rotated", RESOURCE, details=counts)
            master_rotation.finish(ring)
    return Rewrapped(**counts, done=done)


def _too_early(lethe: Deployment, unreadable: int) -> Refused:
    return Refused(
        "master-key-too-early",
        "LETHE_MASTER_KEY_FILE",
        f"{unreadable} key files do not open under it.",
        f"If it was put in place before they were wrapped under it, put the master key of before back and run this again; "
        f"what opens under neither is lost: delete those files in {lethe.keyring.folder}.",
        409,
    )


def renew_api_secret(lethe: Deployment, actor: str = "operator") -> None:
    """Destroy the key of the API keys' digests: no API key that was issued so far is known any more."""
    lethe.keyring.destroy_named(Purpose.API_KEYS)
    with lethe.store.write() as session:
        row = session.get_one(NamedKey, Purpose.API_KEYS)
        row.check_value = check_of(lethe.keyring.named_key(Purpose.API_KEYS))
        history.write(session, actor, "keyring.api_secret_renewed", RESOURCE)


def rotate_duplicates(lethe: Deployment, code: str, yes: bool, actor: str = "operator") -> Replaced:
    """The next key that tells duplicates, in place of the present one, which is destroyed with all that it made: no request can
    be asked again what it named. Without `yes` it is only said what would be. Killed before the end, it leaves a retired key
    that the sweeper destroys (app/returned_keys.py)."""
    with lethe.store.write() as session:
        old = named_keys.of_duplicates(session, change=True)
        name = f"{Purpose.DUPLICATES}-{2 + len(named_keys.retired_duplicates(session))}"
        found = Replaced(name, requests.fingerprinted(session), yes)
        if not yes:
            return found
        named_keys.replace_duplicates(session, old, name, check_of(lethe.keyring.named_key(name)))
        requests.drop_fingerprints(session)
        details = {"name": name, "code": code, "requests": found.dropped}
        history.write(session, actor, "duplicates.rotated", RESOURCE, details=details)
        retired = old.name
    lethe.keyring.destroy_named(retired)
    return found
