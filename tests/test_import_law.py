"""The import law: who may import what. The README states it; this test keeps it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = (
    "settings",
    "catalog",
    "errors",
    "records",
    "storage",
    "weights",
    "queue",
    "audit",
    "privacy",
    "logs",
    "report",
)
HEAVY = ("torch", "diffusers", "transformers")
SERVICE = ("app", "celery", "sqlalchemy", "fastapi", "kombu", "redis", "httpx")
TORCH_FREE = ("celery_app", "tasks", "supervisor", "lease", "register", "specification", "earlier", "warm")


def imports(path: Path) -> list[tuple[str, bool]]:
    """Every imported module of a file, with whether the import stands inside a function. Type-only imports count not."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    nested = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in nested) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module in ("app", "worker")
                else [node.module]
            )
            found += [(name, id(node) in nested) for name in names]
    return found


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name, _ in imports(path)}


@pytest.mark.parametrize("path", files("app"), ids=str)
def test_the_server_knows_no_worker_and_no_torch(path: Path) -> None:
    assert not roots(path) & {"worker", *HEAVY}


@pytest.mark.parametrize("path", files("worker"), ids=str)
def test_workers_take_only_the_shared_part_of_app(path: Path) -> None:
    taken = {name.split(".")[1] for name, _ in imports(path) if name.startswith("app.")}
    assert taken <= set(SHARED)
    assert "fastapi" not in roots(path)


@pytest.mark.parametrize("path", files("worker/methods"), ids=str)
def test_a_method_is_torch_and_nothing_else(path: Path) -> None:
    foreign = {root for root in roots(path) if root not in sys.stdlib_module_names}
    assert foreign <= {"torch"}


@pytest.mark.parametrize("path", files("worker/metrics"), ids=str)
def test_a_metric_is_arithmetic(path: Path) -> None:
    foreign = {root for root in roots(path) if root not in sys.stdlib_module_names}
    assert foreign <= {"torch", "numpy", "scipy", "sklearn", "torchmetrics", "worker"}
    assert {name for name, _ in imports(path) if name.startswith("worker")} <= {"worker.metrics"}


@pytest.mark.parametrize("path", files("worker/attacks"), ids=str)
def test_an_attack_is_torch_and_nothing_else(path: Path) -> None:
    foreign = {root for root in roots(path) if root not in sys.stdlib_module_names}
    assert foreign <= {"torch", "worker"}
    assert {name for name, _ in imports(path) if name.startswith("worker")} <= {"worker.attacks"}


@pytest.mark.parametrize("path", files("worker/evaluators"), ids=str)
def test_an_evaluator_is_a_network_and_its_package(path: Path) -> None:
    foreign = {root for root in roots(path) if root not in sys.stdlib_module_names}
    assert foreign <= {"torch", "numpy", "lpips", "torch_fidelity"}


@pytest.mark.parametrize("path", files("worker/families"), ids=str)
def test_a_family_knows_networks_only(path: Path) -> None:
    foreign = {root for root in roots(path) if root not in sys.stdlib_module_names}
    assert foreign <= {"torch", "diffusers", "transformers", "safetensors", "tokenizers", "numpy", "PIL", "worker"}
    ours = {name for name, _ in imports(path) if name.startswith("worker")}
    shared = ("attention", "denoising", "directory", "inputs", "lora", "mixtures", "pipelines", "prefix", "probing",
              "prompts")  # fmt: skip
    assert ours <= {"worker.families", *(f"worker.families.{name}" for name in shared)}


@pytest.mark.parametrize("path", files("app") + files("worker") + files("demo"), ids=str)
def test_no_import_hides_in_a_function(path: Path) -> None:
    assert [name for name, nested in imports(path) if nested] == []


def test_modules_are_fetched_by_name_in_one_place() -> None:
    calls = [path for path in files("app") + files("worker") if "import_module(" in path.read_text()]
    assert calls == [ROOT / "worker" / "by_name.py"]


@pytest.mark.parametrize("path", files("app") + files("worker") + files("demo") + files("migrations"), ids=str)
def test_files_are_short_and_say_what_they_are(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 500
    assert not text or ast.get_docstring(ast.parse(text))


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_server_loads_no_torch() -> None:
    loaded = loaded_after("import app.main, app.cli")
    assert "fastapi" in loaded
    assert not loaded & {"worker", *HEAVY}


def test_the_supervisor_s_side_loads_no_torch_and_no_web_framework(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LETHE_DATA", str(tmp_path))
    loaded = loaded_after("import " + ", ".join(f"worker.{name}" for name in TORCH_FREE))
    assert "celery" in loaded
    assert not loaded & {"fastapi", *HEAVY}
