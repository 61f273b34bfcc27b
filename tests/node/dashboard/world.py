"""A node in the middle of its work, for the dashboard: real journal, board and feed, over fakes of everything else."""

import math
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import msgspec
from eth_utils.address import to_checksum_address

from openlora.contracts import (
    AdapterRegistered,
    BaseRegistered,
    DatanetCreated,
    Gate,
    JobCommitted,
    Leg,
    Paid,
    Recipe,
    RecipeRegistered,
    Role,
)
from openlora.node.api.agent import create_dashboard_api
from openlora.node.api.limits import Limits
from openlora.node.api.server import Server, bind
from openlora.node.fees import Fees, divide
from openlora.node.job import JobId, JobState, SkipCode
from openlora.node.registered import Registered
from openlora.node.tasks import running
from openlora.node.telemetry import snapshot
from openlora.node.telemetry.board import Board
from openlora.node.telemetry.feed import Feed
from openlora.node.telemetry.history import EVERY_S, KEPT, History, sample
from openlora.node.telemetry.snapshot import Snapshot
from openlora.p2p.presence.record import Adapters, Ask, Gpu, Hardware, Load, Model, Presence, Status
from tests.node.facts import OPERATOR, RIVAL, block, claimed, finalized, receipt, submitted
from tests.node.telemetry.scene import Scene, observed
from tests.p2p.presence.people import Node

OLRA = 10**18
USE_FEE_WEI = OLRA // 2_000
BASE_ID = b"\x01" * 32
CANARY = "<img src=x onerror=document.title='owned'>"
ADAPTERS = ("pirate", "haiku", "json", "legal-summaries-v3", "sql-from-english", CANARY, "‮evil‬ name", "swiss-german")
DEVELOPERS = tuple(to_checksum_address(f"0x{0xA0 + number:040x}") for number in range(len(ADAPTERS)))
BASE_OWNER, TREASURY, PROVIDER, OTHER_PROVIDER = (to_checksum_address(f"0x{0xD0 + n:040x}") for n in range(4))
SKIPS = (SkipCode.PRICE_TOO_LOW, SkipCode.LOW_DISK, SkipCode.ADAPTER_UNAVAILABLE, SkipCode.DEADLINE_TOO_NEAR)


RICH_STAKE = snapshot.Stake(
    stake_wei=str(100 * OLRA),
    bonded_wei=str(3 * OLRA),
    free_wei=str(97 * OLRA),
    bond_wei=str(OLRA),
    gas_wei=str(86 * 10**16),
    gas_price_wei=str(10**9),
    payable_jobs=2_466,
    withdrawable_wei=str(61 * 10**16 + 12_345),
    read_at_s=1.0,
)


def digest(number: int) -> bytes:
    return bytes([0x11 * (number + 1) % 256, number]) * 16


def recipe(number: int) -> Recipe:
    """Recipe 1 is the base alone; n > 1 has the adapters n-2 and n-1, at weights of 0.7 and 0.3; 3 is paid per use."""
    if number == 1:
        return _recipe((), Leg(BASE_OWNER, Role.BASE, 1_000, 0), Leg(TREASURY, Role.PROTOCOL, 500, 0))
    first, second = number - 2, (number - 1) % len(ADAPTERS)
    return _recipe(
        (digest(first), digest(second)),
        Leg(DEVELOPERS[first], Role.ADAPTER, 1_400, 0),
        Leg(PROVIDER, Role.DATANET, 700, 0),
        Leg(DEVELOPERS[second], Role.ADAPTER, 600, 0),
        Leg(OTHER_PROVIDER, Role.DATANET, 300, 0),
        Leg(BASE_OWNER, Role.BASE, 500, 0),
        Leg(TREASURY, Role.PROTOCOL, 500, 0),
        *([Leg(DEVELOPERS[second], Role.USE, 0, USE_FEE_WEI)] if number == 3 else []),
    )


def _recipe(adapters: tuple[bytes, ...], *legs: Leg) -> Recipe:
    return Recipe(
        base_id=BASE_ID,
        adapters=adapters,
        weights=(7_000, 3_000)[: len(adapters)],
        legs=legs,
        use_fee=sum(leg.per_use for leg in legs),
        gate=Gate.OPEN,
    )


class Facts:
    """What the chain answers; anvil's part."""

    async def recipe(self, recipe_id: int) -> Recipe:
        return recipe(recipe_id)

    async def adapter(self, wanted: bytes) -> SimpleNamespace:
        number = [digest(n) for n in range(len(ADAPTERS))].index(wanted)
        return SimpleNamespace(datanets=(1 + number % 2,))

    async def datanet_payees(self, datanet_id: int) -> frozenset[str]:
        return frozenset({PROVIDER if datanet_id == 1 else OTHER_PROVIDER})


@dataclass
class World:
    scene: Scene
    board: Board
    feed: Feed
    records: list[Presence]
    changes: dict[str, object] = field(default_factory=dict)  # parts of the snapshot that are not the scene's
    paid_by: dict[tuple[Role, str], int] = field(default_factory=dict)  # what the chain says, as its events tell

    async def observe(self) -> Snapshot:
        return msgspec.structs.replace(await self.scene.observer.snapshot(), **self.changes)

    def register(self) -> None:
        """The base, its adapters and datanets, and recipes 1 to 8."""
        self.apply(BaseRegistered(BASE_ID, BASE_OWNER, "smollm2-135m-instruct"))
        self.apply(DatanetCreated(1, PROVIDER, bytes(32), "shanties"), DatanetCreated(2, PROVIDER, bytes(32), "poems"))
        for number, name in enumerate(ADAPTERS):
            self.apply(AdapterRegistered(digest(number), BASE_ID, DEVELOPERS[number], name))
        for number in range(1, len(ADAPTERS) + 1):
            made = recipe(number)
            self.apply(RecipeRegistered(number, BASE_ID, made.adapters, made.weights))

    def apply(self, *events: object) -> None:
        """A block of events, as the agent applies them."""
        self.scene.apply(*events)
        at = block(self.scene.journal.cursor.number)
        for event in events:
            self.board.fees.apply(event, at)
            self.board.registered.apply(event, at)

    def submit(self, job_id: int, recipe_id: int = 1, price_wei: int = OLRA // 5) -> None:
        self.apply(submitted(job_id, recipe_id=recipe_id, out_price_per_k=price_wei, in_price_per_k=price_wei // 2))

    def answer(self, job_id: int, recipe_id: int, fee_wei: int) -> None:
        """Ours, from the claim to the commit."""
        self.apply(claimed(job_id))
        told = replace(receipt(job_id), fee=fee_wei, recipe_id=recipe_id, in_tokens=38, out_tokens=47)
        self.scene.journal.record_receipt(JobId(job_id), bytes([job_id % 256]) * 32, msgspec.json.encode(told))
        self.apply(JobCommitted(job_id=job_id, node=OPERATOR, receipt_hash=bytes([job_id % 256]) * 32, receipt=told))

    def pay(self, job_id: int, recipe_id: int, fee_wei: int, at_s: int | None = None) -> None:
        """What finalizing does: one event for the job, one for each payee."""
        parts = divide(recipe(recipe_id).legs, self.board.fees.total_wei(recipe_id), fee_wei, OPERATOR)
        paid = [Paid(to_checksum_address(payee), role, recipe_id, wei) for role, payee, wei in parts]
        for event in paid:
            self.paid_by[event.role, event.payee] = self.paid_by.get((event.role, event.payee), 0) + event.amount
        self.apply(finalized(job_id, fee=fee_wei), *paid)
        if at_s is not None:
            self.scene.journal.time_payments(self.scene.journal.cursor.number, at_s)


@asynccontextmanager
async def world(folder: Path) -> AsyncIterator[World]:
    async with observed(folder) as scene:
        journal = scene.journal
        made: list[World] = []
        board = Board(
            observe=lambda: made[0].observe(),
            nodes=lambda: made[0].records,
            journal=journal,
            fees=Fees(journal),
            registered=Registered(journal),
            facts=Facts(),  # type: ignore[arg-type]
            history=History(lambda: made[0].observe(), time.time),
        )
        made.append(World(scene, board, Feed(board, look_every_s=0.1), []))
        yield made[0]


@dataclass(frozen=True, slots=True)
class Served:
    url: str
    world: World
    http: httpx.AsyncClient


@asynccontextmanager
async def served(shown: World, keys: Collection[str] = (), port: int = 0) -> AsyncIterator[Served]:
    """The dashboard of `shown`; `port` 0 is a free one."""
    limits = Limits()
    server = Server()
    app = create_dashboard_api(shown.board, shown.feed, limits, keys)
    with bind("127.0.0.1", port, limits) as sock:
        sock.listen()
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        async with (
            running(server.serve(app, sock, limits), "server") as task,
            running(shown.feed.run(), "feed"),
            httpx.AsyncClient(base_url=url, timeout=10, verify=False, trust_env=False) as http,
        ):
            await http.get("/")
            yield Served(url, shown, http)
            server.stop()
            await task


# ---- a busy node ----


def busy(shown: World) -> None:
    """Sixty jobs over a day, payments in every role, eight adapters, six nodes, half an hour of graphs."""
    now_s = int(time.time())
    shown.scene.now_s = now_s
    shown.register()
    for job_id in range(1, 61):
        recipe_id = 1 + job_id % len(ADAPTERS)
        shown.submit(job_id, recipe_id)
        fee_wei = (3 + job_id * 7 % 11) * OLRA // 1_000 + job_id
        match job_id % 10:
            case 3:
                shown.scene.journal.move(JobId(job_id), JobState.SKIPPED, skip=SKIPS[job_id // 10 % len(SKIPS)])
            case 6:
                shown.apply(claimed(job_id, node=RIVAL))
            case _ if job_id > 57:
                shown.apply(claimed(job_id))
            case _ if job_id > 55:
                shown.answer(job_id, recipe_id, fee_wei)
            case _:
                shown.answer(job_id, recipe_id, fee_wei)
                shown.pay(job_id, recipe_id, fee_wei, now_s - (56 - job_id) * 1_560)
    for number in range(40):
        role, amount = (Role.ADAPTER, 4) if number % 3 else (Role.DATANET, 2)
        shown.apply(Paid(OPERATOR, role, 2, amount * OLRA // 1_000))
        shown.scene.journal.time_payments(shown.scene.journal.cursor.number, now_s - number * 2_100)
    shown.scene.loaded.held = [digest(number) for number in range(3)]
    shown.scene.disk.held = [digest(number) for number in range(len(ADAPTERS))]
    shown.scene.disk.used_bytes = 412 << 20
    shown.records += [_record(number, now_s) for number in range(6)]


async def at_work(shown: World, now_s: float) -> None:
    """Figures of an engine at work on two GPUs, now and for the last half hour."""
    state = await shown.scene.observer.snapshot()
    gpus = tuple(
        snapshot.Gpu(
            index=index,
            name="NVIDIA L4",
            driver="550.54.15",
            memory_bytes=24 << 30,
            memory_used_bytes=used_gib << 30,
            busy_percent=busy_percent,
        )
        for index, used_gib, busy_percent in ((0, 17, 78), (1, 12, 61))
    )
    replaced = msgspec.structs.replace
    shown.changes = {
        "machine": replaced(state.machine, gpus=gpus, load_1m_processes=1.4, ram_available_bytes=9 << 30),
        "engine": replaced(
            state.engine,
            kv_capacity_tokens=32_768,
            kv_free_tokens=19_200,
            kv_cached_tokens=8_100,
            running_requests=11,
            waiting_requests=2,
            generated_tokens=482_133,
            cache_hit_tokens=91_020,
        ),
        "network": replaced(state.network, seen_nodes=len(shown.records), connected_peers=5, fetched_bytes=41 << 20),
        "stake": RICH_STAKE,
    }
    latest = sample(await shown.observe(), now_s)
    for number in range(KEPT):
        wave = 0.5 + 0.35 * math.sin(number / 17) + 0.15 * math.sin(number / 3.1)
        shown.board.history.samples.append(
            replaced(
                latest,
                at_s=now_s - (KEPT - number) * EVERY_S,
                cpu_load_processes=round(0.3 + 1.5 * wave, 2),
                ram_used_bytes=int((5 + 2.5 * wave) * 2**30),
                gpu_busy_percent=round(20 + 75 * wave, 1),
                gpu_memory_used_bytes=int((22 + 8 * wave) * 2**30),
                kv_used_tokens=int(4_000 + 14_000 * wave),
                kv_cached_tokens=int(2_000 + 7_000 * wave),
                running_requests=int(14 * wave),
                waiting_requests=int(max(0, 6 * wave - 4)),
                generated_tokens=number * 1_300 + int(900 * math.sin(number / 9)),
                cache_hit_tokens=number * 250,
                fetched_bytes=number * 120_000,
                served_bytes=number * 310_000,
            )
        )


def _record(number: int, now_s: int) -> Presence:
    """This node, then five others."""
    machines = (
        Hardware("AMD EPYC 7B13", 16, 64 << 30, (Gpu("NVIDIA L4", 24 << 30, "550"), Gpu("NVIDIA L4", 24 << 30, "550"))),
        Hardware("Intel(R) Xeon(R) Platinum 8481C", 26, 234 << 30, (Gpu("NVIDIA H100 80GB HBM3", 80 << 30, "550"),)),
        Hardware("Apple M2 Ultra", 24, 192 << 30, ()),
        Hardware("AMD Ryzen 9 7950X", 32, 128 << 30, (Gpu("NVIDIA GeForce RTX 4090", 24 << 30, "555"),)),
        Hardware("Intel(R) Xeon(R) Processor 6/207/2", 2, 16 << 30, ()),
        Hardware(CANARY, 4, 32 << 30, ()),
    )
    operator = OPERATOR.lower() if number == 0 else Node(f"{number}").operator
    name = CANARY if number == 5 else "smollm2-135m-instruct"
    held = [digest(n) for n in range(len(ADAPTERS))]
    return Node(f"{number}").presence(
        at=now_s - 4 * number,
        operator=operator,
        status=Status(
            machines[number],
            (Model("01" * 32, name, "bfloat16", 8192, "cpu-amx" if number == 4 else "triton"),),
            Adapters.of(held[: 3 + number % 3], (), held),
            Ask(str(OLRA // 10 * (8 + number) // 8), str(OLRA // 5 * (8 + number) // 8)),
            Load(number % 3, number * 2 % 5, 4 + 2 * (number % 3)),
            "0.1.0",
        ),
    )
