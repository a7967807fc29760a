"""The report as a page: complete, closed in itself, readable, and harmless whatever the weights' files are named."""

import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from app import report_page
from app.catalog import METRICS
from app.figures import met
from tests import pictures, reports

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "<script>alert(1)</script><img src=http://evil.example onerror=x>\"'"
VOID = {"meta", "img", "br", "hr", "link", "input"}
LOADING = {"src", "href", "action", "data", "poster", "srcset", "background", "formaction", "xlink:href"}


class Page(HTMLParser):
    """What a browser would see: tags, attributes, text; and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def version(**others: Any) -> report_page.Version:
    changes = {
        "tensors_total": 686,
        "tensors_changed": 3,
        "elements_total": 1000,
        "elements_changed": 41,
        "bytes_added": 90,
    }
    given = {"model": "digits", "family": "class_diffusion", "number": 2, "parent": 1, "status": "released",
             "created_at": "2026-11-20T10:00:00Z", "digest": "sha256:" + "ce" * 32, "changes": changes, **others}  # fmt: skip
    return report_page.Version(**given)


def asked(**others: Any) -> report_page.Asked:
    recipe = {"mask_fraction": 0.5, "batch_size": 64}
    given = {"id": "req_1", "method": "salun", "recipe": recipe, "seed": 7, "kind": "class_label", "count": 178,
             "requested_at": "2026-11-19T09:00:00Z", **others}  # fmt: skip
    return report_page.Asked(**given)


def rendered(
    document: dict[str, Any] | None = None,
    of: report_page.Version | None = None,
    request: report_page.Asked | None = None,
    shown: dict[str, bytes] | None = None,
) -> str:
    return report_page.render(of or version(), document or reports.of_a_generator(), request, shown)


def hostile() -> str:
    trace = {"patches": [{"layer": HOSTILE, "tensors": [HOSTILE], "step_size": 0.5, "forget": HOSTILE}, HOSTILE]}
    figure = reports.figure("integrity", 0.5, rings={HOSTILE: {"value": 0.5, "n": 3}}, evaluators=[HOSTILE])
    document = reports.of_a_generator(
        trace=trace, settings={"prompt": HOSTILE, HOSTILE: 1}, not_tested=[HOSTILE], base=HOSTILE
    )
    document["figures"].append({**figure, "title": HOSTILE, "name": HOSTILE})
    return rendered(
        document, version(model=HOSTILE, status=HOSTILE), asked(id=HOSTILE, kind=HOSTILE), {HOSTILE: b"png"}
    )


@pytest.mark.parametrize(
    "text", [rendered(), rendered(request=asked(), shown={"grid.png": pictures.png(1)}), hostile()]
)
def test_the_page_runs_nothing_and_loads_nothing(text: str) -> None:
    page = Page(text)
    assert page.open == [] and "script" not in {tag for tag, _ in page.tags}
    assert {tag for tag, _ in page.tags} & {"link", "iframe", "object", "embed", "form", "base", "a", "svg"} == set()
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        loaded = [value for name, value in attributes.items() if name in LOADING]
        assert all((value or "").startswith("data:image/png;base64,") for value in loaded), tag
        assert "style" not in attributes or "url(" not in (attributes["style"] or "")
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style and "http" not in style
    policies = [each["content"] for _, each in page.tags if each.get("http-equiv") == "Content-Security-Policy"]
    assert policies == [report_page.POLICY] and report_page.POLICY.startswith("default-src 'none'")


def test_names_from_files_of_strangers_are_text() -> None:
    assert "<script" not in hostile() and "<img src=http" not in hostile()
    assert Page(hostile()).text.count("alert(1)") >= 8


def test_the_page_says_what_was_asked_measured_changed_and_not_tested() -> None:
    trace = {
        "patches": [{"layer": "vision.7.attn", "tensors": ["q", "k"], "step_size": 0.5, "forget": 2.0, "retain": 97.0}]
    }
    text = Page(rendered(reports.of_a_generator(trace=trace), request=asked())).text
    for part in (
        "digits, version 2", "from version 1", "Passed.", "178 samples, named by class label", "salun, seed 7", "mask_fraction=0.5",
        "97.50 87.12 to 99.56", "2.50 0.44 to 12.88", "≥ 95 met", "40 73 needed", "drop ≤ 3 met", "not measured", "100.00 ideal",
        "3 of 686 tensors changed", "vision.7.attn", "q, k", "Sampling steps 20", reports.JUDGE, reports.BASE, "sha256:" + "ce" * 32,
        "relearning", "adversarial prompts", "not proof of removal", METRICS["kept_accuracy"].definition,
    ):  # fmt: skip
        assert part in text, part
    assert "erase" not in text.lower() and "guarantee" not in text.lower()


def test_a_missed_rule_and_what_could_not_be_measured_are_words_not_colours() -> None:
    rule = {"rule": "at_least", "value": 95.0}
    missed = reports.figure("unlearning_accuracy", 50.0, threshold=rule, passed=False)
    unknown = reports.figure("gap_to_retrain", None, n=0, threshold=rule, passed=None)
    text = Page(rendered(reports.report(missed, unknown, verdict="failed"))).text
    assert "Failed." in text and "≥ 95 missed" in text and "≥ 95 not measured" in text


def test_a_retrained_network_s_target_stands_with_its_interval() -> None:
    interval = {"level": 95, "low": 91.5, "high": 98.25, "by": "wilson"}
    target = {"target": 96.0, "target_is": "retrained", "target_interval": interval}
    text = Page(rendered(reports.report(reports.figure("retain_accuracy", 97.5, **target)))).text
    assert "96.00 91.50 to 98.25 retrained" in text


def test_every_evaluator_is_named_by_its_whole_digest() -> None:
    probe = "sha256:" + "ab" * 32
    text = Page(rendered(reports.report(reports.figure("fid", 0.5, evaluators=[reports.JUDGE, probe])))).text
    assert "by the judge, abababababab" in text and f"Judge {reports.JUDGE}" in text and f"Evaluator {probe}" in text


def test_what_the_reader_may_not_see_is_not_there() -> None:
    text = rendered(reports.of_a_generator(pictures=["grid.png"]))
    assert "requests:concept" in text and "<img" not in text and "requests:admin" in text
    assert "by_label" not in text
    free = asked(recipe={"mask_fraction": 0.5, "note": "somebody's name"})
    assert "somebody" not in rendered(request=free)


def test_reports_of_earlier_versions_are_shown_too() -> None:
    old = reports.figure("kept_accuracy", 96.0)
    for later in ("interval", "before_interval", "n_needed"):
        del old[later]
    assert "96.00" in rendered(reports.report(old), version(changes={}))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground_as_wcag_asks(scheme: str) -> None:
    blocks = re.findall(r":root \{([^}]*)\}", rendered())
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", blocks[("light", "dark").index(scheme)]))
    assert set(colours) == {"paper", "ink", "quiet", "line", "shade", "good", "bad"}
    for ink in ("ink", "quiet", "good", "bad"):
        for ground in ("paper", "shade"):
            light, dark = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_template_and_protocols_are_packaged() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["app"]
    packaged = {path for glob in declared for path in (ROOT / "app").glob(glob)}
    assert packaged == {*(ROOT / "app" / "templates").iterdir(), *(ROOT / "app" / "protocols").glob("*.yaml")}


def test_attacks_stand_in_a_table_of_their_own_with_what_they_cost() -> None:
    missed = {"threshold": {"rule": "at_most", "value": 20.0}, "passed": False}
    not_made = {"value": None, "interval": None, "n": 0, "sides": {}, "budget": {}, "reason": "It reads no words."}
    attacks = [reports.attack("relearning", 30, 40, **missed), reports.attack("paraphrases", 0, 40, **not_made)]
    settings = {"seed": 0, "attacks": {"relearning": {"steps": 50}}}
    document = reports.of_a_generator(attacks=attacks, settings=settings)
    page = Page(report_page.render(version(), document, None, None))
    assert (
        "Relearning steps: 50 0.00 0.00 to 8.76 75.00 59.81 to 85.81 100.00 91.24 to 100.00 ≤ 20 missed 40" in page.text
    )
    assert "Paraphrases It reads no words. not made" in page.text and "{'relearning'" not in page.text
    for side in attacks[0]["sides"].values():  # as reports of earlier versions are
        for part in ("before", "after"):
            side[part] = side[part] and {key: side[part][key] for key in ("success", "total")}
    older = Page(report_page.render(version(), document, None, None)).text
    assert "Relearning steps: 50 0.00 75.00 59.81 to 85.81 100.00 ≤ 20 missed 40" in older
    assert "Before it" not in Page(report_page.render(version(), reports.of_a_generator(), None, None)).text


def test_the_page_names_the_rule_that_was_left_out() -> None:
    rule = {"rule": "share_of_before", "value": 0.5}
    met = reports.figure("mia_auc", 52.0, 60.0, threshold=rule, passed=True)
    gap = reports.figure("gap_to_retrain", None, threshold=rule, passed=None, left_out=True)
    text = Page(rendered(reports.report(met, gap))).text
    title = METRICS["gap_to_retrain"].title
    assert f"Every rule of the model's policy was met but for {title}" in text and "left out" in text
    assert "Every rule of the model's policy was met." not in text
    assert "Every rule of the model's policy was met." in Page(rendered(reports.report(met))).text


def test_the_page_and_the_terminal_say_why_a_share_is_neither_met_nor_missed() -> None:
    rule = {"rule": "share_of_before", "value": 0.5}
    row = reports.figure("mia_auc", 50.0, 51.0, threshold=rule, passed=None, reason="base_near_ideal")
    text = Page(rendered(reports.report(row, verdict="failed", reasons=["threshold_missed"]))).text
    assert "≤ 0.5 × before base near ideal" in text and met(row) == "base near ideal"
    unmeasured = reports.figure("mia_auc", None, None, threshold=rule, passed=None)
    assert "≤ 0.5 × before not measured" in Page(rendered(reports.report(unmeasured))).text
    assert met(unmeasured) == "not measured"


@pytest.mark.parametrize("fit", [True, False])
def test_the_page_says_what_the_judge_does_with_noise_and_real_images(fit: bool) -> None:
    def share(value: float, least: float) -> dict[str, Any]:
        interval = {"level": 95, "low": value - 1, "high": value + 0.5, "by": "wilson"}
        return {"value": value, "interval": interval, "n": 400, "least": least}

    known = {
        "fit": fit,
        "noise_rejected": share(99.5 if fit else 60.0, 95.0),
        "real_right": share(98.25, 97.0),
        "seed": 0,
    }
    reasons = [] if fit else ["threshold_missed", "judge_unfit"]
    document = reports.of_a_generator(verdict="passed" if fit else "failed", reasons=reasons, judge_fitness=known)
    text = Page(rendered(document)).text
    assert "98.25 % of real test images (97.25 to 98.75, n = 400, least 97)" in text
    assert ("The judge is fit: it rejects 99.50 % of noise" in text) is fit
    assert ("unfit, and its figures count as not measured: it rejects 60.00 % of noise" in text) is not fit
    assert ("A judge is unfit: what it measured" in text) is not fit
    alone = Page(rendered(reports.of_a_generator(detector_fitness={**known, "real_right": None}))).text
    assert "real test images" not in alone and ("The detector is fit: it rejects 99.50 % of noise" in alone) is fit


def test_the_page_says_where_no_rule_shows_forgetting() -> None:
    kept = reports.figure("retain_accuracy", 99.0, 99.0, threshold={"rule": "drop_at_most", "value": 2.0}, passed=True)
    assert "None of them shows forgetting." in Page(rendered(reports.report(kept))).text
    without = Page(rendered(reports.report(reports.figure("retain_accuracy", 99.0, 99.0)))).text
    assert "The model's policy has no rule for this." in without and "was met" not in without
    assert "shows forgetting" not in Page(rendered()).text
    rule = {"rule": "at_least", "value": 0.0}
    met_by_all = reports.figure("unlearning_accuracy", 3.0, 3.0, threshold=rule, passed=True)
    assert "None of them shows forgetting." in Page(rendered(reports.report(met_by_all))).text


def test_earlier_promises_stand_on_the_page_and_a_broken_one_in_the_verdict() -> None:
    rule = {"rule": "at_least", "value": 95.0}
    figure = {
        "metric": "unlearning_accuracy", "title": METRICS["unlearning_accuracy"].title, "unit": "%", "value": 41.0,
        "interval": None, "then": 99.0, "before": 2.0, "n": 40, "threshold": rule, "passed": False,
    }  # fmt: skip
    broken = {
        "request": "req_1",
        "kind": "class_label",
        "probe": "label",
        "figures": [figure],
        "kept": False,
        "reason": None,
    }
    unasked = {
        "request": "req_2",
        "kind": "samples",
        "probe": None,
        "figures": [],
        "kept": None,
        "reason": "forget_set_purged",
    }
    shown = {**figure, "value": 12.0, "threshold": None, "passed": None}
    row = {**figure, "title": "Row", "value": None, "n": 0, "passed": None, "reason": "needs_base"}
    unbound = {**broken, "request": "req_3", "figures": [shown, row], "kept": None, "reason": "nothing_promised"}
    document = reports.report(verdict="failed", reasons=["broken_promise"], promises=[broken, unasked, unbound])
    text = Page(report_page.render(version(), document, None, None)).text
    assert "What an earlier request forgot has come back." in text and "policy was missed" not in text
    for said in ("req_1", "registered images of its label", "2.00", "99.00", "41.00", "BROKEN", "req_2"):
        assert said in text
    assert "not measured: forget set purged" in text
    assert "12.00 40 not binding" in text and "not measured ≥ 95 0 not measured: needs base" in text
    both = {**document, "reasons": ["threshold_missed", "broken_promise"]}
    assert "policy was missed" in Page(report_page.render(version(), both, None, None)).text
    assert "Earlier promises" not in Page(report_page.render(version(), reports.report(), None, None)).text
