"""A hostile peer: speaks noise and negotiates yamux as it should, and then sends whatever frames it likes."""

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from os import urandom
from types import MappingProxyType
from typing import Final

import trio

from openlora.p2p.host.tcp import MeteredStream  # brings libp2p, tamed
from openlora.p2p.identity import Identity
from openlora.p2p.network import PeerId

# isort: split
from libp2p.abc import ISecureConn
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.security.security_multistream import SecurityMultistream

HUNG_UP: Final = (BaseLibp2pError, OSError, trio.BrokenResourceError)
DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
_HEADER = struct.Struct("!BBHII")


def frame(kind: int, flags: int, stream_id: int, length: int, data: bytes = b"", version: int = 0) -> bytes:
    return _HEADER.pack(version, kind, flags, stream_id, length) + data


def delimited(line: str) -> bytes:
    """One message of multistream-select."""
    text = line.encode() + b"\n"
    return bytes((len(text),)) + text


class Attacker:
    """One secured connection to a victim."""

    def __init__(self, identity: Identity, secured: ISecureConn) -> None:
        self.peer_id: PeerId = identity.peer_id
        self._secured = secured

    async def send(self, data: bytes) -> None:
        """Raises one of HUNG_UP when the victim has."""
        await self._secured.write(data)

    async def receive(self) -> bytes:
        """Whatever came in one noise message."""
        return await self._secured.read(None)

    async def hears_the_end(self) -> None:
        """Returns when the victim has hung up."""
        try:
            while await self.receive():
                pass
        except HUNG_UP:
            return

    async def open_stream(self, stream_id: int, protocol: str) -> None:
        said = delimited("/multistream/1.0.0") + delimited(protocol)
        await self.send(frame(WINDOW_UPDATE, SYN, stream_id, 0) + frame(DATA, 0, stream_id, len(said), said))


def address_of(multiaddr: str) -> tuple[str, int]:
    parts = multiaddr.split("/")
    return parts[2], int(parts[4])


@asynccontextmanager
async def attacker(multiaddr: str, identity: Identity | None = None) -> AsyncIterator[Attacker]:
    """Connected to the victim at `multiaddr`, as far as yamux; by default under a new identity."""
    identity = identity or Identity(urandom(32))
    victim = ID.from_string(multiaddr.rpartition("/")[2])
    keys = create_new_key_pair(identity.seed())
    noise = NoiseTransport(keys, noise_privkey=create_noise_key_pair().private_key)
    async with await trio.open_tcp_stream(*address_of(multiaddr)) as socket:
        stream = MeteredStream(socket, handshake_bytes=1_000_000)
        security = SecurityMultistream(MappingProxyType({NOISE: noise}))
        secured = await security.secure_outbound(RawConnection(stream, initiator=True), victim)
        stream.identify()
        await secured.write(delimited("/multistream/1.0.0") + delimited("/yamux/1.0.0"))
        agreed = b""
        while b"/yamux/1.0.0\n" not in agreed:
            agreed += await secured.read(None)
        yield Attacker(identity, secured)
