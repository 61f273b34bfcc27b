"""A node's presence: what it is, what it holds and what it asks, signed with its libp2p key.

On the wire a record is 64 bytes of Ed25519 signature, then the payload: msgpack, every struct an array of its fields
in the order given here. The signature covers a prefix of its own and the payload. Equal records have equal bytes.
The schema is closed and every field is bounded, so whatever decodes is harmless to keep and to print.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Final, Literal, Self

import msgspec
from msgspec import Meta

from openlora.p2p.errors import GossipRefused
from openlora.p2p.identity import verify
from openlora.p2p.network import PeerId

MAX_RECORD_BYTES: Final = 8192  # signature included
MAX_LIFETIME_S: Final = 60
DIGEST_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
# Digests told of each tier: everybody hears each record every 20 s, so it has 2.5 KB at most on a machine with one GPU.
# The totals are always told, and the DHT knows the rest.
MAX_SLOTS: Final = 32
MAX_RAM: Final = 8
MAX_DISK: Final = 16
_SIGNED_PREFIX: Final = b"/openlora/1/presence\0"

Seconds = Annotated[int, Meta(ge=0, le=2**40)]  # unix
Count = Annotated[int, Meta(ge=0, le=2**31)]
Bytes = Annotated[int, Meta(ge=0, le=2**53)]
Address = Annotated[str, Meta(pattern=r"^0x[0-9a-f]{40}\Z")]  # EVM, lower case
BaseId = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Text = Annotated[str, Meta(pattern=r"^[ -~]{0,64}\Z")]  # printable ASCII; `plain_text` makes any text fit
Multiaddr = Annotated[str, Meta(pattern=r"^/[!-~]{1,127}\Z")]
WeiText = Annotated[str, Meta(pattern=r"^(0|[1-9][0-9]{0,28})\Z")]  # a uint96 is over msgpack's 64 bits


class _Closed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An array of exactly the fields; anything more, less or else is refused."""


class Gpu(_Closed, frozen=True):
    name: Text
    memory_bytes: Bytes
    driver: Text


class Hardware(_Closed, frozen=True):
    cpu: Text  # model name
    cores: Count  # that the node may use
    ram_bytes: Bytes
    gpus: Annotated[tuple[Gpu, ...], Meta(max_length=8)]


class Model(_Closed, frozen=True):
    base_id: BaseId
    name: Text
    dtype: Annotated[str, Meta(pattern=r"^[ -~]{0,16}\Z")]
    max_context: Count  # tokens
    engine: Text = ""  # what computes: its kernels, or "vllm" and a version


class Tier(_Closed, frozen=True):
    """Adapters in one place: how many there are, and the digests of the most useful, best first, one after another."""

    total: Count
    packed: Annotated[bytes, Meta(max_length=max(MAX_SLOTS, MAX_RAM, MAX_DISK) * DIGEST_BYTES)] = b""

    def __post_init__(self) -> None:
        if len(self.packed) % DIGEST_BYTES or len(self) > self.total:
            raise ValueError("a tier tells whole digests, and no more of them than it has")

    @classmethod
    def of(cls, digests: Sequence[bytes], most: int) -> Self:
        """The first `most` of `digests`, each of 32 bytes, by name; the rest by number."""
        return cls(len(digests), b"".join(digests[:most]))

    def __len__(self) -> int:
        """Digests told."""
        return len(self.packed) // DIGEST_BYTES

    def __contains__(self, digest: bytes) -> bool:
        start = self.packed.find(digest)
        while start > 0 and start % DIGEST_BYTES:  # across two digests
            start = self.packed.find(digest, start + 1)
        return start >= 0 and len(digest) == DIGEST_BYTES

    def digests(self) -> Sequence[bytes]:
        return [self.packed[at : at + DIGEST_BYTES] for at in range(0, len(self.packed), DIGEST_BYTES)]


class Adapters(_Closed, frozen=True):
    """By how near they are to the arithmetic; a digest may be in several tiers."""

    slots: Tier
    ram: Tier
    disk: Tier

    @classmethod
    def of(cls, slots: Sequence[bytes], ram: Sequence[bytes], disk: Sequence[bytes]) -> Self:
        """Each best first. A record that grows too large loses the last on disk first."""
        return cls(Tier.of(slots, MAX_SLOTS), Tier.of(ram, MAX_RAM), Tier.of(disk, MAX_DISK))

    def nearest(self, digest: bytes) -> Literal["slots", "ram", "disk"] | None:
        """The best tier that is known to hold the adapter."""
        if digest in self.slots:
            return "slots"
        if digest in self.ram:
            return "ram"
        return "disk" if digest in self.disk else None


class Ask(_Closed, frozen=True):
    """Token wei per 1,000 tokens, in decimal."""

    in_price_per_k: WeiText
    out_price_per_k: WeiText


class Load(_Closed, frozen=True):
    queued: Count  # jobs and requests that wait
    running: Count
    capacity: Count  # that can run at once


class Status(_Closed, frozen=True):
    """What changes while a node works."""

    hardware: Hardware
    models: Annotated[tuple[Model, ...], Meta(max_length=8)]
    adapters: Adapters
    ask: Ask
    load: Load
    version: Text  # of the software


class Presence(_Closed, frozen=True):
    """One node at one time. `binding` is the hot key's signature that ties the operator to the peer; what it must be
    is up to the `authorise` of the book."""

    v: Literal[1]
    chain_id: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    operator: Address
    hot_key: Address
    binding: Annotated[bytes, Meta(min_length=65, max_length=65)]
    peer: Annotated[PeerId, Meta(pattern=r"^12D3Koo[1-9A-HJ-NP-Za-km-z]{45}\Z")]
    sequence: Annotated[int, Meta(ge=0, le=2**63 - 1)]  # rises with every record of an operator
    issued_at: Seconds
    expires_at: Seconds
    addresses: Annotated[tuple[Multiaddr, ...], Meta(max_length=8)]
    status: Status

    def __post_init__(self) -> None:
        own = f"/p2p/{self.peer}"
        if not all(address.endswith(own) for address in self.addresses):
            raise ValueError("an address is not one of the record's own peer")


_decoder: Final = msgspec.msgpack.Decoder(Presence)
_encoder: Final = msgspec.msgpack.Encoder()


def encode(presence: Presence, sign: Callable[[bytes], bytes]) -> bytes:
    """The record in at most 8 KiB, signed: adapters that do not fit go untold, the last on disk first.

    Raises msgspec.ValidationError, rather than send it, for a record that others would refuse."""
    payload = _encoder.encode(presence)
    excess = len(payload) + SIGNATURE_BYTES - MAX_RECORD_BYTES
    if excess > 0:
        untold = -(-excess // DIGEST_BYTES)
        status = msgspec.structs.replace(presence.status, adapters=_shorten(presence.status.adapters, untold))
        payload = _encoder.encode(msgspec.structs.replace(presence, status=status))
    _decoder.decode(payload)
    return sign(_SIGNED_PREFIX + payload) + payload


def decode(data: bytes) -> Presence:
    """The record, its signature not yet checked. Raises GossipRefused: oversize, malformed."""
    if len(data) > MAX_RECORD_BYTES:
        raise GossipRefused("oversize", f"a presence record of {len(data)} bytes; the limit is {MAX_RECORD_BYTES}")
    try:
        return _decoder.decode(memoryview(data)[SIGNATURE_BYTES:])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise GossipRefused("malformed", f"not a presence record: {error}") from None


def check_signature(presence: Presence, data: bytes) -> None:
    """Raises GossipRefused (forged) unless `data`, which `presence` was decoded from, is signed by its own peer."""
    if not verify(presence.peer, _SIGNED_PREFIX + data[SIGNATURE_BYTES:], data[:SIGNATURE_BYTES]):
        raise GossipRefused("forged", f"a presence record that {presence.peer} has not signed")


def plain_text(text: str) -> str:
    """`text` as a record may carry it: printable ASCII, at most 64 characters."""
    return "".join(character if " " <= character <= "~" else "?" for character in text[:64])


def _shorten(adapters: Adapters, untold: int) -> Adapters:
    """Without the `untold` least useful digests."""
    tiers = []
    for tier in (adapters.disk, adapters.ram, adapters.slots):
        kept = max(0, len(tier) - untold)
        untold -= len(tier) - kept
        tiers.append(Tier(tier.total, tier.packed[: kept * DIGEST_BYTES]))
    disk, ram, slots = tiers
    return Adapters(slots, ram, disk)
