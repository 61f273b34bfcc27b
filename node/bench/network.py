"""The network's health: ten nodes on this machine, each a process of its own, told of the others by presence records.

    python node/bench/network.py [--nodes 10] [--window-s 60] [--watch-s 90]

Prints one JSON line for each measurement: how soon after their start all have everybody's record; what each costs while
nothing happens (bytes on the wire, CPU, memory); how soon one is missed that is killed; how complete the tables of the
others stay; how soon one is missed that says goodbye.
"""

import argparse
import asyncio
import json
import logging
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import psutil
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address

from openlora.contracts import Domain
from openlora.node.network.binding import sign_binding
from openlora.node.network.client import NetworkClient
from openlora.node.network.messages import Announce
from openlora.node.network.options import NetworkOptions
from openlora.node.network.supervisor import supervised_network
from openlora.p2p.presence.record import Adapters, Ask, Gpu, Hardware, Load, Model, Status

REGISTRY = to_checksum_address("0x" + "5f" * 20)
DOMAIN = Domain(31337, REGISTRY)
LOOK_EVERY_S = 0.02
SETTLE_S = 10.0  # after a start, until nodes have looked around
PATIENCE_S = 90.0


@dataclass(frozen=True, slots=True)
class Node:
    number: int
    network: NetworkClient
    process: psutil.Process
    leave: asyncio.Event  # set, it ends the node in good order, and nothing restarts it

    def missing(self, others: Sequence["Node"]) -> int:
        """How many of the others it has no live record of."""
        seen = {record.operator for record in self.network.nodes()}
        return len({operator(each.number) for each in others if each is not self} - seen)

    def sees(self, number: int) -> bool:
        return any(record.operator == operator(number) for record in self.network.nodes())


def operator(number: int) -> str:
    return f"0x{number + 1:040x}"


def hot_key(number: int) -> LocalAccount:
    key: LocalAccount = Account.from_key((number + 1).to_bytes(32, "big"))
    return key


def status(number: int) -> Status:
    """What a node with one GPU and seven adapters, three of them loaded, says of itself: a record of 900 bytes."""
    digests = [sha256(b"%d %d" % (number, adapter)).digest() for adapter in range(7)]
    return Status(
        hardware=Hardware("AMD EPYC 9654 96-Core Processor", 16, 128 << 30, (Gpu("NVIDIA H100", 80 << 30, "570.1"),)),
        models=(Model(sha256(b"base").hexdigest(), "SmolLM2-135M-Instruct", "bfloat16", 8192),),
        adapters=Adapters.of(slots=digests[:3], ram=(), disk=digests),
        ask=Ask("1000000000000000", "2000000000000000"),
        load=Load(0, 0, 16),
        version="0.1.0",
    )


async def live(folder: Path, number: int, count: int, bootstrap: Sequence[str], ready: asyncio.Future[Node]) -> None:
    """One node, until it is told to leave."""
    options = NetworkOptions(
        chain_id=DOMAIN.chain_id,
        registry=REGISTRY,
        content_dir=str(folder / "content"),
        listen=("/ip4/127.0.0.1/tcp/0",),
        bootstrap=tuple(bootstrap),
        mdns=False,
        nat=False,
    )
    async with supervised_network(options, folder) as network:
        key, stakes = hot_key(number), {hot_key(each).address.lower(): operator(each) for each in range(count)}
        await network.trust(stakes)
        await network.announce(
            Announce(
                operator=operator(number),
                hot_key=key.address.lower(),
                binding=sign_binding(key, DOMAIN, to_checksum_address(operator(number)), network.peer_id),
                status=status(number),
            )
        )
        (process,) = [each for each in psutil.Process().children() if str(folder) in each.cmdline()]
        leave = asyncio.Event()
        ready.set_result(Node(number, network, process, leave))
        await leave.wait()


class Fleet:
    """All nodes; the first is whom the others know."""

    def __init__(self, folder: Path, count: int, group: asyncio.TaskGroup) -> None:
        self._folder, self._count, self._group = folder, count, group
        self.nodes: list[Node] = []

    async def start(self) -> None:
        self.nodes.append(await self._start(0, ()))
        bootstrap = self.nodes[0].network.addresses
        self.nodes += await asyncio.gather(*(self._start(number, bootstrap) for number in range(1, self._count)))

    def complete(self) -> bool:
        return self.gaps() == 0

    def gaps(self) -> int:
        """Records that are missing in all tables together."""
        return sum(node.missing(self.nodes) for node in self.nodes)

    def forgotten(self, node: Node) -> bool:
        return not any(each.sees(node.number) for each in self.nodes)

    async def _start(self, number: int, bootstrap: Sequence[str]) -> Node:
        here = self._folder / f"node{number}"
        here.mkdir()
        ready: asyncio.Future[Node] = asyncio.get_running_loop().create_future()
        self._group.create_task(live(here, number, self._count, bootstrap, ready))
        return await ready


async def until(holds: Callable[[], bool]) -> float:
    """Seconds until it holds. Raises TimeoutError after 90."""
    began_s = time.monotonic()
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - other processes do it
            await asyncio.sleep(LOOK_EVERY_S)
    return time.monotonic() - began_s


def report(measure: str, **figures: object) -> None:
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}
    load = round(os.getloadavg()[0], 2)
    print(json.dumps({"measure": measure, **rounded, "machine_load": load, "cores": os.cpu_count()}), flush=True)


async def measure_start(fleet: Fleet) -> None:
    began_s = time.monotonic()
    await fleet.start()
    started_s = time.monotonic() - began_s
    seen_s = await until(fleet.complete)
    report("start", nodes=len(fleet.nodes), processes_ready_s=started_s, all_seen_after_ready_s=seen_s)


async def measure_idle(fleet: Fleet, window_s: float) -> None:
    before, used = await wire(fleet), [cpu_s(node) for node in fleet.nodes]
    began_s = time.monotonic()
    await asyncio.sleep(window_s)
    passed_s = time.monotonic() - began_s
    rates = [(sum(now) - sum(then)) / passed_s for now, then in zip(await wire(fleet), before, strict=True)]
    used = [(cpu_s(node) - then) / passed_s for node, then in zip(fleet.nodes, used, strict=True)]
    resident = [node.process.memory_info().rss for node in fleet.nodes]
    report(
        "idle",
        window_s=passed_s,
        wire_in_and_out_bytes_per_s_mean=statistics.mean(rates),
        wire_in_and_out_bytes_per_s_max=max(rates),
        cpu_percent_mean=100 * statistics.mean(used),
        cpu_percent_max=100 * max(used),
        rss_mb_max=max(resident) / 1e6,
    )


async def measure_death(fleet: Fleet, watch_s: float) -> None:
    dead = fleet.nodes.pop()
    os.kill(dead.process.pid, signal.SIGKILL)
    dead.leave.set()
    report("killed", missed_by_all_after_s=await until(lambda: fleet.forgotten(dead)))
    gaps = looks = 0
    end_s = time.monotonic() + watch_s
    while time.monotonic() < end_s:
        gaps, looks = gaps + fleet.gaps(), looks + 1
        await asyncio.sleep(1)
    report("watch", seconds=watch_s, looks=looks, records_missing=gaps)


async def measure_farewell(fleet: Fleet) -> None:
    leaving = fleet.nodes.pop()
    leaving.leave.set()
    report("stopped", missed_by_all_after_s=await until(lambda: fleet.forgotten(leaving)))


async def wire(fleet: Fleet) -> list[tuple[int, int]]:
    stats = [await node.network.stats() for node in fleet.nodes]
    return [(each.bytes_in, each.bytes_out) for each in stats]


def cpu_s(node: Node) -> float:
    times = node.process.cpu_times()
    return float(times.user + times.system)


async def measure(count: int, window_s: float, watch_s: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with asyncio.TaskGroup() as group:
            fleet = Fleet(Path(folder), count, group)
            await measure_start(fleet)
            await asyncio.sleep(SETTLE_S)
            await measure_idle(fleet, window_s)
            await measure_death(fleet, watch_s)
            await measure_farewell(fleet)
            for node in fleet.nodes:
                node.leave.set()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=10)
    parser.add_argument("--window-s", type=float, default=60.0)
    parser.add_argument("--watch-s", type=float, default=90.0)
    arguments = parser.parse_args()
    logging.disable(logging.ERROR)  # a process that was killed is no news here
    asyncio.run(measure(arguments.nodes, arguments.window_s, arguments.watch_s))


if __name__ == "__main__":
    main()
