"""Periods of the regimes, against arithmetic of days and months that knows no library."""

from calendar import monthrange
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.deadlines import Regime, first_due, last_due

moments = st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=st.just(UTC))


def months_later(start: datetime, months: int) -> datetime:
    year, month = divmod(start.year * 12 + start.month - 1 + months, 12)
    return start.replace(year=year, month=month + 1, day=min(start.day, monthrange(year, month + 1)[1]))


@given(moments)
def test_gdpr_counts_calendar_months_and_clamps_their_ends(start: datetime) -> None:
    for due, months in ((first_due, 1), (last_due, 3)):
        seconds = due(Regime.GDPR, start.timestamp())
        assert seconds is not None and abs(seconds - months_later(start, months).timestamp()) < 1e-5


@given(moments)
def test_ccpa_counts_days_of_24_hours(start: datetime) -> None:
    for due, days in ((first_due, 45), (last_due, 90)):
        seconds = due(Regime.CCPA, start.timestamp())
        assert seconds is not None and abs(seconds - (start + timedelta(days=days)).timestamp()) < 1e-5


@pytest.mark.parametrize(
    ("start", "first", "last"),
    [
        ("2027-01-31", "2027-02-28", "2027-04-30"),
        ("2028-01-31", "2028-02-29", "2028-04-30"),
        ("2027-02-28", "2027-03-28", "2027-05-28"),
        ("2027-12-31", "2028-01-31", "2028-03-31"),
        ("2027-11-30", "2027-12-30", "2028-02-29"),
    ],
)
def test_ends_of_months(start: str, first: str, last: str) -> None:
    asked = datetime.fromisoformat(start).replace(hour=23, minute=59, tzinfo=UTC)
    for due, day in ((first_due, first), (last_due, last)):
        found = due(Regime.GDPR, asked.timestamp())
        assert found is not None and datetime.fromtimestamp(found, UTC).isoformat() == f"{day}T23:59:00+00:00"


def test_other_names_no_date() -> None:
    assert first_due(Regime.OTHER, 0.0) is None and last_due(Regime.OTHER, 0.0) is None
