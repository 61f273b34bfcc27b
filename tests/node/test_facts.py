"""What the node reads of its lease."""

from dataclasses import dataclass
from typing import Any

import pytest

from openlora.contracts import AdapterRegistry, Call, Job, JobQueue, JobState, NodeRegistry
from openlora.node.chain.types import Block, Wei
from openlora.node.facts import ChainFacts
from tests.node.facts import OPERATOR, RIVAL

HEAD, NOW_S = 50_000, 1_000_000
LEASE_S = 3_600


@dataclass
class Chain:
    """At block `HEAD`, `NOW_S` seconds after its first; it shows one job, claimed `age` blocks ago."""

    block_s: float
    age: int = 0
    history: bytes = b"\x33"  # the code that keeps block hashes; none before EIP-2935
    node: Any = OPERATOR

    async def block(self, tag: int | str) -> Block:
        number = HEAD if tag == "latest" else int(tag)
        return Block(number, bytes(32), bytes(32), round(NOW_S + (number - HEAD) * self.block_s), Wei(1))

    async def code(self, address: str) -> bytes:
        return self.history

    async def call(self, call: Call[Any]) -> Job:
        return Job(bytes(32), bytes(32), self.node, JobState.CLAIMED, 1, NOW_S + LEASE_S, 0, HEAD - self.age, 0)


async def left_s(chain: Chain, late_s: int = 0) -> float | None:
    any_chain: Any = chain
    parts = JobQueue(RIVAL), NodeRegistry(RIVAL), AdapterRegistry(RIVAL), OPERATOR, OPERATOR
    facts = ChainFacts(any_chain, *parts, chain_now_s=lambda block_at_s: block_at_s + late_s)
    return await facts.lease_left_s(1)


@pytest.mark.parametrize(
    ("chain", "expected_s"),
    [
        (Chain(block_s=12), LEASE_S),
        (Chain(block_s=0.2), 8_191 * 0.2),
        (Chain(block_s=0.2, age=8_000), 191 * 0.2),
        (Chain(block_s=2, history=b""), 256 * 2),
        (Chain(block_s=12, history=b"", age=300), -44 * 12),
    ],
)
async def test_a_lease_is_as_long_as_its_seed_can_be_checked(chain: Chain, expected_s: float):
    assert await left_s(chain) == pytest.approx(expected_s, rel=0.01)


async def test_anothers_lease_is_none():
    assert await left_s(Chain(block_s=12, node=RIVAL)) is None


async def test_a_lease_goes_on_where_the_newest_block_is_old():
    assert await left_s(Chain(block_s=12), late_s=600) == LEASE_S - 600
