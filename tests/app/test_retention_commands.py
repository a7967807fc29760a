"""`lethe hold`, `lethe lift` and `lethe purge-proof` against a real server, which has a sweeper."""

from collections.abc import Iterator

import pytest

from tests import pictures
from tests.app.api.deployed import World, asked, forget_set
from tests.app.serving import key_of, served
from tests.app.test_cli import answer, lethe


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with served(tmp_path_factory.mktemp("served")) as (made, url), pytest.MonkeyPatch.context() as patch:
        patch.setenv("LETHE_URL", url)
        patch.setenv("LETHE_KEY", key_of(made))
        yield made


def test_a_request_is_held_lifted_and_its_purge_proven(world: World) -> None:
    made = forget_set(world.admin, body=pictures.imagefolder([3], 2, seed=50))
    request_id = asked(world.admin, forget={"dataset": made})["id"]
    assert "legal hold: audit" in lethe("hold", request_id, "--code", "audit").stdout
    answer("cancel", request_id)
    assert lethe("purge-proof", request_id, status=1).stderr.startswith("Not found: ")
    assert answer("lift", request_id) == {"request": request_id, "hold": None}
    again = asked(world.admin, forget={"dataset": forget_set(world.admin)})["id"]
    answer("cancel", again)  # nobody holds it: purged at once
    assert len(answer("purge-proof", again)["objects"]) == 2
    shown = lethe("purge-proof", again).stdout
    assert "3 samples, root " in shown and "absent now" in shown
    assert "purged already" in lethe("hold", again, "--code", "audit", status=1).stderr


def test_a_key_file_that_came_back_is_told_by_the_exit_status(world: World) -> None:
    made = forget_set(world.admin)
    request_id = asked(world.admin, forget={"dataset": made})["id"]
    answer("cancel", request_id)
    world.lethe.keyring.new_key(made)
    assert "STILL THERE: 1" in lethe("purge-proof", request_id, status=1).stdout
