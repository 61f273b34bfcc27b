"""On what terms a running node takes jobs. They may change while it runs, so whoever decides by them asks each time."""

from dataclasses import dataclass

from openlora.node.config import MarketConfig


@dataclass(slots=True)
class Terms:
    """Owned by the node; changed by `Steering` alone, and always as a whole."""

    market: MarketConfig
    min_free_bytes: int
    draining: bool = False  # no job is claimed; those under way are finished

    @property
    def capacity_jobs(self) -> int:
        """Jobs that it would have at once; what its peers are told."""
        return 0 if self.draining else self.market.max_live_jobs
