"""Presence over the real network: ten hosts in one process, each knowing only the first one's address."""

import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from openlora.p2p.host.network import HostOptions, open_network
from openlora.p2p.presence.announcer import Announcer, Membership
from openlora.p2p.presence.book import PresenceBook
from openlora.p2p.presence.sequence import SequenceCounter
from openlora.p2p.presence.service import PresenceService
from tests.p2p.presence.people import BINDING, CHAIN_ID, Node, Registry, status

COUNT = 10


async def live(
    name: str,
    bootstrap: Sequence[str],
    folder: Path,
    peers: list[tuple[PresenceBook, PresenceService]],
    task_status: trio.TaskStatus[Sequence[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    node = Node(name)
    options = HostOptions(listen=("/ip4/127.0.0.1/tcp/0",), bootstrap=bootstrap)
    async with open_network(node.identity, options) as network:
        book = PresenceBook(CHAIN_ID, Registry(), own=network.peer_id)
        announcer = Announcer(network, CHAIN_ID, SequenceCounter(folder / name))
        announcer.join(Membership(node.operator, node.hot_key, BINDING))
        announcer.announce(status())
        service = PresenceService(network, book, announcer)
        peers.append((book, service))
        task_status.started(network.addresses)
        await service.run()


async def know_all(book: PresenceBook, service: PresenceService) -> None:
    async for _ in service.changes():
        if len(book.live()) == COUNT - 1:
            return


class OwnTime:
    """Seconds that were slept and seconds that were computed: no less than pass on a machine of one's own, and none of
    those in which others had its processors."""

    TICK_S = 0.01

    def __init__(self) -> None:
        self._slept_s = 0.0

    async def run(self) -> None:
        while True:
            await trio.sleep(self.TICK_S)
            self._slept_s += self.TICK_S

    def now_s(self) -> float:
        return self._slept_s + time.process_time()


@pytest.mark.slow
def test_ten_hosts_see_each_other_within_five_seconds(tmp_path: Path) -> None:
    async def main() -> None:
        peers: list[tuple[PresenceBook, PresenceService]] = []
        async with trio.open_nursery() as nursery:
            with trio.fail_after(60):
                first = await nursery.start(live, "0", (), tmp_path, peers)
                for index in range(1, COUNT):
                    await nursery.start(live, str(index), first, tmp_path, peers)
            own_time = OwnTime()
            nursery.start_soon(own_time.run)
            began_s = own_time.now_s()
            with trio.fail_after(60):
                for book, service in peers:
                    await know_all(book, service)
            assert own_time.now_s() - began_s < 5
            assert sum(book.refused["rate_limited"] for book, _ in peers) == 0
            nursery.cancel_scope.cancel()

    trio.run(main)
