"""Who may speak on the network: the hot keys of operators with enough at stake to claim a job."""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from eth_typing import ChecksumAddress

from openlora.contracts import (
    BondForfeited,
    Event,
    HotKeySet,
    JobQueue,
    Node,
    NodeRegistered,
    NodeRegistry,
    Slashed,
    Staked,
    StakeWithdrawn,
    UnstakeBegun,
)
from openlora.node.chain.client import ChainClient
from openlora.node.chain.history import MAX_RANGE, events
from openlora.node.chain.types import Block
from openlora.node.errors import ChainError
from openlora.node.job import BlockRef
from openlora.node.tasks import task_group

_CHECKPOINTS: Final = 256  # heads seen, by which a reorganisation's depth is found
_AT_ONCE: Final = 16  # views asked for together
_TOUCHING: Final = (NodeRegistered, HotKeySet, Staked, UnstakeBegun, StakeWithdrawn, BondForfeited, Slashed)


@dataclass(frozen=True, slots=True)
class _Standing:
    """What an operator had at block `read_at`, its last event included."""

    hot_key: str
    stake_wei: int  # not in withdrawal
    read_at: int


class StakeDirectory:
    """Operators by hot key, as of the last `refresh`. Keeps nothing on disk: the first reads the registry's history."""

    def __init__(self, chain: ChainClient, registry: NodeRegistry, queue: JobQueue, first_block: int) -> None:
        self._chain = chain
        self._registry = registry
        self._queue = queue
        self._first_block = first_block
        self._standings: dict[ChecksumAddress, _Standing] = {}  # of all who ever registered
        self._seen: deque[BlockRef] = deque(maxlen=_CHECKPOINTS)  # the newest last
        self._staked: Mapping[str, str] = MappingProxyType({})

    @property
    def staked(self) -> Mapping[str, str]:
        """Hot key → operator, lower-case addresses, of all whose stake outside withdrawal is at least one bond."""
        return self._staked

    async def refresh(self) -> bool:
        """Reads what blocks have come; True if `staked` has changed. Raises ChainError, and then nothing has.

        Only operators that those blocks touch are asked about anew; after a reorganisation, all that were touched
        since the last block that is still on the chain."""
        head = await self._chain.block("latest")
        if self._seen and head.number < self._seen[-1].number:
            return False  # a server that lags, or a branch that is not yet the longer one
        if self._seen and head.hash == self._seen[-1].hash:
            return False
        ancestor = await self._ancestor()
        known_to = ancestor.number if ancestor is not None else self._first_block - 1
        touched = {operator for operator, standing in self._standings.items() if standing.read_at > known_to}
        touched |= await self._touched(known_to + 1, head.number)
        read = await self._read(sorted(touched), head)
        staked = _staked({**self._standings, **read}, await self._bond(head))
        while self._seen and self._seen[-1] != ancestor:
            self._seen.pop()
        self._seen.append(head.ref)
        self._standings.update(read)
        changed, self._staked = staked != self._staked, MappingProxyType(staked)
        return changed

    async def _ancestor(self) -> BlockRef | None:
        """The newest head seen that the chain still has."""
        for block in reversed(self._seen):
            found = await self._chain.find_block(block.number)
            if found is not None and found.hash == block.hash:
                return block
        return None

    async def _touched(self, first: int, last: int) -> set[ChecksumAddress]:
        touched: set[ChecksumAddress] = set()
        for start in range(first, last + 1, MAX_RANGE):
            try:
                found = await events(self._chain, self._registry.address, start, min(start + MAX_RANGE - 1, last))
            except ValueError as error:  # AbiMismatch, or a number that is none of an enum's
                raise ChainError(
                    f"{self._registry.address} is no NodeRegistry; check the deployment: {error}"
                ) from None
            touched |= _operators(found)
        return touched

    async def _read(self, operators: list[ChecksumAddress], head: Block) -> dict[ChecksumAddress, _Standing]:
        read = {}
        for start in range(0, len(operators), _AT_ONCE):
            some = operators[start : start + _AT_ONCE]
            async with task_group() as group:  # one RPC that is down fails them all alike
                tasks = {operator: group.create_task(self._node(operator, head)) for operator in some}
            for operator, task in tasks.items():
                node = task.result()
                read[operator] = _Standing(node.hot_key.lower(), node.stake - node.unstaking, head.number)
        return read

    async def _node(self, operator: ChecksumAddress, head: Block) -> Node:
        return await self._chain.call(self._registry.node(operator), block=head.number)

    async def _bond(self, head: Block) -> int:
        version = await self._chain.call(self._queue.params_version(), block=head.number)
        return (await self._chain.call(self._queue.params(version), block=head.number)).bond


def _operators(found: Iterable[Event]) -> set[ChecksumAddress]:
    return {event.operator for event in found if isinstance(event, _TOUCHING)}


def _staked(standings: Mapping[ChecksumAddress, _Standing], bond_wei: int) -> dict[str, str]:
    least_wei = max(bond_wei, 1)  # where claims need no bond, one must still have something to lose
    return {
        standing.hot_key: operator.lower()
        for operator, standing in standings.items()
        if standing.stake_wei >= least_wei
    }
