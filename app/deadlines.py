"""Until when a request must be done: calendar arithmetic of the regimes, in UTC. Days and months, and nothing of records.

    gdpr    one calendar month after the person asked; extended, at most three       Art. 12(3)
    ccpa    45 days; extended, at most 90                                            Cal. Code Regs. tit. 11, section 7021
    other   what the caller names

A month ends on the day of the same number, or on the last day of a month that has none: 31 January + 1 month = 28 or 29 February.
"""

from datetime import UTC, datetime
from enum import StrEnum

from dateutil.relativedelta import relativedelta


class Regime(StrEnum):
    GDPR = "gdpr"
    CCPA = "ccpa"
    OTHER = "other"


FIRST = {Regime.GDPR: relativedelta(months=1), Regime.CCPA: relativedelta(days=45)}
EXTENDED = {Regime.GDPR: relativedelta(months=3), Regime.CCPA: relativedelta(days=90)}


def first_due(regime: Regime, requested_at: float) -> float | None:
    """When the first period ends, in seconds since 1970; None where the regime names none."""
    return _later(requested_at, FIRST.get(regime))


def last_due(regime: Regime, requested_at: float) -> float | None:
    """When the longest period ends to which it may be extended; None where the regime names none."""
    return _later(requested_at, EXTENDED.get(regime))


def _later(seconds: float, by: relativedelta | None) -> float | None:
    return None if by is None else (datetime.fromtimestamp(seconds, UTC) + by).timestamp()
