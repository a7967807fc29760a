"""How often a key, or an address without a valid key, may call: counted in Redis where Redis is the bell, and so for all
server processes together; else in this process alone. While Redis is away this process counts for itself.
"""

import math
import time
from dataclasses import dataclass

import structlog
from limits import RateLimitItem, parse
from limits.errors import StorageError
from limits.storage import MemoryStorage, storage_from_string
from limits.strategies import MovingWindowRateLimiter, RateLimiter

from app.settings import Settings

AWAY_SECONDS = 5.0  # for how long Redis is left alone after it did not answer

log = structlog.get_logger()


@dataclass(frozen=True)
class Budget:
    """What is left of a policy. `allowed`: whether this call was within it."""

    policy: str
    quota: int
    window: int
    remaining: int
    reset: int
    allowed: bool

    @property
    def headers(self) -> dict[str, str]:
        """draft-ietf-httpapi-ratelimit-headers, as structured fields; Retry-After where the call was refused."""
        shown = {
            "RateLimit-Policy": f'"{self.policy}";q={self.quota};w={self.window}',
            "RateLimit": f'"{self.policy}";r={self.remaining};t={self.reset}',
        }
        return shown if self.allowed else {**shown, "Retry-After": str(max(1, self.reset))}


class RateLimits:
    def __init__(self, settings: Settings) -> None:
        limits = {"key": settings.rate_limit, "address": settings.rate_limit_address}
        self._items = {policy: parse(limit) for policy, limit in limits.items() if limit}
        self._own: RateLimiter = MovingWindowRateLimiter(MemoryStorage())
        self._shared, self._away_until = _shared(settings), 0.0

    def hit(self, policy: str, who: str) -> Budget | None:
        """Count one call. None where the policy has no limit."""
        item = self._items.get(policy)
        if item is None:
            return None
        if self._shared is not None and time.monotonic() > self._away_until:
            try:
                return _hit(self._shared, item, policy, who)
            except StorageError:
                self._away_until = time.monotonic() + AWAY_SECONDS
                log.warning("rate_limits.alone")
        return _hit(self._own, item, policy, who)


def _shared(settings: Settings) -> RateLimiter | None:
    if not settings.broker.startswith(("redis://", "rediss://")):
        return None
    options = {"socket_connect_timeout": 0.5, "socket_timeout": 0.5}
    return MovingWindowRateLimiter(storage_from_string(settings.broker, wrap_exceptions=True, **options))


def _hit(limiter: RateLimiter, item: RateLimitItem, policy: str, who: str) -> Budget:
    allowed = limiter.hit(item, policy, who)
    stats = limiter.get_window_stats(item, policy, who)
    reset = max(0, math.ceil(stats.reset_time - time.time()))
    return Budget(policy, item.amount, item.get_expiry(), max(0, stats.remaining), reset, allowed)
