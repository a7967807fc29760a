"""Before every route, and before a body is read: whose key a call has, and whether it comes too often.

A call with a valid key counts for the key, any other for its address. What a load balancer asks counts for nobody.
"""

import ipaddress

from fastapi.concurrency import run_in_threadpool
from fastapi.security.utils import get_authorization_scheme_param
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.deployment import Deployment
from app.errors import TooManyRequests
from app.rate_limits import Budget, RateLimits
from app.records import api_key as api_keys
from app.records.api_key import ApiKey

UNCOUNTED = ("/healthz", "/readyz")


class Gate:
    """Leaves the key and the budget in the call's state, for routes and for the edge."""

    def __init__(self, app: ASGIApp, lethe: Deployment) -> None:
        self.app, self._lethe, self._limits = app, lethe, RateLimits(lethe.settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in UNCOUNTED:
            scheme, text = get_authorization_scheme_param(Headers(scope=scope).get("authorization"))
            sent = text if scheme.lower() == "bearer" else ""
            key, budget = await run_in_threadpool(self._admit, sent, scope)
            scope["state"] |= {"key": key, "budget": budget}
            if budget and not budget.allowed:
                raise TooManyRequests(budget.policy, budget.quota, budget.window)
        await self.app(scope, receive, send)

    def _admit(self, sent: str, scope: Scope) -> tuple[ApiKey | None, Budget | None]:
        key = None
        if sent:
            with self._lethe.store.read() as session:
                key = api_keys.verify(session, self._lethe.pepper, sent)
        if key is not None:
            return key, self._limits.hit("key", key.id)
        return None, self._limits.hit("address", _address(scope))


def _address(scope: Scope) -> str:
    """The client's, or of IPv6 the network that one site has."""
    host = str((scope.get("client") or ("unknown", 0))[0])
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return host if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))
