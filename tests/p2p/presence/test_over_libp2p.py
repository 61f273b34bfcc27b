"""Presence over the real network: ten hosts in one process, each knowing only the first one's address."""

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


@pytest.mark.slow
def test_ten_hosts_see_each_other_within_five_seconds(tmp_path: Path) -> None:
    async def main() -> None:
        peers: list[tuple[PresenceBook, PresenceService]] = []
        async with trio.open_nursery() as nursery:
            with trio.fail_after(20):
                first = await nursery.start(live, "0", (), tmp_path, peers)
                for index in range(1, COUNT):
                    await nursery.start(live, str(index), first, tmp_path, peers)
            with trio.fail_after(5):
                for book, service in peers:
                    await know_all(book, service)
            assert sum(book.refused["rate_limited"] for book, _ in peers) == 0
            nursery.cancel_scope.cancel()

    trio.run(main)
