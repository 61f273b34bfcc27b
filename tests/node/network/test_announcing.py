"""What a node says of itself, and how it reads what others say."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest

from openlora.contracts import Gate, Recipe
from openlora.node import hardware
from openlora.node.config import MarketConfig
from openlora.node.content import adapter_cid
from openlora.node.errors import NetworkDown
from openlora.node.job import Job, JobId
from openlora.node.live_claims import LiveClaims
from openlora.node.network import announcing
from openlora.node.network.announcing import Announcer, Workload, hardware_record
from openlora.node.network.messages import Announce
from openlora.node.network.rivals import rivals
from openlora.node.network.table import COLUMNS, node_view, table_rows
from openlora.node.tasks import running
from openlora.node.terms import Terms
from openlora.p2p.presence.record import Ask, Hardware, Model, Presence
from tests.node.facts import OPERATOR, RIVAL, claimed, spec, spec_hash
from tests.node.network.fake_network import peer_id

PIRATE, HAIKU = b"\x02" * 32, b"\x03" * 32
BASE = b"\x01" * 32
US = peer_id("us")
IDLE = Workload(queued=0, running=0)
RECIPE = Recipe(BASE, (PIRATE,), (10_000,), (), 0, Gate.OPEN)
JOB = Job(JobId(1), spec(in_price_per_k=10, out_price_per_k=30), spec_hash(1), None, None)


@dataclass
class Told:
    """A network that notes what it is told, and may be down."""

    peer_id: str = US
    addresses: tuple[str, ...] = (f"/ip4/127.0.0.1/tcp/4001/p2p/{US}",)
    announced: list[Announce] = field(default_factory=list)
    provided: list[str] = field(default_factory=list)
    down: bool = False

    async def announce(self, announcement: Announce) -> None:
        if self.down:
            raise NetworkDown("it is being restarted")
        self.announced.append(announcement)

    async def provide(self, cids: list[str]) -> None:
        self.provided += cids


@dataclass
class Held:
    """Adapters on disk or in the engine, least recently used first."""

    digests_: list[bytes] = field(default_factory=list)

    def digests(self) -> tuple[bytes, ...]:
        return tuple(self.digests_)

    @property
    def loaded(self) -> tuple[bytes, ...]:
        return tuple(self.digests_)


@dataclass
class Scene:
    network: Told
    store: Held
    loaded: Held
    announcer: Announcer
    load: Workload = IDLE


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(announcing, "LOOK_EVERY_S", 0.01)
    network: Any = Told()
    store: Any = Held()
    loaded: Any = Held()
    announcer = Announcer(
        network=network,
        chain_id=31337,
        operator=OPERATOR,
        hot_key=RIVAL,
        binding=bytes(65),
        hardware=Hardware("a CPU", 2, 1 << 34, ()),
        model=Model(BASE.hex(), "smollm2", "bfloat16", 2048),
        terms=Terms(MarketConfig(min_in_price_wei_per_k=5, min_out_price_wei_per_k=7, max_live_jobs=4), 1),
        residency=loaded,
        store=store,
        workload=lambda: scene.load,
    )
    scene = Scene(network, store, loaded, announcer)
    return scene


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for belongs to the code under test
            await asyncio.sleep(0.005)


async def test_every_change_is_told_once_and_adapters_on_disk_to_the_dht(scene: Scene):
    async with running(scene.announcer.run(), "announcer"):
        await until(lambda: len(scene.network.announced) == 1)
        scene.store.digests_ += [PIRATE, HAIKU]
        scene.loaded.digests_ += [HAIKU]
        await until(lambda: len(scene.network.announced) == 2)
        await asyncio.sleep(0.05)
    first, second = scene.network.announced
    assert (first.operator, first.hot_key) == (OPERATOR.lower(), RIVAL.lower())
    assert first.status.ask == Ask("5", "7")
    assert list(second.status.adapters.disk.digests()) == [HAIKU, PIRATE]
    assert list(second.status.adapters.slots.digests()) == [HAIKU]
    assert scene.network.provided == [adapter_cid(PIRATE), adapter_cid(HAIKU)]


async def test_what_could_not_be_told_is_told_when_the_network_is_back(scene: Scene):
    scene.network.down = True
    async with running(scene.announcer.run(), "announcer"):
        await asyncio.sleep(0.05)
        scene.network.down = False
        await until(lambda: scene.network.announced)


def test_the_machine_is_told_as_it_is():
    gpu = hardware.Gpu(0, "NVIDIA H100 80GB HBM3", 80 << 30, "550.54")
    told = hardware_record(hardware.Hardware("Xeon®", 2, 1 << 34, (gpu,)))
    assert (told.cpu, told.cores, told.ram_bytes) == ("Xeon?", 2, 1 << 34)
    assert [(card.name, card.memory_bytes, card.driver) for card in told.gpus] == [(gpu.name, 80 << 30, "550.54")]


def changed(record: Presence, **changes: Any) -> Presence:
    return msgspec.structs.replace(record, status=msgspec.structs.replace(record.status, **changes))


def test_rivals_serve_the_base_at_the_price_and_have_room(scene: Scene):
    scene.store.digests_ += [PIRATE]
    other = scene.announcer.record()
    claims = LiveClaims(clock=lambda: 0.0)

    def found(record: Presence, own: str = RIVAL) -> list[tuple[bool, bool]]:
        return [(PIRATE in rival.adapters, rival.crowded) for rival in rivals([record], claims, own, JOB, RECIPE)]

    assert found(other) == [(True, False)]
    assert found(other, own=OPERATOR) == []
    assert found(changed(other, models=())) == []
    assert found(changed(other, ask=Ask("11", "7"))) == []
    assert found(changed(other, ask=Ask("5", "31"))) == []
    for number in (2, 3):
        claims.apply(claimed(number))
    assert found(other) == [(True, True)]
    for number in (4, 5):
        claims.apply(claimed(number))
    assert found(other) == []


def test_the_table_shows_machine_models_tiers_prices_and_jobs(scene: Scene):
    scene.load = Workload(queued=3, running=2)
    scene.store.digests_ += [PIRATE, HAIKU]
    scene.loaded.digests_ += [PIRATE]
    view = msgspec.json.decode(msgspec.json.encode(node_view(scene.announcer.record())))
    assert view["adapters"]["disk"] == {"total": 2, "digests": ["0x" + HAIKU.hex(), "0x" + PIRATE.hex()]}
    assert view["load"] == {"queued": 3, "running": 2, "capacity": 4}
    (row,) = table_rows([view], str)
    shown = dict(zip(COLUMNS, row, strict=True))
    assert shown["operator"] == OPERATOR.lower()
    assert shown["machine"] == "2 × a CPU, 16 GiB"
    assert (shown["in slots #"], shown["on disk #"], shown["jobs"]) == (1, 2, "2/4 +3")
    assert shown["ask in:out OLRA"] == "5:7"


def test_a_gpu_comes_before_the_cpu_in_the_table(scene: Scene):
    gpu = hardware.Gpu(0, "NVIDIA L4", 24 << 30, "550")
    scene.announcer.hardware = hardware_record(hardware.Hardware("a CPU", 2, 1 << 34, (gpu,)))
    (row,) = table_rows([msgspec.to_builtins(node_view(scene.announcer.record()))], str)
    assert row[1] == "NVIDIA L4 24 GiB"
