"""How often each peer may ask."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from openlora.node.errors import RequestError
from openlora.p2p.limits import TokenBucket


@dataclass(frozen=True, slots=True)
class RateLimits:
    per_s: float = 0.5  # requests of one peer, on average …
    burst: int = 20  # … and at once
    remembered_peers: int = 4096


class PeerRates:
    """One allowance a peer; those of peers unheard of for longest are forgotten first."""

    def __init__(self, limits: RateLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._allowances: OrderedDict[str, TokenBucket] = OrderedDict()

    def check(self, peer: str) -> None:
        """Counts one request. Raises RequestError("rate_limited") for one too many."""
        allowance = self._allowances.pop(peer, None)
        if allowance is None:
            allowance = TokenBucket(self._limits.per_s, self._limits.burst, self._clock)
        self._allowances[peer] = allowance
        while len(self._allowances) > self._limits.remembered_peers:
            self._allowances.popitem(last=False)
        if not allowance.try_take(1):
            raise RequestError("rate_limited", "you ask too often; wait a few seconds")
