"""Copies and answers between real network processes."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from eth_account import Account
from eth_utils.address import to_checksum_address

from openlora.contracts import Domain
from openlora.node.content import BlockContent
from openlora.node.errors import NetworkError, PeerRefused
from openlora.node.job import JobId, JobState
from openlora.node.network.replication import CONTROL, Keeper, replicate, room
from openlora.node.network.showing import INFER, Showing
from openlora.node.network.watching import watch
from openlora.node.streams import JobStreams
from tests.node.facts import block, open_journal, spec, spec_hash
from tests.node.network.nodes import Node, node, nodes, staked
from tests.node.private.keys import brought

pytestmark = pytest.mark.slow
MIB = 1 << 20
JOB = JobId(1)
CLIENT, STRANGER = Account.from_key(b"\x0c" * 32), Account.from_key(b"\x0d" * 32)
QUEUE = Domain(31337, to_checksum_address("0x" + "0d" * 20))


async def meet(group: list[Node]) -> None:
    """Returns when every one sees all others' presence."""
    for member in group:
        await member.network.trust(staked(len(group)))
        await member.announce()
    while any(len(member.network.nodes()) < len(group) - 1 for member in group):  # noqa: ASYNC110 - another process's
        await asyncio.sleep(0.05)


async def test_what_is_published_outlives_its_publisher(tmp_path: Path) -> None:
    """A laptop publishes 3 MiB, three of four nodes keep it, the laptop leaves, and the fourth gets it from them."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "weights").write_bytes(bytes(range(256)) * (3 * MIB // 256))

    async def wanted(cid: str) -> str | None:
        return "an adapter"

    async with asyncio.timeout(90), nodes(tmp_path, 4) as group:
        for member in group[:3]:
            blocks = member.folder / "content"
            keeper = Keeper(member.network, BlockContent(blocks), wanted, room(blocks, 8 * MIB, 0))
            member.network.handle(CONTROL, keeper.answer)
        await meet(group)
        async with node(tmp_path, 4, group[3].network.addresses) as laptop:
            await laptop.network.trust(staked(4))
            while len(laptop.network.nodes()) < 4:  # noqa: ASYNC110 - another process's doing
                await asyncio.sleep(0.05)
            cid = await laptop.content.publish_directory(folder)
            size = await BlockContent(laptop.folder / "content").size(cid)
            replicas = await replicate(laptop.network, cid, size)
            assert replicas.enough, str(replicas)
            assert set(replicas.holders) == {member.network.peer_id for member in group[:3]}
        for member in group[:3]:
            assert await BlockContent(member.folder / "content").size(cid) == size
        await group[3].content.fetch_directory(cid, tmp_path / "copy", max_bytes=8 * MIB)
    assert (tmp_path / "copy" / "weights").read_bytes() == (folder / "weights").read_bytes()


async def test_an_answer_streams_to_its_client_alone_until_its_node_dies(tmp_path: Path) -> None:
    streams = JobStreams()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(60))
        journal = stack.enter_context(open_journal(tmp_path))
        journal.see(JOB, spec(client=CLIENT.address), spec_hash(JOB), None, block(1))
        client = await stack.enter_async_context(node(tmp_path, 1))
        async with node(tmp_path, 0, client.network.addresses) as server:
            server.network.handle(INFER, Showing(journal, streams, QUEUE, brought()).answer)
            await meet([server, client])
            (record,) = client.network.nodes()
            with pytest.raises(PeerRefused, match="not yours"):
                await anext(watch(client.network, record, QUEUE, JOB, STRANGER))
            steps = watch(client.network, record, QUEUE, JOB, CLIENT)
            assert await anext(steps) == ("seen", "")
            journal.move(JOB, JobState.CLAIMING)
            journal.move(JOB, JobState.CLAIMED, block=block(2))
            assert await anext(steps) == ("claimed", "")
            streams.open(JOB)
            streams.publish(JOB, "Ahoy")
            assert await anext(steps) == ("claimed", "Ahoy")
            streams.publish(JOB, "ä€" * 40_000)
            while len((await anext(steps))[1]) < 4 + 80_000:
                pass
        with pytest.raises(NetworkError):
            await anext(steps)
