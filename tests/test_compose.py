"""Dockerfile, docker-compose.yml, .dockerignore and constraints.txt, read as the tools read them."""

import re
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.settings import Settings

ROOT = Path(__file__).parent.parent
COMPOSE = (ROOT / "docker-compose.yml").read_text()
SERVICES: dict[str, Any] = yaml.safe_load(COMPOSE)["services"]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = ("migrate", "server", "worker")


class Stage(NamedTuple):
    base: str
    instructions: list[tuple[str, str]]

    def values(self, name: str) -> list[str]:
        return [value for instruction, value in self.instructions if instruction == name]


def stages() -> dict[str, Stage]:
    """Every stage of the Dockerfile by name."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    found: dict[str, Stage] = {}
    for line in re.sub(r"\s*\\\n\s*", " ", "\n".join(lines)).splitlines():
        name, value = line.split(maxsplit=1)
        if name == "FROM":
            base, stage = value.split(" AS ")
            found[stage] = Stage(base, [])
        else:
            found[stage].instructions.append((name, value))
    return found


STAGES = stages()


def lineage(target: str) -> list[Stage]:
    """The stage and those it is built on, oldest first."""
    stage = STAGES[target]
    return [*(lineage(stage.base) if stage.base in STAGES else []), stage]


def installs(target: str) -> list[str]:
    """What `pip install` and `pip wheel` are asked for on the way to a target."""
    return [run for stage in lineage(target) for run in stage.values("RUN") if "pip install" in run]


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


@pytest.mark.parametrize("target", ["server", "worker"])
def test_images_stand_on_the_slim_python_and_run_as_an_ordinary_user(target: str) -> None:
    line = lineage(target)
    assert line[0].base == "python:3.11-slim"
    assert [user for stage in line for user in stage.values("USER")] == ["lethe"]
    assert line[-1].values("HEALTHCHECK") and line[-1].values("ENTRYPOINT") == ['["lethe"]']


def test_only_the_worker_image_has_torch() -> None:
    extra = '["optional-dependencies"]["worker"]'
    assert [name for name in ("server", "worker") if any(extra in run for run in installs(name))] == ["worker"]
    assert not any("torch" in run or "[worker" in run for run in installs("server"))
    assert not [
        need for need in PROJECT["dependencies"] if Requirement(need).name in {"torch", "diffusers", "transformers"}
    ]


@pytest.mark.parametrize("target", ["package", "server", "worker"])
def test_every_install_from_an_index_is_pinned(target: str) -> None:
    assert installs(target)
    for run in installs(target):
        assert "-c constraints.txt" in run or "--no-index" in run, run


def test_code_comes_after_packages_so_that_its_layer_is_small() -> None:
    for target in ("server", "worker"):
        line = lineage(target)
        copied = [value for stage in line for value in stage.values("COPY")]
        assert copied == ["pyproject.toml constraints.txt ./", "--from=package /wheels /wheels"]
        assert line[-1].values("RUN") == ["pip install --no-deps --no-index /wheels/*.whl"]


def test_the_build_sees_only_what_it_copies() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    copied = {
        name
        for stage in STAGES.values()
        for value in stage.values("COPY")
        for name in value.split()[:-1]
        if "--from" not in value
    }
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == copied


def test_the_services_and_what_each_runs() -> None:
    assert set(SERVICES) == {"postgres", "redis", *OURS}
    assert {name: SERVICES[name]["build"]["target"] for name in OURS} == {
        "migrate": "server",
        "server": "server",
        "worker": "worker",
    }
    assert SERVICES["migrate"]["command"] == ["migrate"]
    assert STAGES["server"].values("CMD")[-1] == '["serve"]' and STAGES["worker"].values("CMD")[-1] == '["work"]'
    assert SERVICES["migrate"]["restart"] == "on-failure:10"


def test_the_bell_refuses_rather_than_forgets() -> None:
    command = " ".join(SERVICES["redis"]["command"])
    assert "--maxmemory-policy noeviction" in command and "--appendonly yes" in command
    assert SERVICES["redis"]["healthcheck"]["test"] == ["CMD", "redis-cli", "ping"]
    assert SERVICES["postgres"]["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]


def test_compose_refuses_to_start_without_the_password_and_holds_none() -> None:
    environments = {name: service.get("environment", {}) for name, service in SERVICES.items()}
    secrets = {
        (name, key): value for name, given in environments.items() for key, value in given.items() if "PASSWORD" in key
    }
    assert secrets.keys() == {("postgres", "POSTGRES_PASSWORD"), *((name, "PGPASSWORD") for name in OURS)}
    for value in secrets.values():
        assert re.fullmatch(r"\$\{POSTGRES_PASSWORD:\?[^}]+\}", value)
    for name in OURS:
        assert re.fullmatch(r"[a-z+]+://lethe@postgres/lethe", environments[name]["LETHE_DATABASE_URL"])


@pytest.mark.parametrize("name", OURS)
def test_our_services_share_one_volume_and_have_no_privileges(name: str) -> None:
    service = SERVICES[name]
    assert service["volumes"] == ["data:/var/lib/lethe"]
    assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert not service.keys() & {"privileged", "user", "network_mode", "pid", "devices", "deploy"}


@pytest.mark.parametrize("name", OURS)
def test_every_lethe_variable_is_a_setting(name: str) -> None:
    given = dict(SERVICES[name]["environment"])
    given |= {
        pair.split("=")[0]: ""
        for stage in lineage(SERVICES[name]["build"]["target"])
        for value in stage.values("ENV")
        for pair in value.split()
    }
    variables = {variable.removeprefix("LETHE_").lower() for variable in given if variable.startswith("LETHE_")}
    assert {"database_url", "broker_url", "data"} <= variables <= set(Settings.model_fields)


def test_only_the_server_is_published_and_only_on_loopback() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["server"]
    assert SERVICES["server"]["ports"] == ["${LETHE_PUBLISH:-127.0.0.1:8765}:8765"]


def test_the_gpu_reservation_is_off_and_right_when_its_comment_signs_are_gone() -> None:
    assert "deploy" not in SERVICES["worker"]
    taken = re.sub(r"(?m)^    # (deploy:| {2,}\S)", r"    \1", COMPOSE)
    devices = yaml.safe_load(taken)["services"]["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]


def test_a_worker_has_time_to_give_its_job_back() -> None:
    given = int(SERVICES["worker"]["stop_grace_period"].removesuffix("s"))
    assert given > Settings.model_fields["grace_seconds"].default * 3 + 5


def test_constraints_pin_everything_the_project_names_within_its_bounds() -> None:
    pinned = pins()
    needs = [
        Requirement(need)
        for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
        for need in group
    ]
    for need in needs:
        name = canonicalize_name(need.name)
        assert name in pinned, f"{name} is not pinned"
        assert need.specifier.contains(pinned[name]), f"{need} against {pinned[name]}"


def test_constraints_work_on_any_machine() -> None:
    for name, version in pins().items():
        assert re.fullmatch(r"[a-z0-9][a-z0-9-]*", name), name
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version), f"{name}=={version} has a local version, a path or a marker"
    assert "lethe" not in pins()
