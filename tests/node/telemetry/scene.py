"""An observer over a real journal and engine stream, and fakes for chain, network, adapters and GPUs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openlora.node.config import MarketConfig
from openlora.node.engine.client import EngineClient, in_process_engine
from openlora.node.errors import ChainError
from openlora.node.hardware import Gpu
from openlora.node.journal import Journal
from openlora.node.live_claims import LiveClaims
from openlora.node.network.announcing import Announcer, Workload
from openlora.node.network.messages import Stats
from openlora.node.queue_events import QueueEvents
from openlora.node.telemetry.alerts import Thresholds
from openlora.node.telemetry.observer import NO_STATS, Observer
from openlora.node.telemetry.snapshot import Stake
from openlora.node.terms import Terms
from openlora.p2p.presence.record import Hardware, Model
from tests.node.facts import OPERATOR, RIVAL, block, open_journal
from tests.node.fake_engine import FakeEngine
from tests.node.network.fake_network import peer_id

US = peer_id("us")
CHAIN_ID = 31337
RICH = Stake(
    stake_wei="100",
    bonded_wei="0",
    free_wei="100",
    bond_wei="1",
    gas_wei="1000000000",
    gas_price_wei="1",
    payable_jobs=2_500,
    withdrawable_wei="3",
    read_at_s=1.0,
)


@dataclass
class Network:
    peer_id: str = US
    addresses: tuple[str, ...] = (f"/ip4/127.0.0.1/tcp/4001/p2p/{US}",)
    alive: bool = True
    silent: bool = False

    def nodes(self) -> tuple[()]:
        return ()

    async def stats(self) -> Stats:
        if self.silent:
            await asyncio.Event().wait()
        return NO_STATS


@dataclass
class Adapters:
    """On disk or in the engine, least recently used first."""

    held: list[bytes] = field(default_factory=list)
    used_bytes: int = 7

    def digests(self) -> tuple[bytes, ...]:
        return tuple(self.held)

    @property
    def loaded(self) -> tuple[bytes, ...]:
        return tuple(self.held)


@dataclass
class Purse:
    stake: Stake = RICH
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    silent: bool = False

    async def block_time(self, number: int) -> int:
        return 12 * number

    async def read(self) -> Stake:
        self.asked.set()
        if self.silent:
            raise ChainError("no RPC answers")
        return self.stake


@dataclass
class Scene:
    observer: Observer
    engine: EngineClient
    journal: Journal
    claims: LiveClaims
    network: Network
    loaded: Adapters
    disk: Adapters
    purse: Purse
    now_s: float = 1_000.0
    _blocks: int = 0

    def apply(self, *events: object) -> None:
        """What the follower does with a block of `events`."""
        self._blocks += 1
        with self.journal.transaction():
            for event in events:
                QueueEvents(self.journal, OPERATOR).apply(event, block(self._blocks))
                self.claims.apply(event)
            self.journal.advance(block(self._blocks))

    def reorganise(self, depth: int) -> None:
        self._blocks -= depth
        self.journal.unwind(self._blocks)


@asynccontextmanager
async def observed(folder: Path, gpus: tuple[Gpu, ...] = ()) -> AsyncIterator[Scene]:
    network, loaded, disk, purse = Network(), Adapters(), Adapters(), Purse()
    fakes: Any = (network, loaded, disk)
    with open_journal(folder) as journal:
        async with in_process_engine(FakeEngine()) as engine:
            claims = LiveClaims()
            announcer = Announcer(
                network=fakes[0],
                chain_id=CHAIN_ID,
                operator=OPERATOR,
                hot_key=RIVAL,
                binding=bytes(65),
                hardware=Hardware("a CPU", 2, 1 << 34, ()),
                model=Model("01" * 32, "smollm2", "bfloat16", 2048),
                terms=Terms(MarketConfig(max_live_jobs=4), 1),
                residency=fakes[1],
                store=fakes[2],
                workload=lambda: Workload(0, 0),
            )
            observer = Observer(
                chain_id=CHAIN_ID,
                state_dir=folder,
                announcer=announcer,
                journal=journal,
                engine=engine,
                engine_profile=1,
                active_jobs=lambda: 2,
                claims=claims,
                purse=purse.read,
                block_time=purse.block_time,
                thresholds=Thresholds(disk_free_bytes=0),
                gpus=lambda: gpus,
                chain_s=lambda: scene.now_s,
            )
            scene = Scene(observer, engine, journal, claims, network, loaded, disk, purse)
            yield scene
