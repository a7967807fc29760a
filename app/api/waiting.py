"""Prefer: wait=N. A call waits for its request to end, and holds neither a thread nor a connection to the database meanwhile."""

import asyncio
import re
import time
from collections.abc import Callable
from typing import Annotated

from fastapi import Header, Request, Response
from fastapi.concurrency import run_in_threadpool

LONGEST = 60
PAUSES = (0.05, 0.1, 0.2, 0.5)  # seconds between looks; the last one again and again
Prefer = Annotated[
    str | None,
    Header(description=f"`wait=N`: answer when it has ended, or after N seconds, at most {LONGEST} (RFC 7240)."),
]


def preferred(prefer: str | None) -> int | None:
    """Seconds to wait. None without the preference, and, as the RFC asks, for one that cannot be read."""
    for part in (prefer or "").split(","):
        if match := re.fullmatch(r'\s*wait\s*=\s*"?([0-9]{1,9})"?\s*', part, re.IGNORECASE):
            return min(int(match[1]), LONGEST)
    return None


async def wait_until(ended: Callable[[], bool], prefer: str | None, request: Request, response: Response) -> None:
    """Return when `ended`, which looks once, says so; or when the time is over, or nobody waits for the answer any more."""
    seconds = preferred(prefer)
    if seconds is None:
        return
    response.headers["Preference-Applied"] = f"wait={seconds}"
    until, looks = time.monotonic() + seconds, 0
    while not await run_in_threadpool(ended):
        pause = min(PAUSES[min(looks, len(PAUSES) - 1)], until - time.monotonic())
        if pause <= 0 or await request.is_disconnected():
            return
        await asyncio.sleep(pause)
        looks += 1
