"""The search for markers finds them where they are, and a set that was purged leaves none: in files, rows and logs."""

import base64
import gzip
import io
import shutil
import sqlite3
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from app import sweeper
from app.deployment import Deployment
from app.privacy.images import decode, encode
from app.records.dataset import Dataset
from tests import markers, tiny
from tests.app import captioned
from tests.app.api.deployed import World, asked, forget_set, register, upload_set
from tests.conftest import client_for

IMAGES = markers.person(seed=1)
PIXELS = decode(next(iter(IMAGES.values())), "x")
WORD = markers.CONCEPT.encode()


def _zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("innocent.txt", content)
    return file.getvalue()


def _as_colour(pixels: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG", compress_level=9)
    return file.getvalue()


FORMS: dict[str, bytes] = {
    "plain": b"x" + WORD,
    "hex": WORD.hex().encode(),
    "base64": base64.b64encode(b"a" + WORD + b"b"),
    "base64 for URLs": base64.urlsafe_b64encode(b"ab" + next(iter(IMAGES.values()))),
    "UTF-16": markers.CONCEPT.encode("utf-16"),
    "zlib": b"..." + zlib.compress(WORD * 3),
    "gzip": b"..." + gzip.compress(WORD),
    "zip": b"..." + _zipped(b"so says " + WORD),
    "an image as sent": IMAGES[f"{markers.LABEL}/{markers.FILES[1]}.jpg"],
    "an image as kept": encode(PIXELS),
    "an image packed otherwise": b"..." + _as_colour(PIXELS),
    "pixels": b"..." + PIXELS.tobytes(),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_search_finds_a_marker_in_any_form(form: str) -> None:
    assert markers.holding(b"\0" * 50 + FORMS[form] + b"\0" * 50, markers.needles(IMAGES))
    assert not markers.holding(b"\0" * 500, markers.needles(IMAGES))


def deleted_again(database: sqlite3.Connection) -> None:
    database.execute("PRAGMA secure_delete = OFF")  # some builds of SQLite overwrite by themselves
    database.execute("CREATE TABLE planted (word TEXT)")
    database.execute("INSERT INTO planted VALUES (?)", (markers.CONCEPT,))
    database.commit()
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.execute("DROP TABLE planted")
    database.commit()
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def in_the_wal(database: sqlite3.Connection) -> None:
    database.execute("CREATE TABLE planted (word TEXT)")
    database.execute("INSERT INTO planted VALUES (?)", (markers.CONCEPT,))
    database.commit()


@pytest.mark.parametrize(("plant", "where"), [(deleted_again, "lethe.db"), (in_the_wal, "lethe.db-wal")])
@pytest.mark.parametrize("database_url", [""], ids=["sqlite"])
def test_the_search_finds_a_marker_in_a_free_page_and_in_the_wal(
    lethe: Deployment, tmp_path: Path, plant: Callable[[sqlite3.Connection], None], where: str
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in lethe.settings.data.glob("lethe.db*"):
        shutil.copy(file, copy)
    database = sqlite3.connect(copy / "lethe.db")
    database.execute("PRAGMA journal_mode = WAL")
    plant(database)
    found = markers.search([copy], markers.needles(IMAGES))
    database.close()
    assert [line for line in found if line.startswith(f"{copy / where}: {markers.CONCEPT}")]


def test_a_purged_set_leaves_no_marker_in_files_rows_or_logs(
    lethe: Deployment, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Cancelled, and deleted without a request: what needs no worker."""
    admin, sought = client_for(lethe), markers.needles(IMAGES)
    world = World(lethe, admin, admin, admin, tmp_path)
    album = captioned.archive([("park", "anna reads"), ("street", None)])
    for role in ("retain", "test"):
        assert upload_set(admin, role, role, album).status_code == 201
    answer = register(
        world, "words", tiny.write("clip", tmp_path / "clip"), family="clip", retain="retain", test="test"
    )
    assert answer.status_code == 201, answer.text
    sets = [forget_set(admin, body=markers.archive(IMAGES)) for _ in range(3)]
    posted = asked(admin, model="words", forget={"dataset": sets[0]}, concept=markers.CONCEPT)
    assert posted["concept"] == markers.CONCEPT
    everything = [lethe.settings.data]
    assert markers.search(everything, sought) == []
    assert admin.post(f"/v1/requests/{posted['id']}/cancel").status_code == 202
    assert admin.delete(f"/v1/datasets/{sets[1]}").status_code == 204
    with lethe.store.write() as session:
        session.get_one(Dataset, sets[2]).created_at -= 25 * 3600
    sweeper.sweep(lethe)
    assert [lethe.keyring.exists(each) for each in sets] == [False] * 3
    assert markers.search(everything, sought) == []
    assert markers.holding(markers.rows(lethe), sought) == set()
    assert markers.holding("".join(capfd.readouterr()).encode(), sought) == set()
