"""What the docs promise is read by a test: settings, methods, families, links and the demo's figures."""

import re
from pathlib import Path

import pytest

from app.catalog import ATTACKS, FAMILIES, METHODS
from app.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def test_every_setting_is_in_the_operators_table_with_its_default() -> None:
    text = (ROOT / "docs" / "operators.md").read_text()
    rows = dict(re.findall(r"^\| `(LETHE_\w+)` \| ([^|]*) \|", text, re.MULTILINE))
    assert set(rows) == {f"LETHE_{name.upper()}" for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        default = "empty" if field.default in ("", None) else str(field.default)
        assert rows[f"LETHE_{name.upper()}"].strip() == default


def test_the_readme_lists_the_catalogue() -> None:
    text = (ROOT / "README.md").read_text()
    for name, method in METHODS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| [`{name}`]"))
        assert all(family in row for family in method.families)
        assert (ROOT / "docs" / "methods" / f"{name}.md").is_file()
    assert all(f"| `{name}` |" in text for name in (*FAMILIES, *ATTACKS))


def anchors(page: Path) -> set[str]:
    """What GitHub calls the page's headings."""
    headings = re.findall(r"^#+ +(.+?) *$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", each).lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_to_a_file_and_its_heading(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, heading = target.partition("#")
        if not target.startswith("http"):
            to = page.parent / path if path else page
            assert to.exists(), target
            assert not heading or heading in anchors(to), target


def test_files_that_the_readme_s_tree_names_exist() -> None:
    text = (ROOT / "README.md").read_text()
    named = re.findall(r"`((?:app|worker|tests|docs)/[\w/.]+\.(?:py|md))`", text)
    assert named and [path for path in named if not (ROOT / path).exists()] == []
