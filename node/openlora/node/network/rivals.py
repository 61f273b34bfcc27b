"""Who else could take a job, read from presence records and the chain's live claims."""

from collections.abc import Iterable, Iterator

from openlora.contracts import Recipe
from openlora.node.job import Job
from openlora.node.live_claims import LiveClaims
from openlora.node.turns import Contender
from openlora.p2p.presence.record import Presence


def is_crowded(held: int, capacity: int) -> bool:
    """Whether a node that takes `capacity` jobs at once holds half of them."""
    return 2 * held >= capacity


def rivals(records: Iterable[Presence], claims: LiveClaims, own: str, job: Job, recipe: Recipe) -> Iterator[Contender]:
    """The other nodes that serve the recipe's base, at the job's price, and have room; `own` is not one of them."""
    for record in records:
        status, held = record.status, claims.of(record.operator)
        ask = (int(status.ask.in_price_per_k), int(status.ask.out_price_per_k))
        if (
            record.operator != own.lower()
            and any(model.base_id == recipe.base_id.hex() for model in status.models)
            and ask[0] <= job.spec.in_price_per_k
            and ask[1] <= job.spec.out_price_per_k
            and held < status.load.capacity
        ):
            adapters = frozenset(status.adapters.slots.digests()).union(status.adapters.disk.digests())
            yield Contender(record.operator, adapters, is_crowded(held, status.load.capacity))
