"""How sure a share is: Wilson's interval of a proportion, and the n at which a rule on one can be shown at all.

Wilson, J. Am. Stat. Assoc. 22 (1927) 209, without continuity correction. For k of n, p = k / n and z of the level:

    (p + z^2 / 2n  -+  z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)

Unlike p -+ z sqrt(p (1 - p) / n) it stays within 0 and 1, and 20 of 20 does not come out as certain.
"""

import math
from statistics import NormalDist

from app.catalog.types import Threshold

LEVEL = 95  # percent
_Z = NormalDist().inv_cdf(0.5 + LEVEL / 200)


def wilson(right: float, n: float) -> tuple[float, float]:
    """The interval of the share `right` of `n`, both ends in percent."""
    share, z2 = right / n, _Z * _Z
    middle = share + z2 / (2 * n)
    reach = _Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low, high = ((middle + side * reach) / (1 + z2 / n) for side in (-1, 1))
    return 0.0 if right == 0 else 100 * low, 100.0 if right == n else 100 * high


def n_needed(rule: Threshold) -> int | None:
    """The smallest n at which the best possible answer shows that a share meets the rule; None where no n does.

    at_least: n of n, whose interval must not begin below the threshold. at_most: 0 of n, whose interval must not end above
    it. Both are n >= z^2 t / (1 - t), t being the threshold's share or what it leaves of 1. Other rules compare with the
    base, and nothing can be said beforehand.
    """
    if rule.rule not in ("at_least", "at_most"):
        return None
    asked = rule.value if rule.rule == "at_least" else 100 - rule.value
    if asked >= 100:
        return None
    return max(1, math.ceil(_Z * _Z * asked / (100 - asked)))
