"""The published schema of a report: what every report must say, and that the schema, OpenAPI and the answers agree."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from app import report
from app.catalog.types import Rule
from tests import reports


def beyond_the_schema(part: object, where: str = "report") -> list[str]:
    """Fields of a checked report that the schema does not know."""
    if isinstance(part, BaseModel):
        found = [f"{where}.{name}" for name in part.model_extra or {}]
        return found + [
            each for name in type(part).model_fields for each in beyond_the_schema(getattr(part, name), name)
        ]
    if isinstance(part, dict):
        return [each for name, value in part.items() for each in beyond_the_schema(value, f"{where}.{name}")]
    return [each for value in part for each in beyond_the_schema(value, where)] if isinstance(part, list) else []


def test_a_whole_report_is_valid_and_says_nothing_beyond_the_schema() -> None:
    assert beyond_the_schema(report.Report.model_validate(reports.of_a_generator())) == []
    more = report.Report.model_validate(reports.report(reports.figure("fid", 1.0, novel=1), later=2))
    assert beyond_the_schema(more) == ["report.later", "figures.novel"]


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "erased"},
        {"figures": [{"metric": "fid"}]},
        {"figures": [reports.figure("fid", 1.0, interval={"level": 95, "low": 0.0, "by": "wilson"})]},
        {"figures": [reports.figure("fid", 1.0, interval={"level": 95, "low": 0.0, "high": 1.0, "by": "guess"})]},
        {"figures": [reports.figure("fid", 1.0, threshold={"rule": "nearly", "value": 1.0})]},
        {"not_tested": None},
    ],
)
def test_what_is_no_report_is_refused_without_repeating_it(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        report.Report.model_validate(reports.report(**change))
    assert "input_value" not in str(caught.value)


def test_reports_of_earlier_versions_without_intervals_stay_valid() -> None:
    old = reports.figure("fid", 1.0)
    for later in ("interval", "before_interval", "target_interval", "n_needed"):
        del old[later]
    assert report.Report.model_validate(reports.report(old))


def test_the_schema_describes_itself() -> None:
    schema = report.schema()
    assert schema["$id"] == "urn:lethe:schema:report" and schema["title"] == "Report"
    assert {"verdict", "figures", "not_tested", "base"} <= set(schema["required"])
    rules = schema["$defs"]["Held"]["properties"]["rule"]["enum"]
    assert set(rules) == set(Rule.__args__)
