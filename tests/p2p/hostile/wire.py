"""A libp2p peer without manners: TCP, noise and yamux by hand, so that every frame and every byte can be wrong.

What it needs to get in, it does right (https://github.com/libp2p/specs): multistream-select, noise XX, yamux. After
that it keeps only the rules that an attack asks it to.
"""

import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import base58
import trio
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from noise.connection import Keypair, NoiseConnection

from openlora.p2p.content.dag_pb import decode_varint, encode_fields, encode_varint
from openlora.p2p.identity import Identity

DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8
WINDOW_BYTES: Final = 256 * 1024  # what yamux lets a new stream send
_HEADER: Final = struct.Struct("!BBHII")
_NOISE_BYTES: Final = 65535 - 16


@dataclass(frozen=True)
class Target:
    """Whom to attack, and for how long."""

    host: str
    port: int
    peer: str
    chain_id: int
    registry: str
    seconds: float


class Cut(Exception):
    """The victim has ended the connection, or did not let us in."""


def someone(name: str) -> Identity:
    return Identity(sha256(f"hostile {name}".encode()).digest())


def line(text: str) -> bytes:
    """One message of multistream-select."""
    return encode_varint(len(text) + 1) + text.encode() + b"\n"


def framed(body: bytes) -> bytes:
    """As gossip, Kademlia and bitswap frame their messages."""
    return encode_varint(len(body)) + body


async def connect(target: Target, source: str) -> trio.SocketStream:
    """A TCP connection from `source`, any address of 127.0.0.0/8: to the victim, each is another machine."""
    try:
        return await trio.open_tcp_stream(target.host, target.port, local_address=source)
    except OSError as error:
        raise Cut(str(error)) from None


class Stream:
    """One stream. `send` keeps to the victim's window unless told to be `rude`."""

    def __init__(self, wire: "Wire", number: int) -> None:
        self.wire, self.number = wire, number
        self.window = WINDOW_BYTES
        self.ended = False  # by the victim
        self._received = bytearray()
        self._changed = trio.Event()

    async def send(self, data: bytes, *, rude: bool = False) -> None:
        rest = memoryview(data)
        while rest:
            while self.window <= 0 and not rude:
                await self._wait()
            piece = rest[: 32768 if rude else min(32768, self.window)]
            self.window -= len(piece)
            await self.wire.frame(DATA, 0, self.number, len(piece), bytes(piece))
            rest = rest[len(piece) :]

    async def receive(self, count: int) -> bytes:
        """Exactly `count` bytes."""
        while len(self._received) < count:
            await self._wait()
        data = bytes(self._received[:count])
        del self._received[:count]
        await self.wire.frame(WINDOW_UPDATE, 0, self.number, count)
        return data

    async def varint(self) -> int:
        data = b""
        while not data or data[-1] >= 0x80:
            data += await self.receive(1)
        return decode_varint(data, 0)[0]

    async def message(self) -> bytes:
        return await self.receive(await self.varint())

    async def reset(self) -> None:
        await self.wire.frame(WINDOW_UPDATE, RST, self.number, 0)

    def take(self, data: bytes) -> None:
        self._received += data
        self._tell()

    def widen(self, count: int, flags: int) -> None:
        self.window += count
        self.ended = self.ended or bool(flags & (FIN | RST))
        self._tell()

    async def _wait(self) -> None:
        if self.ended or self.wire.lost:
            raise Cut("the stream is over")
        await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


Serve = Callable[[Stream], Awaitable[None]]


class Wire:
    """An authenticated connection to the victim. `deaf` reads nothing once it is in."""

    def __init__(self, socket: trio.SocketStream, identity: Identity, accepts: dict[str, Serve]) -> None:
        self.identity = identity
        self.streams: dict[int, Stream] = {}
        self.lost = False
        self._socket, self._accepts = socket, accepts
        self._noise = NoiseConnection.from_name(b"Noise_XX_25519_ChaChaPoly_SHA256")
        self._buffer = bytearray()
        self._next = 1
        self._writing = trio.Lock()

    @classmethod
    async def dial(
        cls,
        nursery: trio.Nursery,
        target: Target,
        identity: Identity,
        *,
        source: str = "127.0.1.1",
        deaf: bool = False,
        accepts: dict[str, Serve] | None = None,
    ) -> "Wire":
        """Raises Cut."""
        wire = cls(await connect(target, source), identity, accepts or {})
        try:
            with trio.fail_after(8):
                await wire._secure()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError) as error:
            await wire.close()
            raise Cut(str(error)) from None
        if not deaf:
            nursery.start_soon(wire._read, nursery)
        return wire

    async def close(self) -> None:
        self.lost = True
        await trio.aclose_forcefully(self._socket)
        for stream in self.streams.values():
            stream._tell()

    async def frame(self, kind: int, flags: int, stream: int, length: int, data: bytes = b"", version: int = 0) -> None:
        """One yamux frame, as wrong as its arguments. Raises Cut."""
        await self.raw(_HEADER.pack(version, kind, flags, stream, length) + data)

    async def raw(self, data: bytes) -> None:
        """Bytes under the encryption and above nothing."""
        async with self._writing:
            try:
                await self._socket.send_all(self._sealed(data))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await self.close()
                raise Cut("the victim has hung up") from None

    async def open(self, protocol: str | None) -> Stream:
        """A stream on which `protocol` has been asked for, without an answer yet. None: nothing has been said."""
        stream = self.streams[self._next] = Stream(self, self._next)
        self._next += 2
        await self.frame(WINDOW_UPDATE, SYN, stream.number, 0)
        if protocol is not None:
            await stream.send(line("/multistream/1.0.0") + line(protocol))
        return stream

    async def negotiated(self, protocol: str) -> Stream:
        """The same, once the victim has agreed. Raises Cut."""
        stream = await self.open(protocol)
        await stream.message()
        if await stream.message() != protocol.encode() + b"\n":
            raise Cut(f"the victim does not speak {protocol}")
        return stream

    def accept(self, accepts: dict[str, Serve]) -> None:
        """From now on the victim may open streams for these."""
        self._accepts = accepts

    async def finish(self, stream: Stream) -> None:
        await self.frame(WINDOW_UPDATE, FIN, stream.number, 0)

    # ---- getting in -------------------------------------------------------------------------------------------------

    async def _secure(self) -> None:
        await self._plain_select("/noise")
        static = X25519PrivateKey.generate()
        self._noise.set_as_initiator()
        self._noise.set_keypair_from_private_bytes(Keypair.STATIC, static.private_bytes_raw())
        self._noise.start_handshake()
        await self._send_handshake(b"")
        self._noise.read_message(await self._message())
        key = encode_fields([(1, 1), (2, self.identity.public_key)])
        signature = self.identity.sign(b"noise-libp2p-static-key:" + static.public_key().public_bytes_raw())
        await self._send_handshake(encode_fields([(1, key), (2, signature)]))
        await self.raw(MULTISTREAM_LINE + line("/yamux/1.0.0"))
        expected = MULTISTREAM_LINE + line("/yamux/1.0.0")
        while len(self._buffer) < len(expected):
            self._buffer += self._noise.decrypt(await self._message())
        del self._buffer[: len(expected)]

    async def _plain_select(self, protocol: str) -> None:
        await self._socket.send_all(MULTISTREAM_LINE + line(protocol))
        await self._exactly(len(MULTISTREAM_LINE + line(protocol)))

    async def _send_handshake(self, payload: bytes) -> None:
        message = self._noise.write_message(payload)
        await self._socket.send_all(len(message).to_bytes(2, "big") + message)

    async def _message(self) -> bytes:
        return await self._exactly(int.from_bytes(await self._exactly(2), "big"))

    async def _exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            piece = await self._socket.receive_some(count - len(data))
            if not piece:
                raise trio.BrokenResourceError("the victim has hung up")
            data += piece
        return bytes(data)

    def _sealed(self, data: bytes) -> bytes:
        sealed = bytearray()
        for at in range(0, len(data), _NOISE_BYTES):
            message = self._noise.encrypt(data[at : at + _NOISE_BYTES])
            sealed += len(message).to_bytes(2, "big") + message
        return bytes(sealed)

    # ---- listening --------------------------------------------------------------------------------------------------

    async def _read(self, nursery: trio.Nursery) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError, Cut):
            while True:
                await self._frame(nursery)
        await self.close()

    async def _frame(self, nursery: trio.Nursery) -> None:
        _, kind, flags, number, length = _HEADER.unpack(await self._take(_HEADER.size))
        if kind == PING and flags & SYN:
            await self.frame(PING, ACK, 0, length)
        if kind not in (DATA, WINDOW_UPDATE):
            return
        if flags & SYN:
            stream = self.streams[number] = Stream(self, number)
            await self.frame(WINDOW_UPDATE, ACK, number, 0)
            nursery.start_soon(self._welcome, stream)
        data = await self._take(length) if kind == DATA else b""
        if (known := self.streams.get(number)) is not None:
            known.take(data)
            known.widen(length if kind == WINDOW_UPDATE else 0, flags)

    async def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._buffer += self._noise.decrypt(await self._message())
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    async def _welcome(self, stream: Stream) -> None:
        """Answers a stream that the victim opens: it may speak what we accept, and anything else is refused."""
        with suppress(Cut):
            await stream.message()
            await stream.send(MULTISTREAM_LINE)
            while True:
                asked = (await stream.message()).decode().rstrip("\n")
                serve = self._accepts.get(asked)
                await stream.send(line(asked if serve is not None else "na"))
                if serve is not None:
                    await serve(stream)
                    return


MULTISTREAM_LINE: Final = line("/multistream/1.0.0")


def raw_peer_id(peer: str) -> bytes:
    return base58.b58decode(peer)
