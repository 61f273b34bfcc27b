"""Nodes that tell of themselves, for the tests."""

from hashlib import sha256

from openlora.p2p.errors import GossipRefused
from openlora.p2p.identity import Identity
from openlora.p2p.presence.record import (
    Adapters,
    Ask,
    Gpu,
    Hardware,
    Load,
    Model,
    Presence,
    Status,
    encode,
)

CHAIN_ID = 31337
NOW = 1_700_000_000
BINDING = b"\x01" * 65


def digests(name: str, count: int) -> list[bytes]:
    return [sha256(f"{name} {index}".encode()).digest() for index in range(count)]


def status(
    slots: int = 2, ram: int = 3, disk: int = 4, *, queued: int = 0, running: int = 1, price: str = str(2**96 - 1)
) -> Status:
    return Status(
        Hardware("AMD EPYC 7B13 64-Core Processor", 64, 2**38, (Gpu("NVIDIA H100 80GB HBM3", 80 << 30, "550.54.15"),)),
        (Model("ab" * 32, "SmolLM2-135M-Instruct", "bfloat16", 8192),),
        Adapters.of(digests("slot", slots), digests("ram", ram), digests("disk", disk)),
        Ask("1000000000000000000", price),
        Load(queued, running, 16),
        "openlora 0.1.0",
    )


class Node:
    """One operator with one peer; `record` is its next one, unless told otherwise."""

    def __init__(self, name: str) -> None:
        self.identity = Identity(sha256(f"peer {name}".encode()).digest())
        self.operator = "0x" + sha256(f"operator {name}".encode()).hexdigest()[:40]
        self.hot_key = "0x" + sha256(f"hot key {name}".encode()).hexdigest()[:40]
        self.sequence = 0

    def presence(self, *, at: int = NOW, lives_s: int = 60, **changes: object) -> Presence:
        self.sequence += 1
        fields: dict[str, object] = {
            "v": 1,
            "chain_id": CHAIN_ID,
            "operator": self.operator,
            "hot_key": self.hot_key,
            "binding": BINDING,
            "peer": self.identity.peer_id,
            "sequence": self.sequence,
            "issued_at": at,
            "expires_at": at + lives_s,
            "addresses": (f"/ip4/127.0.0.1/tcp/4001/p2p/{self.identity.peer_id}",),
            "status": status(),
        }
        return Presence(**{**fields, **changes})  # type: ignore[arg-type]

    def record(self, *, at: int = NOW, lives_s: int = 60, **changes: object) -> bytes:
        return encode(self.presence(at=at, lives_s=lives_s, **changes), self.identity.sign)


class Registry:
    """An `authorise`: everybody is staked but the `unstaked`, and BINDING is the only good one."""

    def __init__(self) -> None:
        self.unstaked: set[str] = set()
        self.asked = 0

    def __call__(self, presence: Presence) -> None:
        self.asked += 1
        if presence.operator in self.unstaked:
            raise GossipRefused("unstaked", "no stake")
        if presence.binding != BINDING:
            raise GossipRefused("binding_forged", "not the hot key's")


class Clock:
    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now
