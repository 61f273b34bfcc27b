"""Real network processes on loopback: content, requests and presence travel, and a killed process costs nothing."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest

from openlora.node.errors import ContentError, ContentNotFound, NetworkDown, NetworkError, PeerRefused, RequestError
from openlora.node.network.options import NetworkOptions
from openlora.node.network.supervisor import supervised_network
from tests.node.network.nodes import PATIENCE, REGISTRY, Node, node, nodes, operator, staked

INFER = "/openlora/1/infer"
MIB = 1 << 20


def test_the_process_starts_light() -> None:
    """No torch, transformers or web3, and the interpreter's own recursion limit."""
    script = (
        "import sys, openlora.node.network.process\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "heavy = {'torch', 'transformers', 'web3', 'eth_account', 'fastapi'}\n"
        "print(sorted(loaded & heavy), sys.getrecursionlimit())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[] 1000\n"


# ---- content --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_folder_travels_by_its_cid(tmp_path: Path) -> None:
    """The third node knows only the first, which has nothing: the DHT names the second."""
    source = folder(tmp_path / "source", 3 * MIB)
    async with asyncio.timeout(60), nodes(tmp_path, 3) as (_, has, wants):
        cid = await has.content.publish_directory(source)
        await provided(wants, cid)
        await wants.content.fetch_directory(cid, tmp_path / "copy", max_bytes=8 * MIB)
        document = await wants.content.put_document(b'{"v":1}')
        await wants.network.connect(has.network.addresses)
        assert await has.content.get_document(document) == b'{"v":1}'
    assert contents(tmp_path / "copy") == contents(source)


@pytest.mark.slow
async def test_what_is_too_large_or_nowhere_is_refused_by_name(tmp_path: Path) -> None:
    source = folder(tmp_path / "source", MIB)
    async with asyncio.timeout(60), nodes(tmp_path, 2) as (has, wants):
        cid = await has.content.publish_directory(source)
        with pytest.raises(ContentError, match=r"files of 10485\d\d bytes; 524288 are allowed"):
            await wants.content.fetch_directory(cid, tmp_path / "copy", max_bytes=MIB // 2)
        with pytest.raises(ContentNotFound):
            await wants.content.get_document(bytes(32))
        with pytest.raises(ContentError):
            await wants.network.fetch("no cid", max_bytes=1)
    assert not (tmp_path / "copy").exists()


@pytest.mark.slow
async def test_a_full_store_says_so(tmp_path: Path) -> None:
    source = folder(tmp_path / "source", MIB)
    async with (
        asyncio.timeout(60),
        node(tmp_path, 0) as has,
        node(tmp_path, 1, has.network.addresses, max_content_bytes=MIB // 2) as wants,
    ):
        cid = await has.content.publish_directory(source)
        with pytest.raises(ContentError, match=r"the block store holds .* 524288 are allowed"):
            await wants.content.fetch_directory(cid, tmp_path / "copy", max_bytes=8 * MIB)


@pytest.mark.slow
async def test_a_fetch_survives_kills_of_its_process(tmp_path: Path) -> None:
    """Each life goes on from the blocks that are there: three kills refetch a few blocks at most, not the folder."""
    source = folder(tmp_path / "source", 32 * MIB)
    async with asyncio.timeout(100), nodes(tmp_path, 2) as (has, wants):
        cid = await has.content.publish_directory(source)
        fetching = asyncio.create_task(wants.content.fetch_directory(cid, tmp_path / "copy", max_bytes=64 * MIB))
        for share in (1, 2, 3):
            await until(lambda goal=share * 8 * MIB: stored(wants) >= goal or fetching.done())
            os.kill(child_pid(wants), signal.SIGKILL)
        await fetching
        served = (await has.network.stats()).blocks_served
    assert contents(tmp_path / "copy") == contents(source)
    blocks = len(list((wants.folder / "content").glob("??/*")))
    assert blocks <= served <= blocks + 3 * 8  # at most what was under way at each kill


# ---- requests -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_requests_stream_are_refused_and_end_with_their_peer(tmp_path: Path) -> None:
    stopped = asyncio.Event()

    async def answer(peer: str, body: bytes) -> AsyncIterator[bytes]:
        match body:
            case b"count":
                for number in range(1000):
                    yield f"{number} for {peer}".encode()
            case b"no":
                yield b"first"
                raise RequestError("no", "not at this price")
            case _:
                try:
                    yield b"waiting"
                    await asyncio.Event().wait()
                finally:
                    stopped.set()

    async with asyncio.timeout(60), nodes(tmp_path, 2) as (server, asker):
        server.network.handle(INFER, answer)
        peer, ask = server.network.peer_id, asker.network.ask
        counted = [data async for data in ask(peer, INFER, b"count")]
        assert counted == [f"{number} for {asker.network.peer_id}".encode() for number in range(1000)]
        with pytest.raises(PeerRefused, match=r"^not at this price$"):
            _ = [data async for data in ask(peer, INFER, b"no")]
        async with aclosing(ask(peer, INFER, b"wait")) as replies:
            assert await anext(replies) == b"waiting"
        await stopped.wait()  # the asker left, and the handler of the other node was cancelled
        with pytest.raises(NetworkError, match="peer"):
            _ = [data async for data in ask(asker.network.peer_id, INFER, b"", timeout_s=2)]
        async with aclosing(ask(peer, INFER, b"wait")) as replies:
            await anext(replies)
            before = server.network.addresses
            os.kill(child_pid(server), signal.SIGKILL)
            with pytest.raises(NetworkError):
                await anext(replies)
        await until(lambda: server.network.addresses != before)
        addresses = server.network.addresses
        await asker.network.connect(addresses)
        assert len([data async for data in ask(peer, INFER, b"count", addresses=addresses)]) == 1000


@pytest.mark.slow
async def test_requests_in_flight_fail_with_the_process(tmp_path: Path) -> None:
    async def wait(peer: str, body: bytes) -> AsyncIterator[bytes]:
        yield b"waiting"
        await asyncio.Event().wait()

    async with asyncio.timeout(60), nodes(tmp_path, 2) as (server, asker):
        server.network.handle(INFER, wait)
        async with aclosing(asker.network.ask(server.network.peer_id, INFER, b"")) as replies:
            await anext(replies)
            os.kill(child_pid(asker), signal.SIGKILL)
            with pytest.raises(NetworkDown, match="try it again"):
                await anext(replies)


@pytest.mark.slow
async def test_a_fifth_request_of_one_peer_is_refused(tmp_path: Path) -> None:
    async def wait(peer: str, body: bytes) -> AsyncIterator[bytes]:
        yield b"waiting"
        await asyncio.Event().wait()

    async with asyncio.timeout(60), nodes(tmp_path, 2) as (server, asker):
        server.network.handle(INFER, wait)
        asked = [asker.network.ask(server.network.peer_id, INFER, b"") for _ in range(5)]
        for replies in asked[:4]:
            await anext(replies)
        with pytest.raises(PeerRefused, match="4 of your requests are under way"):
            await anext(asked[4])
        for replies in asked:
            await replies.aclose()
        assert (await server.network.stats()).refused["asked_too_much_by_peer"] == 1


# ---- presence -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_records_come_and_go_with_trust(tmp_path: Path) -> None:
    async with asyncio.timeout(60), nodes(tmp_path, 2) as (told, watcher):
        await told.network.trust(staked(2))
        await told.announce()
        await watcher.network.connect(told.network.addresses)
        while not (await watcher.network.stats()).refused.get("unstaked"):  # noqa: ASYNC110 - another process does it
            await asyncio.sleep(0.05)
        assert watcher.seen() == set()
        await watcher.network.trust(staked(2))
        await until(lambda: watcher.seen() == {operator(0).lower()})
        await watcher.network.trust({})
        assert watcher.seen() == set()
        await watcher.network.trust(staked(2))
        await until(lambda: watcher.seen() == {operator(0).lower()})
        await watcher.network.trust({})
        os.kill(child_pid(watcher), signal.SIGKILL)
        await until(lambda: not watcher.network.alive)
        await watcher.network.trust(staked(2))  # while there is nobody to tell
        await until(lambda: watcher.seen() == {operator(0).lower()})


@pytest.mark.slow
async def test_ten_nodes_see_each_other_and_cost_little(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The short form of node/bench/network.py."""
    count = 10
    async with asyncio.timeout(110), nodes(tmp_path, count) as all_nodes:
        for each in all_nodes:
            await each.network.trust(staked(count))
        began_s = time.monotonic()
        for each in all_nodes:
            await each.announce(adapters=16)
        await until(lambda: all(len(each.seen()) == count - 1 for each in all_nodes), limit_s=30)
        seen_s = time.monotonic() - began_s
        await asyncio.sleep(8)  # they look around
        processes = [psutil.Process(child_pid(each)) for each in all_nodes]
        before, wire = [process.cpu_times() for process in processes], await bytes_on_wire(all_nodes)
        await asyncio.sleep(15)
        used = [
            (now.user + now.system - then.user - then.system) / 15
            for now, then in zip((process.cpu_times() for process in processes), before, strict=True)
        ]
        said = (await bytes_on_wire(all_nodes) - wire) / count / 15
        resident = [process.memory_info().rss for process in processes]
    with capsys.disabled():
        print(
            f"\nten nodes: all seen after {seen_s:.2f} s; idle CPU {max(used):.2%} at most, {sum(used) / count:.2%} on "
            f"average; RSS {max(resident) / 1e6:.0f} MB at most; {said / 1e3:.1f} kB/s in and out together for each"
        )
    assert seen_s <= 5
    assert sum(used) / count <= 0.01
    assert max(resident) <= 150e6
    assert said <= 5e3


@pytest.mark.slow
async def test_a_node_that_was_stopped_is_missed_in_seconds(tmp_path: Path) -> None:
    async with asyncio.timeout(60), node(tmp_path, 0) as stays:
        await stays.network.trust(staked(2))
        async with node(tmp_path, 1, stays.network.addresses) as leaves:
            await leaves.announce()
            await until(lambda: stays.seen() == {operator(1).lower()})
        await until(lambda: stays.seen() == set(), limit_s=5)


@pytest.mark.slow
async def test_a_node_that_was_killed_is_heard_again_at_its_address(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with (
        asyncio.timeout(60),
        node(tmp_path, 0, port=port) as killed,
        node(tmp_path, 1, killed.network.addresses) as first,
        node(tmp_path, 2, killed.network.addresses) as second,
    ):
        for each in (killed, first, second):
            await each.network.trust(staked(3))
            await each.announce()
        await until(lambda: all(len(each.seen()) == 2 for each in (killed, first, second)))
        for life in range(1, 4):
            os.kill(child_pid(killed), signal.SIGKILL)
            await until(lambda: not killed.network.alive)
            await until(lambda: killed.network.alive)
            await killed.announce(queued=life)
            await until(lambda life=life: all(queued(each, operator(0)) == life for each in (first, second)), limit_s=5)
        assert killed.network.addresses == (f"/ip4/127.0.0.1/tcp/{port}/p2p/{killed.network.peer_id}",)


# ---- starting -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_port_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        options = NetworkOptions(
            chain_id=1,
            registry=REGISTRY,
            content_dir=str(tmp_path / "blocks"),
            listen=(f"/ip4/127.0.0.1/tcp/{other.getsockname()[1]}",),
            mdns=False,
            nat=False,
        )
        with pytest.raises(NetworkError, match=r"cannot be joined: .*taken"):
            async with supervised_network(options, tmp_path, patience=PATIENCE):
                pass


@pytest.mark.slow
async def test_an_identity_is_kept(tmp_path: Path) -> None:
    async with node(tmp_path, 0) as first:
        peer = first.network.peer_id
    async with node(tmp_path, 0) as again:
        assert again.network.peer_id == peer
    assert (tmp_path / "node0" / "libp2p.key").stat().st_mode & 0o777 == 0o600


# ---- helpers --------------------------------------------------------------------------------------------------------


def child_pid(each: Node) -> int:
    (pid,) = [child.pid for child in psutil.Process().children() if str(each.folder) in child.cmdline()]
    return pid


async def bytes_on_wire(of: Sequence[Node]) -> int:
    stats = [await each.network.stats() for each in of]
    return sum(each.bytes_in + each.bytes_out for each in stats)


def queued(at: Node, of: str) -> int:
    return next((record.status.load.queued for record in at.network.nodes() if record.operator == of.lower()), -1)


def folder(path: Path, size_bytes: int) -> Path:
    path.mkdir()
    (path / "adapter_model.safetensors").write_bytes(os.urandom(size_bytes))
    (path / "adapter_config.json").write_text("{}")
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def stored(each: Node) -> int:
    return sum(file.stat().st_size for file in (each.folder / "content").glob("??/*"))


async def provided(asker: Node, cid: str) -> None:
    """Until the DHT leads to the folder's root: being provided takes a moment."""
    for _ in range(20):
        try:
            await asker.network.fetch(cid, max_bytes=MIB)
        except ContentNotFound:
            await asyncio.sleep(0.5)
        else:
            return
    raise AssertionError(f"{cid} was not found")


async def until(holds: Callable[[], bool], limit_s: float = 20.0) -> None:
    async with asyncio.timeout(limit_s):
        while not holds():  # noqa: ASYNC110 - other processes do it
            await asyncio.sleep(0.02)
