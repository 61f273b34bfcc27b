"""What this node tells the network of itself."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Final

from openlora.node import hardware
from openlora.node.adapters.residency import AdapterResidency
from openlora.node.adapters.store import AdapterStore
from openlora.node.content import adapter_cid
from openlora.node.errors import NetworkDown
from openlora.node.network.client import NetworkClient
from openlora.node.network.messages import Announce
from openlora.node.terms import Terms
from openlora.p2p.network import PeerId
from openlora.p2p.presence.record import (
    MAX_LIFETIME_S,
    Adapters,
    Ask,
    Gpu,
    Hardware,
    Load,
    Model,
    Presence,
    Status,
    plain_text,
)

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Workload:
    """How busy the node is, in jobs."""

    queued: int
    running: int


@dataclass(slots=True)
class Announcer:
    """Owns what others hear of this node (hardware, model, adapters by tier, prices, load), and tells each change
    within a second. Adapters on disk are announced in the DHT too, for peers that have no record of this node.
    """

    network: NetworkClient
    chain_id: int
    operator: str
    hot_key: str
    binding: bytes
    hardware: Hardware
    model: Model
    terms: Terms
    residency: AdapterResidency
    store: AdapterStore
    workload: Callable[[], Workload]
    version: str = field(default_factory=lambda: plain_text(version("openlora")))
    _told: Status | None = field(default=None)

    async def run(self) -> None:
        """Announces until cancelled."""
        while True:
            status = self.status()
            if status != self._told:
                try:
                    await self._tell(status)
                    self._told = status
                except NetworkDown as error:
                    log.warning("event=announcement_waits reason=%r", str(error))
            await asyncio.sleep(LOOK_EVERY_S)

    async def _tell(self, status: Status) -> None:
        operator, hot_key = self.operator.lower(), self.hot_key.lower()
        await self.network.announce(Announce(operator=operator, hot_key=hot_key, binding=self.binding, status=status))
        await self.network.provide([adapter_cid(digest) for digest in self.store.digests()])

    def record(self) -> Presence:
        """This node as its own table shows it; the one that others are sent is made, numbered and signed elsewhere."""
        now_s = int(time.time())
        return Presence(
            v=1,
            chain_id=self.chain_id,
            operator=self.operator.lower(),
            hot_key=self.hot_key.lower(),
            binding=self.binding,
            peer=PeerId(self.network.peer_id),
            sequence=0,
            issued_at=now_s,
            expires_at=now_s + MAX_LIFETIME_S,
            addresses=tuple(self.network.addresses),
            status=self.status(),
        )

    def status(self) -> Status:
        load, market = self.workload(), self.terms.market
        return Status(
            hardware=self.hardware,
            models=(self.model,),
            adapters=Adapters.of(slots=newest(self.residency.loaded), ram=(), disk=newest(self.store.digests())),
            ask=Ask(str(market.min_in_price_wei_per_k), str(market.min_out_price_wei_per_k)),
            load=Load(load.queued, load.running, self.terms.capacity_jobs),
            version=self.version,
        )


def newest(digests: Iterable[bytes]) -> list[bytes]:
    """`digests`, which come least recently used first, the other way round."""
    return list(digests)[::-1]


def hardware_record(machine: hardware.Hardware) -> Hardware:
    """The machine's figures as a record carries them."""
    gpus = tuple(Gpu(plain_text(gpu.name), gpu.memory_bytes, plain_text(gpu.driver)) for gpu in machine.gpus[:8])
    return Hardware(plain_text(machine.cpu), machine.cores, machine.ram_bytes, gpus)
