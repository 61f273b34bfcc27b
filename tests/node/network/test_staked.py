"""The directory of the staked, on a chain in memory: new blocks only, reorganisations, and servers that fail."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from eth_abi.abi import encode
from eth_utils.address import to_checksum_address
from hypothesis import given, settings
from hypothesis import strategies as st

from openlora.contracts import HotKeySet, JobQueue, Node, NodeRegistered, NodeRegistry, Params, Staked, UnstakeBegun
from openlora.node.chain.client import ChainClient
from openlora.node.chain.rpc import Endpoint, RpcPool
from openlora.node.errors import ChainError
from openlora.node.network.staked import StakeDirectory
from tests.node.chain.fake_chain import CHAIN_ID, FakeChain, FakeLog, FakeProvider, Refusal

REGISTRY, QUEUE = to_checksum_address("0x" + "bb" * 20), "0x" + "aa" * 20
BOND = 10
OPERATORS = [to_checksum_address(f"0x{index:040x}") for index in range(0x0D00, 0x0D05)]
KEYS = [to_checksum_address(f"0x{index:040x}") for index in range(0xCC00, 0xCC20)]


class RegistryChain(FakeChain):
    """The fake chain with a NodeRegistry, whose state follows from the logs up to the block that is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.bond = BOND
        self.views: Counter[str] = Counter()

    def eth_call(self, transaction: dict[str, str], tag: str) -> str:
        data = bytes.fromhex(transaction["data"][2:])
        if transaction["to"].lower() == QUEUE:
            version = data[:4] == JobQueue(to_checksum_address(QUEUE)).params_version().data[:4]
            answer = encode(["uint16"], [1]) if version else encode([Params.ABI], [(self.bond, 32, 3, 60, 60)])
            return "0x" + answer.hex()
        operator = to_checksum_address(data[16:36])
        self.views[operator] += 1
        number = self.head.number if tag == "latest" else int(tag, 16)
        return "0x" + encode([Node.ABI], [self.node(operator, number).to_abi()]).hex()

    def is_registered(self, operator: str) -> bool:
        return int(self.node(operator, self.head.number).hot_key, 16) != 0

    def node(self, operator: str, number: int) -> Node:
        key, stake, leaving = "0x" + "00" * 20, 0, 0
        for block in self.blocks[: number + 1]:
            for log in block.logs:
                if log.topics[1][12:] != bytes.fromhex(operator[2:]):
                    continue
                if log.topics[0] == HotKeySet.TOPIC:
                    key = "0x" + log.topics[2][12:].hex()
                elif log.topics[0] == Staked.TOPIC:
                    stake += int.from_bytes(log.data, "big")
                elif log.topics[0] == UnstakeBegun.TOPIC:
                    leaving += int.from_bytes(log.data[:32], "big")
        return Node(to_checksum_address(key), stake, leaving, 0, 0, 0, bytes(32), bytes(32), b"")


def topic(address: str) -> bytes:
    return bytes(12) + bytes.fromhex(address[2:])


def registered(operator: str, key: str) -> list[FakeLog]:
    topics = (topic(operator), topic(key))
    data = encode(["bytes"], [b""])
    return [
        FakeLog((HotKeySet.TOPIC, *topics), b"", REGISTRY),
        FakeLog((NodeRegistered.TOPIC, *topics), data, REGISTRY),
    ]


def rekeyed(operator: str, key: str) -> list[FakeLog]:
    return registered(operator, key)[:1]


def staked(operator: str, amount: int) -> list[FakeLog]:
    return [FakeLog((Staked.TOPIC, topic(operator)), encode(["uint256"], [amount]), REGISTRY)]


def leaving(operator: str, amount: int) -> list[FakeLog]:
    return [FakeLog((UnstakeBegun.TOPIC, topic(operator)), encode(["uint256", "uint40"], [amount, 9]), REGISTRY)]


class World:
    def __init__(self) -> None:
        self.chain = RegistryChain()
        self.provider = FakeProvider(self.chain)
        self.directory = self.open()

    def open(self) -> StakeDirectory:
        client = ChainClient(RpcPool([Endpoint("fake", self.provider)], CHAIN_ID, patience_s=0.0), CHAIN_ID)
        registry, queue = NodeRegistry(REGISTRY), JobQueue(to_checksum_address(QUEUE))
        return StakeDirectory(client, registry, queue, first_block=1)

    async def fresh(self) -> dict[str, str]:
        """What a directory says that starts now."""
        directory = self.open()
        await directory.refresh()
        return dict(directory.staked)


def pair(index: int, key: int) -> dict[str, str]:
    return {KEYS[key].lower(): OPERATORS[index].lower()}


async def test_the_staked_are_found_by_their_hot_keys() -> None:
    world = World()
    a, b = OPERATORS[:2]
    world.chain.mine(logs=[*registered(a, KEYS[0]), *registered(b, KEYS[1]), *staked(a, BOND), *staked(b, BOND - 1)])
    assert await world.directory.refresh()
    assert world.directory.staked == pair(0, 0)
    world.chain.mine(logs=staked(b, 1))
    assert await world.directory.refresh()
    assert world.directory.staked == pair(0, 0) | pair(1, 1)
    world.chain.mine(logs=[*rekeyed(a, KEYS[2]), *leaving(b, 1)])
    assert await world.directory.refresh()
    assert world.directory.staked == pair(0, 2), "what is in withdrawal does not count"


async def test_only_new_blocks_and_touched_operators_are_read() -> None:
    world = World()
    for index, operator in enumerate(OPERATORS):
        world.chain.mine(logs=[*registered(operator, KEYS[index]), *staked(operator, BOND)])
    await world.directory.refresh()
    assert world.chain.views == dict.fromkeys(OPERATORS, 1)
    asked = world.provider.asked.total()
    assert not await world.directory.refresh()
    assert world.provider.asked.total() == asked + 1, "no new head, no more questions"
    world.chain.mine(3, logs=staked(OPERATORS[3], 1))
    assert not await world.directory.refresh(), "the mapping is what it was"
    assert world.chain.views == dict.fromkeys(OPERATORS, 1) | {OPERATORS[3]: 2}


async def test_a_higher_bond_is_noticed() -> None:
    world = World()
    world.chain.mine(logs=[*registered(OPERATORS[0], KEYS[0]), *staked(OPERATORS[0], BOND)])
    await world.directory.refresh()
    world.chain.bond += 1
    world.chain.mine()
    assert await world.directory.refresh()
    assert world.directory.staked == {}


@pytest.mark.parametrize("depth", [1, 3, 5])
async def test_a_reorganisation_takes_stakes_back(depth: int) -> None:
    world = World()
    world.chain.mine(logs=[*registered(OPERATORS[0], KEYS[0]), *staked(OPERATORS[0], BOND)])
    for index in range(1, 5):
        world.chain.mine(logs=[*registered(OPERATORS[index], KEYS[index]), *staked(OPERATORS[index], BOND)])
        await world.directory.refresh()
    assert len(world.directory.staked) == 5
    world.chain.reorg(depth)
    assert await world.directory.refresh()
    assert len(world.directory.staked) == 5 - depth
    assert world.directory.staked == await world.fresh()


async def test_a_server_that_lags_changes_nothing() -> None:
    world = World()
    world.chain.mine(logs=[*registered(OPERATORS[0], KEYS[0]), *staked(OPERATORS[0], BOND)])
    await world.directory.refresh()
    blocks, world.chain.blocks = world.chain.blocks, world.chain.blocks[:1]
    assert not await world.directory.refresh()
    assert world.directory.staked == pair(0, 0)
    world.chain.blocks = blocks
    assert not await world.directory.refresh()


@pytest.mark.parametrize("method", ["eth_getBlockByNumber", "eth_getLogs", "eth_call"])
async def test_an_error_leaves_everything_as_it_was_and_is_made_good_by_the_next(method: str) -> None:
    world = World()
    world.chain.mine(logs=[*registered(OPERATORS[0], KEYS[0]), *staked(OPERATORS[0], BOND)])
    await world.directory.refresh()
    world.chain.mine(logs=leaving(OPERATORS[0], 1))
    world.provider.fail(method, Refusal("out of order"), times=14 if method == "eth_getLogs" else 1)
    with pytest.raises(ChainError):
        await world.directory.refresh()
    assert world.directory.staked == pair(0, 0)
    assert await world.directory.refresh()
    assert world.directory.staked == {}


async def test_a_contract_that_is_no_registry_is_a_chain_error() -> None:
    world = World()
    world.chain.mine(logs=[FakeLog((Staked.TOPIC, topic(OPERATORS[0])), b"\x01", REGISTRY)])
    with pytest.raises(ChainError, match="no NodeRegistry"):
        await world.directory.refresh()


STEPS = st.one_of(
    st.tuples(st.just("register"), st.integers(0, 4), st.integers(0, 31)),
    st.tuples(st.just("rekey"), st.integers(0, 4), st.integers(0, 31)),
    st.tuples(st.just("stake"), st.integers(0, 4), st.integers(1, 15)),
    st.tuples(st.just("leave"), st.integers(0, 4), st.integers(1, 5)),
    st.tuples(st.just("reorg"), st.integers(1, 6), st.integers(0, 2)),
)


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(st.tuples(STEPS, st.booleans()), max_size=25))
def test_whatever_happens_it_agrees_with_the_chain(steps: list[tuple[tuple[str, int, int], bool]]) -> None:
    async def story() -> None:
        world = World()
        logs: dict[str, Any] = {"register": registered, "rekey": rekeyed, "stake": staked, "leave": leaving}
        for (kind, one, two), looks in steps:
            if kind == "reorg":
                world.chain.reorg(min(one, world.chain.head.number), longer_by=two or 1)
            elif (kind == "register") != world.chain.is_registered(OPERATORS[one]):
                amount: Any = KEYS[6 * one + two % 6] if kind in ("register", "rekey") else two
                world.chain.mine(logs=logs[kind](OPERATORS[one], amount))
            if looks:
                await world.directory.refresh()
        await world.directory.refresh()
        expected = {}
        for operator in OPERATORS:
            node = world.chain.node(operator, world.chain.head.number)
            if node.stake - node.unstaking >= BOND:
                expected[node.hot_key.lower()] = operator.lower()
        assert world.directory.staked == expected

    asyncio.run(story())
