"""Events of a contract since it was deployed, for people's commands; the agent itself follows with a cursor."""

from collections.abc import Iterable, Sequence

from openlora.contracts import Deployment, Event, decode_log
from openlora.node.chain.client import ChainClient
from openlora.node.chain.types import Log
from openlora.node.errors import RpcError

MAX_RANGE = 10_000  # blocks of one eth_getLogs


async def events(
    chain: ChainClient, address: str, first: int, last: int | None = None, topics: Sequence[bytes | None] = ()
) -> Sequence[Event]:
    """Events of `address` in blocks `first` to `last` (the head), oldest first: all, or those with these topics where
    they are not None, an event's own first and then what it indexes. Raises RpcDown, RpcError."""
    if last is None:
        last = (await chain.block("latest")).number
    found: list[Event] = []
    span = MAX_RANGE
    while first <= last:
        upto = min(first + span - 1, last)
        try:
            logs = await chain.logs([address], first, upto, topics)
        except RpcError:
            if span == 1:
                raise
            span //= 2  # servers bound the range or the number of logs, each in its own way
            continue
        found += events_of(logs)
        first = upto + 1
    return found


def topic(indexed: int | str) -> bytes:
    """A number or an address as an event indexes it."""
    return (indexed if isinstance(indexed, int) else int(indexed, 16)).to_bytes(32, "big")


async def market_events(
    chain: ChainClient, deployment: Deployment, first: int | None = None, last: int | None = None
) -> Sequence[Event]:
    """What was said in blocks `first` (the deployment's) to `last` (the head), one contract's events after the other's,
    the adapters' registry first: what `Books` and `Penalties` read. Raises RpcDown, RpcError."""
    first = deployment.block if first is None else first
    last = (await chain.block("latest")).number if last is None else last
    contracts = (
        *(deployment.adapter_registry, deployment.job_queue, deployment.sessions),
        *(deployment.node_registry, deployment.outputs),
    )
    return [event for address in contracts for event in await events(chain, address, first, last)]


def events_of(logs: Iterable[Log]) -> list[Event]:
    """The events among `logs` that are the market's. Raises AbiMismatch."""
    decoded = (decode_log(entry.topics, entry.data) for entry in logs)
    return [event for event in decoded if event is not None]
