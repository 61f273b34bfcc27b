"""Another agent that runs as this node is noticed, and said once."""

import asyncio
from typing import Any

import pytest

from openlora.node.network.nodes import NodeTable
from openlora.node.network.twin import TwinWatch
from openlora.node.tasks import running
from openlora.p2p.presence.record import Presence
from tests.p2p.presence.people import Node


class Network:
    def __init__(self) -> None:
        self.table = NodeTable(clock=lambda: 0.0)
        self.asked = asyncio.Event()

    def nodes(self) -> tuple[Presence, ...]:
        self.asked.set()
        return self.table.live()

    async def looked_at(self) -> None:
        for _ in range(2):  # the first look may be one that was under way
            self.asked.clear()
            await self.asked.wait()


async def test_a_twin_is_said_once_each_time_it_comes(caplog: pytest.LogCaptureFixture) -> None:
    network, us = Network(), Node("us").presence()
    peers: Any = network
    watch = TwinWatch(peers, us.operator)
    async with running(watch.run(look_s=0.001), "twin"), asyncio.timeout(5):
        network.table.seen(Node("other").presence())
        assert watch.alone
        for _ in range(2):
            network.table.seen(us)
            assert not watch.alone
            await network.looked_at()
            network.table.gone(us.operator)
            await network.looked_at()
    assert [record.getMessage() for record in caplog.records] == [f"event=twin_seen operator={us.operator}"] * 2
