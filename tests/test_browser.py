"""The report's page in a real browser, from disk and without a network: it reads whole, its pictures decode, it asks for nothing."""

import io
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app import report_page
from tests import reports
from tests.app.test_report_page import Page, asked, rendered

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((path for path in map(shutil.which, NAMES) if path), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser on PATH: none of {', '.join(NAMES)}")

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync",
    "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
    "--force-device-scale-factor=1", "--force-color-profile=srgb", "--window-size=1280,5000",
)  # fmt: skip
PICTURES = {"grid.png": ((0, 130, 250), (320, 120)), "losses.png": ((250, 0, 130), (200, 90))}
STRANGER = '<img src="http://stranger.example/picture.png">'


@dataclass(frozen=True)
class Seen:
    page: Page  # the document after loading
    pixels: np.ndarray  # (height, width, 3), uint8
    complaints: list[str]  # of the console
    requests: list[str]  # what the page asked a network for, as far as the browser's own log knows

    def painted(self, picture: str) -> int:
        """Pixels in the colour of one of `PICTURES`."""
        return int((self.pixels == PICTURES[picture][0]).all(axis=2).sum())


def look(text: str, folder: Path) -> Seen:
    page, shot, log = folder / "report.html", folder / "shot.png", folder / "net.json"
    page.write_text(text)
    own = (f"--user-data-dir={folder / 'profile'}", f"--log-net-log={log}", f"--screenshot={shot}", "--dump-dom")
    command = [str(BROWSER), *FLAGS, *own, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    events = [event.get("params", {}) for event in json.loads(log.read_text())["events"]]
    asked_for = [each["url"] for each in events if each.get("initiator", "not an origin") != "not an origin"]
    complaints = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Seen(Page(done.stdout), np.asarray(Image.open(shot).convert("RGB")), complaints, asked_for)


def painted(colour: tuple[int, int, int], size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def whole() -> str:
    attacks = [reports.attack("relearning", 30, 40, threshold={"rule": "at_most", "value": 20.0}, passed=False)]
    document = reports.of_a_generator(verdict="failed", reasons=["threshold_missed"], attacks=attacks)
    return rendered(document, request=asked(), shown={name: painted(*each) for name, each in PICTURES.items()})


def test_a_report_on_disk_is_read_whole_without_a_network(tmp_path: Path) -> None:
    seen = look(whole(), tmp_path)
    for part in (
        "digits, version 2", "Failed. A rule of the model's policy was missed", "Unlearning accuracy, %", "97.50 87.12 to 99.56",
        "≥ 95 met", "Relearning", "≤ 20 missed", report_page.CAPTIONS["losses.png"], "not proof of removal",
    ):  # fmt: skip
        assert part in seen.page.text, part
    assert {name: seen.painted(name) for name in PICTURES} == {name: w * h for name, (_, (w, h)) in PICTURES.items()}
    assert (seen.complaints, seen.requests) == ([], [])


def test_what_a_page_must_not_do_would_be_seen(tmp_path: Path) -> None:
    """The check above can fail: by a picture that does not decode, and by a load that the policy refuses."""
    broken = (
        whole()
        .replace("data:image/png;base64,", "data:image/png;base64,AAAA", 1)
        .replace("<main>", f"<main>{STRANGER}")
    )
    seen = look(broken, tmp_path)
    assert seen.painted("grid.png") == 0 < seen.painted("losses.png")
    assert len(seen.complaints) == 1 and "Content Security Policy" in seen.complaints[0] and seen.requests == []


def test_a_load_that_no_policy_refuses_would_be_seen(tmp_path: Path) -> None:
    free = re.sub(r"<meta http-equiv[^>]*>", "", whole()).replace("<main>", f"<main>{STRANGER}")
    assert look(free, tmp_path).requests == ["http://stranger.example/picture.png"]
