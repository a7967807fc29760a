"""The OpenAPI document against a running server: hundreds of generated calls to each operation, valid and invalid, with a key of
each role, under every check that Schemathesis has."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.records.api_key import ROLES
from tests.app.api.deployed import add_version, asked
from tests.app.serving import served
from tests.conftest import key_for

# A rule that no schema can state (a name that must exist, a threshold's metric) refuses what the schema allows.
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", 400, 401, 403, 404, 409, 412, 413, 415, 416, 422, 428]

[[operations]]
include-path-regex = "^/v1/keys/"
parameters = {{ "path.key_id" = "{key}" }}
"""
THINGS = """
[[operations]]
include-path-regex = "^/v1/models/"
parameters = {{ "path.name" = "digits", "path.number" = "{version}", "path.alias" = "production", "path.path" = "config.json" }}

[[operations]]
include-path-regex = "^/v1/datasets/"
parameters = {{ "path.name" = "train-set" }}

[[operations]]
include-path-regex = "^/v1/(requests|jobs)/"
parameters = {{ "path.request_id" = "{request}", "path.job_id" = "{job}" }}
"""
ENDLESS = "/events/stream$"
EXAMPLES = 20  # for each operation, beside those that cover each rule of its schema: with all roles, hundreds
EXAMPLES_OF_ADMIN = 60  # the one key that no scope stops


@pytest.mark.verify
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("known", [True, False], ids=["ids_of_things", "any_ids"])
@pytest.mark.parametrize("role", ROLES)
def test_the_server_answers_as_its_document_says(role: str, known: bool, tmp_path: Path) -> None:
    with served(tmp_path, rate_limit="", rate_limit_address="") as (world, address):
        made = asked(world.admin)
        version, _ = add_version(world, tmp_path)
        things = THINGS.format(version=version, request=made["id"], job=made["jobs"][0]["id"])
        spare = key_for(world.lethe, "auditor").split("_")[1]  # else it would find its own key's id, and revoke it
        (tmp_path / "schemathesis.toml").write_text(CONFIG.format(key=spare) + (things if known else ""))
        examples, seed = EXAMPLES_OF_ADMIN if role == "admin" else EXAMPLES, 2 * list(ROLES).index(role) + known
        command = [
            sys.executable, "-m", "schemathesis.cli", "--config-file", str(tmp_path / "schemathesis.toml"), "run",
            f"{address}/openapi.json", "--header", f"Authorization: Bearer {key_for(world.lethe, role)}",
            "--checks", "all", "--phases", "examples,coverage,fuzzing", "--max-examples", str(examples), "--seed", str(seed),
            "--exclude-path-regex", ENDLESS, "--suppress-health-check", "all", "--no-color",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-20000:]
    tested, generated = (int(re.search(each, done.stdout)[1]) for each in (r"Tested: (\d+)", r"(\d+) generated"))  # type: ignore[index]
    assert tested >= 57 and generated >= examples * tested
    print(done.stdout[done.stdout.rindex("SUMMARY") :])
