"""Figures by label tell which label a request forgot. A stored report has them sealed, under the key of the request: they go with it."""

import json
from typing import Any

from app.privacy.sealing import KeyGone, Keyring, seal_text, unseal_text

SEALED = "by_label"  # of the stored report: its rows' `by_label`, by the row's position


def stored(keyring: Keyring, request_id: str, report: dict[str, Any]) -> dict[str, Any]:
    """A report as it is to be kept; without the figures by label where the key is gone already."""
    told = {place: row["by_label"] for place, row in enumerate(report["figures"]) if "by_label" in row}
    kept = without(report)
    if not told:
        return kept
    try:
        return kept | {SEALED: seal_text(keyring.key(request_id), json.dumps(told), _context(request_id))}
    except KeyGone:
        return kept


def opened(keyring: Keyring, request_id: str | None, report: dict[str, Any]) -> dict[str, Any]:
    """A stored report with its figures by label, while their key is there. One of before they were sealed has them in its rows."""
    told: dict[str, Any] = {}
    if request_id is not None and SEALED in report:
        try:
            told = json.loads(unseal_text(keyring.key(request_id), report[SEALED], _context(request_id)))
        except KeyGone:
            return without(report)
    rows = [
        row | ({"by_label": told[str(place)]} if str(place) in told else {})
        for place, row in enumerate(report["figures"])
    ]
    return {name: value for name, value in report.items() if name != SEALED} | {"figures": rows}


def without(report: dict[str, Any]) -> dict[str, Any]:
    """The report without its figures by label, sealed or not."""
    rows = [{name: value for name, value in row.items() if name != "by_label"} for row in report["figures"]]
    return {name: value for name, value in report.items() if name != SEALED} | {"figures": rows}


def _context(request_id: str) -> bytes:
    return f"by_label/{request_id}".encode()
