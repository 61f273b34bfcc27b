"""Journal and sender against a chain that misbehaves at random: crashes, reorganisations, faults, rising fees.

Whatever happens, once the trouble ends every intent is executed exactly once, with no hole in the nonces.
"""

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openlora.node.errors import ChainError
from tests.node.chain.fake_chain import GWEI, Refusal
from tests.node.chain.world import HOT_KEY, World, foreign

KEYS = tuple(f"intent{number}" for number in range(6))
METHODS = ("eth_sendRawTransaction", "eth_getTransactionReceipt", "eth_getTransactionCount", "eth_getBlockByNumber")


@dataclass(frozen=True, slots=True)
class Send:
    key: str

    def __call__(self, world: World) -> None:
        if self.key not in world.tasks or world.tasks[self.key].done():
            world.send(self.key)


@dataclass(frozen=True, slots=True)
class Tick:
    later_s: float

    def __call__(self, world: World) -> None:
        world.now += self.later_s
        world.begin(world.loop())


@dataclass(frozen=True, slots=True)
class Mine:
    blocks: int
    base_fee_gwei: int

    def __call__(self, world: World) -> None:
        world.chain.base_fee = self.base_fee_gwei * GWEI
        world.chain.mine(self.blocks)


@dataclass(frozen=True, slots=True)
class Reorg:
    depth: int
    keep: bool

    def __call__(self, world: World) -> None:
        world.chain.reorg(min(self.depth, len(world.chain.blocks) - 1), keep=self.keep)


@dataclass(frozen=True, slots=True)
class ForgetPool:
    def __call__(self, world: World) -> None:
        world.chain.pool.clear()


@dataclass(frozen=True, slots=True)
class Fault:
    method: str
    got_through: bool

    def __call__(self, world: World) -> None:
        world.provider.fail(self.method, Refusal("internal error", -32603), got_through=self.got_through)


@dataclass(frozen=True, slots=True)
class Foreign:
    """Somebody moves coin with the hot key."""

    def __call__(self, world: World) -> None:
        nonce = int(world.chain.eth_getTransactionCount(HOT_KEY.address, "latest"), 16)
        world.chain.inject(foreign(nonce))


@dataclass(frozen=True, slots=True)
class CrashAtRequest:
    countdown: int
    after: bool

    def __call__(self, world: World) -> None:
        world.provider.crash_in, world.provider.crash_after = self.countdown, self.after


@dataclass(frozen=True, slots=True)
class CrashAtCommit:
    countdown: int
    after: bool

    def __call__(self, world: World) -> None:
        world.journal.crash_in, world.journal.crash_after = self.countdown, self.after


Action = Send | Tick | Mine | Reorg | ForgetPool | Fault | Foreign | CrashAtRequest | CrashAtCommit

common = st.one_of(
    st.builds(Send, st.sampled_from(KEYS)),
    st.builds(Tick, st.sampled_from([0.0, 0.5, 16.0, 31.0])),
    st.builds(Mine, st.integers(1, 3), st.sampled_from([1, 1, 2, 10])),
    st.builds(ForgetPool),
    st.builds(Fault, st.sampled_from(METHODS), st.booleans()),
    st.builds(CrashAtRequest, st.integers(0, 15), st.booleans()),
    st.builds(CrashAtCommit, st.integers(0, 3), st.booleans()),
)
# A foreign transfer that took our nonce and is then reorganised away, deeper than the confirmations asked, can bring
# the old bytes back to life beside the new ones: the market's contracts refuse the second, this chain would count it.
with_reorgs = st.lists(common | st.builds(Reorg, st.integers(1, 8), st.booleans()), max_size=40)
with_foreign = st.lists(common | st.builds(Foreign), max_size=40)


async def live_through(actions: list[Action], folder: Path) -> None:
    world = World(folder)
    await world.start()
    for action in actions:
        action(world)
        await world.settle()
        if world.crashed():
            await revive(world)
    await world.kill()
    await recover(world)
    assert world.chain.effects() == {key.encode(): 1 for key in KEYS} | ({b"": n} if (n := transfers(world)) else {})
    assert world.sender.in_flight == 0
    await world.kill()


async def revive(world: World) -> None:
    """Starts the agent again, and again if faults that were armed keep it down."""
    await world.kill()
    for _ in range(10):
        try:
            return await world.start()
        except ChainError:
            await world.kill()
    raise AssertionError("the agent does not start")


async def recover(world: World) -> None:
    """Quiet times: cheap gas, an obedient server, and the worker asking again for all it wanted."""
    world.chain.base_fee = GWEI
    await world.start()
    for key in KEYS:
        world.send(key)
    for _ in range(30):
        await world.tick(later_s=16)
        world.chain.mine()
        if all(task.done() for task in world.tasks.values()):
            break
    for task in world.tasks.values():
        assert task.done(), f"{task.get_name()} is stuck"
        assert (await task).succeeded


def transfers(world: World) -> int:
    """Mined transactions without calldata: foreign ones, and fillers of holes."""
    return sum(tx.data == b"" for block in world.chain.blocks for tx in block.txs)


def run(actions: list[Action]) -> None:
    memory = Path("/dev/shm")  # a crash here is of the process, not of the machine: no need to wait for a disk
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        asyncio.run(live_through(actions, Path(folder)))


quick = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
long = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))


@quick
@given(with_reorgs)
def test_every_effect_happens_once_through_crashes_and_reorganisations(actions: list[Action]) -> None:
    run(actions)


@quick
@given(with_foreign)
def test_every_effect_happens_once_through_crashes_and_foreign_transfers(actions: list[Action]) -> None:
    run(actions)


@pytest.mark.slow
@long
@given(with_reorgs | with_foreign)
def test_every_effect_happens_once_at_length(actions: list[Action]) -> None:
    run(actions)
