"""TCP with our limits before anything is parsed: who may connect, and how much a connection may say unidentified."""

import socket

import trio
from libp2p.abc import IRawConnection, ISecureConn
from libp2p.custom_types import THandler
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.transport.tcp.tcp import TCP, TCPListener
from multiaddr import Multiaddr

from openlora.p2p.host.guard import Guard, Traffic

_CHUNK_BYTES = 64 * 1024


class MeteredStream(TrioTCPStream):
    """A socket that counts its bytes, says when it is closed, and gives an unidentified peer few bytes to speak.

    `read(n)` returns exactly n bytes unless the peer ends: the library gives up on a message that comes in more than
    100 pieces, which a slow path makes of any large one."""

    def __init__(self, connected: trio.SocketStream, handshake_bytes: int) -> None:
        super().__init__(connected)
        self.traffic = Traffic()
        self.closed = trio.Event()
        self.settled = trio.Event()  # the handshake is over, well or badly
        self.identified = False
        self._handshake_bytes = handshake_bytes
        self._received = bytearray()

    async def read(self, n: int | None = None) -> bytes:
        if not self.identified:
            self._handshake_bytes -= n if n is not None else _CHUNK_BYTES
            if self._handshake_bytes < 0:
                raise ConnectionClosedError("too much was said before the peer was known", transport="tcp")
        while n is not None and len(self._received) < n:
            piece = await super().read(_CHUNK_BYTES)
            if not piece:
                break
            self.traffic.bytes_in += len(piece)
            self._received += piece
        if n is None and not self._received:
            piece = await super().read(_CHUNK_BYTES)
            self.traffic.bytes_in += len(piece)
            return piece
        size = len(self._received) if n is None else n
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    def identify(self) -> None:
        """The peer is known and has proved it: from now on the muxer's bounds hold."""
        self.identified = True
        self.settled.set()

    async def write(self, data: bytes) -> None:
        self.traffic.bytes_out += len(data)
        await super().write(data)

    async def close(self) -> None:
        self.closed.set()
        self.settled.set()
        await super().close()

    def get_remote_address(self) -> tuple[str, int] | None:
        """As the library's, which does not know IPv6 sockets."""
        if self._cached_remote_address is None:
            try:
                host, port = self.stream.socket.getpeername()[:2]
            except OSError:
                return None
            self._cached_remote_address = (str(host), int(port))
        return self._cached_remote_address


class GuardedTcp(TCP):
    """The library's transport over metered sockets; inbound ones pass the guard before a byte of theirs is read."""

    def __init__(self, guard: Guard) -> None:
        super().__init__()
        self._guard = guard

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        dialled = await super().dial(maddr)
        if not isinstance(dialled, RawConnection) or not isinstance(dialled.stream, TrioTCPStream):
            raise TypeError("the library dials TCP in another way than it used to")
        return RawConnection(MeteredStream(dialled.stream.stream, self._guard.limits.handshake_bytes), initiator=True)

    def create_listener(self, handler_function: THandler) -> TCPListener:
        async def admit(stream: ReadWriteCloser) -> None:
            if isinstance(stream, TrioTCPStream):
                await self._accept(stream.stream, handler_function)

        return super().create_listener(admit)

    async def _accept(self, accepted: trio.SocketStream, handle: THandler) -> None:
        """Lives as long as the connection. The library's handler would live, and hold one of its places for inbound
        connections, until the whole host ends."""
        stream = MeteredStream(accepted, self._guard.limits.handshake_bytes)
        ip = (stream.get_remote_address() or ("unknown", 0))[0]
        try:
            with self._guard.inbound(ip) as admitted:
                if not admitted:
                    return
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_serve, handle, stream)
                    with self._guard.handshake(ip, nursery.cancel_scope.cancel):
                        await stream.settled.wait()
                    if not stream.identified:
                        self._guard.refuse(ip, "handshake")
                    await stream.closed.wait()
                    nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(accepted)


def check_free(address: Multiaddr) -> None:
    """Raises OSError if somebody listens on the port already. The library's listeners share theirs (SO_REUSEPORT) with
    every other process of the same user: two nodes on one port would each get half of the connections."""
    protocol = next(iter(address.protocols())).name
    host, port = str(address.value_for_protocol(protocol)), int(str(address.value_for_protocol("tcp")))
    with socket.socket(socket.AF_INET6 if protocol == "ip6" else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what is left of closed connections is no obstacle
        if protocol == "ip6":
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind((host, port))


async def _serve(handle: THandler, stream: MeteredStream) -> None:
    await handle(stream)
    await stream.close()


def metered(secured: ISecureConn) -> MeteredStream:
    """The socket under a secured connection, for which the library has no name."""
    stream = secured.conn.read_writer.read_write_closer.stream  # type: ignore[attr-defined]  # session · noise · raw
    if not isinstance(stream, MeteredStream):
        raise TypeError("the library secures connections in another way than it used to")
    return stream
