"""Our way to speak to one peer: a stream that is opened when there is something to say."""

from contextlib import suppress

import trio

from openlora.p2p.bitswap.limits import BitswapLimits
from openlora.p2p.bitswap.messages import PROTOCOLS, Message, encode_message
from openlora.p2p.errors import PeerUnreachable, StreamLost
from openlora.p2p.network import Network, PeerId, Stream


class Line:
    """Nothing is ever heard on it: a peer answers on a stream of its own."""

    def __init__(self, network: Network, peer: PeerId, limits: BitswapLimits) -> None:
        self._network, self._peer, self._limits = network, peer, limits
        self._stream: Stream | None = None

    async def say(self, message: Message, *, reopen: bool) -> None:
        """Returns once the peer's window has taken it. Raises PeerUnreachable or StreamLost, also when that takes too
        long. With `reopen` a stream that has broken is replaced: right only where nothing that was said before is
        still to be answered, since a peer that comes back has forgotten it."""
        data = encode_message(message)
        if not await self._still_takes(data, reopen):
            self._stream = await self._open()
            await self._write(self._stream, data)

    async def close(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await stream.close()

    async def hang_up(self) -> None:
        """Resets the stream, whatever state it and we are in."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            with trio.CancelScope(shield=True), trio.move_on_after(1.0), suppress(StreamLost):
                await stream.reset()

    async def _still_takes(self, data: bytes, may_have_broken: bool) -> bool:
        if self._stream is None:
            return False
        try:
            await self._write(self._stream, data)
        except _TooSlow:
            raise
        except StreamLost:
            if not may_have_broken:
                raise
            await self.hang_up()
            return False
        return True

    async def _open(self) -> Stream:
        with trio.move_on_after(self._limits.open_timeout_s):
            return await self._network.open_stream(self._peer, PROTOCOLS)
        raise PeerUnreachable(f"no stream to {self._peer} in {self._limits.open_timeout_s:g} s")

    async def _write(self, stream: Stream, data: bytes) -> None:
        with trio.move_on_after(self._limits.write_timeout_s):
            return await stream.write(data)
        raise _TooSlow(f"the peer took no whole message in {self._limits.write_timeout_s:g} s")


class _TooSlow(StreamLost):
    """The peer is there, and does not read."""
