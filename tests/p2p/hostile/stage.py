"""The victim, an honest peer, and what the two do together before, during and after each attack.

Both are real network processes, as the agent starts them, and live through all attacks, one after the other. The
attacker is a third process; each of its addresses in 127.0.0.0/8 is another machine to the victim."""

import asyncio
import json
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil
import trio

from openlora.node.children import Child, spawn
from openlora.node.errors import PeerRefused
from openlora.node.frames import AsyncFrames
from openlora.node.network.connection import Connection
from openlora.node.network.messages import APPLICATION_PROTOCOLS, Announce, Event, Stats, Trust
from openlora.node.network.nodes import NodeTable
from openlora.node.network.options import NetworkOptions
from openlora.node.network.supervisor import NETWORK_COMMAND
from openlora.p2p.content.blockstore import BlockStore
from openlora.p2p.content.unixfs import add_file
from tests.p2p.hostile.attacks import Attack
from tests.p2p.hostile.operators import CHAIN_ID, HONEST, REGISTRY, STAKED, VICTIM, Operator
from tests.p2p.hostile.wire import Cut, Target, Wire, someone
from tests.p2p.presence.people import status

FILE_BYTES: Final = 4 << 20
_MIB: Final = 1 << 20
_PATIENCE_S: Final = 30.0
_UNDER_WAY_S: Final = 0.5  # until an attack has come to where it wants to be


class Peer:
    """A network process, its operator, and the agent's end of the line to it."""

    def __init__(self, child: Child, link: Connection, nodes: NodeTable, operator: Operator, folder: Path) -> None:
        self.child, self.link, self.nodes, self.operator, self.folder = child, link, nodes, operator, folder
        self.process = psutil.Process(child.process.pid)
        self.id = link.ready.peer_id

    @property
    def alive(self) -> bool:
        return self.child.process.returncode is None and not self.link.ended

    def announce(self, queued: int) -> None:
        """Tells of a queue of that length, which others hear of at once."""
        self.link.post(
            Announce(
                operator=self.operator.address,
                hot_key=self.operator.hot_key.address.lower(),
                binding=self.operator.binding(self.id),
                status=status(queued=queued),
            )
        )

    async def hears(self, other: "Peer", queued: int) -> None:
        """Returns when this one's table, which offers no event, has that record of the other."""
        told = (other.operator.address, queued)
        while told not in {(each.operator, each.status.load.queued) for each in self.nodes.live()}:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    async def stats(self) -> Stats:
        return await self.link.stats()


@asynccontextmanager
async def running_peer(operator: Operator, folder: Path, bootstrap: tuple[str, ...]) -> AsyncIterator[Peer]:
    folder.mkdir()
    options = NetworkOptions(
        chain_id=CHAIN_ID,
        registry=REGISTRY,
        content_dir=str(folder / "blocks"),
        listen=("/ip4/127.0.0.1/tcp/0",),
        bootstrap=bootstrap,
        mdns=False,
        nat=False,
    )
    command = (*NETWORK_COMMAND, "--state", str(folder), "--options", msgspec.json.encode(options).decode())
    child = await spawn(command, folder / "network.sock", _PATIENCE_S)
    try:
        nodes = NodeTable()
        frames = AsyncFrames[Event](child.reader, child.writer, Event)
        link = await Connection.greet(frames, nodes, dict.fromkeys(APPLICATION_PROTOCOLS, _answer))
        reading = asyncio.create_task(link.read())
        link.post(Trust(operators=STAKED))
        yield Peer(child, link, nodes, operator, folder)
        link.shut_down()
    finally:
        await child.stop(2.0)
    await reading


async def _answer(peer: str, request: bytes) -> AsyncIterator[bytes]:
    if request == b"slow":
        await asyncio.sleep(1)
    yield request
    if request == b"much":
        while True:
            yield bytes(32 << 10)


# ---- honest work ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """Seconds that each thing took."""

    fetch_s: float  # of a file by CID
    ask_s: float  # a question and its answer
    presence_s: float  # until both tables show what both have just announced, if they have
    newcomer_s: float  # until a third, honest peer is connected


class Stage:
    """The pair, and who attacks it. `work` does one round of what the two are there for."""

    def __init__(self, victim: Peer, honest: Peer, attacker: "Attacker", target: Target) -> None:
        self.victim, self.honest, self.attacker, self.target = victim, honest, attacker, target
        self._blocks = BlockStore(honest.folder / "blocks")
        self._rounds = 0

    async def work(self, *, announce: bool = True) -> Work:
        """One round. A node says something new of itself every few seconds: whoever announces more often waits."""
        self._rounds += 1
        cid = str(await asyncio.to_thread(add_file, BytesIO(os.urandom(FILE_BYTES)), self._blocks.put))
        meet = self._meet() if announce else asyncio.sleep(0)
        return Work(*await asyncio.gather(*map(_timed, (self._fetch(cid), self._ask(), meet, self._newcomer()))))

    async def _fetch(self, cid: str) -> None:
        fetched = await self.victim.link.fetch(cid, max_bytes=2 * FILE_BYTES, whole=True, hints=[self.honest.id])
        assert fetched.bytes >= FILE_BYTES

    async def _ask(self) -> None:
        """Until the victim is not too busy: whoever is refused may ask again."""
        body = os.urandom(100)
        while True:
            replies = self.honest.link.ask(self.victim.id, (), APPLICATION_PROTOCOLS[0], body, _PATIENCE_S)
            try:
                assert [data async for data in replies] == [body]
            except PeerRefused:
                await asyncio.sleep(0.1)
            else:
                return

    async def _meet(self) -> None:
        queued = 1000 * self._rounds
        self.victim.announce(queued)
        self.honest.announce(queued)
        await asyncio.gather(self.victim.hears(self.honest, queued), self.honest.hears(self.victim, queued))

    async def _newcomer(self) -> None:
        """Somebody new, from an address of its own, tries until it is in and answered."""
        await asyncio.to_thread(trio.run, _visit, self.target, f"newcomer {self._rounds}")


async def _visit(target: Target, name: str) -> None:
    with trio.move_on_after(_PATIENCE_S):
        in_and_answered = False
        while not in_and_answered:
            in_and_answered = await _pinged(target, name)
            await trio.sleep(0.0 if in_and_answered else 0.1)


async def _pinged(target: Target, name: str) -> bool:
    async with trio.open_nursery() as nursery:
        try:
            wire = await Wire.dial(nursery, target, someone(name), source="127.0.0.7")
            ping = await wire.negotiated("/ipfs/ping/1.0.0")
            await ping.send(bytes(32))
            await ping.receive(32)
            await wire.close()
        except Cut:
            return False
        finally:
            nursery.cancel_scope.cancel()
    return True


async def _timed(work: Awaitable[None]) -> float:
    """Its seconds; _PATIENCE_S if it was not done by then."""
    started = time.monotonic()
    with suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE_S):
            await work
    return time.monotonic() - started


class Attacker:
    """The attacking process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        if process.stdin is None or process.stdout is None:
            raise TypeError("a process without pipes")
        self._orders, self._reports = process.stdin, process.stdout

    async def begin(self, attack: Attack, target: Target) -> Mapping[str, Any]:
        """Returns what the attacker says about the attack, which has then begun."""
        order = asdict(target) | {"attack": attack.name, "seconds": attack.seconds}
        self._orders.write(json.dumps(order).encode() + b"\n")
        return await self._report(15)

    async def end(self, attack: Attack) -> Mapping[str, int]:
        """Returns what the attacker has done, once its time is over."""
        return await self._report(attack.seconds + 15)

    async def _report(self, timeout_s: float) -> Mapping[str, Any]:
        return dict(json.loads(await asyncio.wait_for(self._reports.readline(), timeout_s)))


@asynccontextmanager
async def _running_attacker() -> AsyncIterator[Attacker]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.p2p.hostile.attacker"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield Attacker(process)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@asynccontextmanager
async def staged(folder: Path) -> AsyncIterator[Stage]:
    """The pair, connected, warm, and each in the other's table."""
    folder.mkdir(exist_ok=True)
    async with _running_attacker() as attacker, running_peer(VICTIM, folder / "victim", ()) as victim:
        address = victim.link.ready.addresses[0]
        async with running_peer(HONEST, folder / "honest", (address,)) as honest:
            target = Target("127.0.0.1", int(address.split("/")[4]), victim.id, CHAIN_ID, REGISTRY, 0.0)
            stage = Stage(victim, honest, attacker, target)
            await stage.work()
            yield stage


# ---- the trial ------------------------------------------------------------------------------------------------------

Meanwhile = Callable[[Stage, Mapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Outcome:
    """What an attack did to the victim, and what became of it."""

    name: str
    quiet: Work
    attacked: Work
    after: Work
    refused: Counter[str]
    grown_bytes: int  # at the worst moment, over what it had before
    done: Mapping[str, int]  # by the attacker, in its own count

    @property
    def line(self) -> str:
        refused = " ".join(f"{code}={count}" for code, count in self.refused.most_common(7))
        times = (self.quiet, self.attacked, self.after)
        return (
            f"{self.name:19} {self.grown_bytes / _MIB:5.1f} MiB"
            f"  fetch {'/'.join(f'{each.fetch_s:.2f}' for each in times)} s"
            f"  ask {'/'.join(f'{each.ask_s:.2f}' for each in times)}"
            f"  presence {self.attacked.presence_s:.2f}"
            f"  newcomer {'/'.join(f'{each.newcomer_s:.2f}' for each in times)}"
            f"  did {json.dumps(self.done)}  refused: {refused}"
        )


async def try_out(stage: Stage, attack: Attack, meanwhile: Meanwhile | None = None) -> Outcome:
    """One attack. Raises AssertionError if the victim or the honest peer did not live through it."""
    quiet = await stage.work(announce=False)
    before = await stage.victim.stats()
    async with _watched(stage.victim.process) as memory:
        facts = await stage.attacker.begin(attack, stage.target)
        await asyncio.sleep(_UNDER_WAY_S)
        if meanwhile is not None:
            await meanwhile(stage, facts)
        attacked = await stage.work()
        done = await stage.attacker.end(attack)
    after = await stage.work(announce=False)
    stats = await stage.victim.stats()
    assert stage.victim.alive
    assert stage.honest.alive
    assert (await stage.honest.stats()).peers >= 1
    return Outcome(
        name=attack.name,
        quiet=quiet,
        attacked=attacked,
        after=after,
        refused=Counter(stats.refused) - Counter(before.refused),
        grown_bytes=memory.grown_bytes,
        done=done,
    )


class _Memory:
    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._before = self.most = int(process.memory_info().rss)

    @property
    def grown_bytes(self) -> int:
        return self.most - self._before

    async def watch(self) -> None:
        while True:
            with suppress(psutil.NoSuchProcess):
                self.most = max(self.most, self._process.memory_info().rss)
            await asyncio.sleep(0.05)


@asynccontextmanager
async def _watched(process: psutil.Process) -> AsyncIterator[_Memory]:
    memory = _Memory(process)
    watching = asyncio.create_task(memory.watch())
    try:
        yield memory
    finally:
        watching.cancel()
