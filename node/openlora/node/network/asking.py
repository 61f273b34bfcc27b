"""The agent's requests to peers, carried out in the network process."""

import logging
from contextlib import aclosing
from typing import Final

import trio

from openlora.node.network.messages import MAX_REQUEST_BYTES, Ask, Reply, ReplyEnd, Taken
from openlora.node.network.outbox import Outbox
from openlora.node.network.window import MAX_REPLY_BYTES, SendWindow
from openlora.p2p import rpc
from openlora.p2p.errors import P2PError, StreamRefused
from openlora.p2p.network import Network, PeerId

log = logging.getLogger(__name__)

RPC_LIMITS: Final = rpc.RpcLimits(request_bytes=MAX_REQUEST_BYTES, reply_bytes=MAX_REPLY_BYTES)


class AskedByUs:
    """Streams each peer's replies to the agent, no faster than it takes them."""

    def __init__(self, network: Network, outbox: Outbox) -> None:
        self._network, self._outbox = network, outbox
        self._gates: dict[int, _Gate] = {}

    async def ask(self, ask: Ask) -> None:
        """Ends with one ReplyEnd, unless it is cancelled."""
        self._gates[ask.id] = gate = _Gate()
        try:
            end = await self._stream(ask, gate)
        except Exception:
            log.exception("event=ask_failed protocol=%s peer=%s", ask.protocol, ask.peer)
            end = ReplyEnd(id=ask.id, outcome="failed", message="the network process failed; its log says how")
        finally:
            del self._gates[ask.id]
        self._outbox.post(end)

    def taken(self, taken: Taken) -> None:
        if (gate := self._gates.get(taken.id)) is not None:  # else it has just ended
            gate.taken(taken.bytes)

    async def _stream(self, ask: Ask, gate: "_Gate") -> ReplyEnd:
        peer = PeerId(ask.peer)
        try:
            with trio.fail_after(ask.timeout_s):
                if ask.addresses and peer not in self._network.connected():
                    await self._network.connect(ask.addresses)
            replies = rpc.ask(self._network, peer, ask.protocol, ask.body, timeout_s=ask.timeout_s, limits=RPC_LIMITS)
            async with aclosing(replies):
                async for data in replies:
                    await gate.pass_through(data)
                    await self._outbox.send(Reply(id=ask.id, data=data))
        except StreamRefused as refusal:
            return ReplyEnd(id=ask.id, outcome="refused", message=str(refusal))
        except P2PError as error:
            return ReplyEnd(id=ask.id, outcome="failed", message=f"peer {peer}: {error}")
        except trio.TooSlowError:
            message = f"peer {peer} was not reached within {ask.timeout_s:g} s"
            return ReplyEnd(id=ask.id, outcome="failed", message=message)
        return ReplyEnd(id=ask.id, outcome="done")


class _Gate:
    """Waits while the window is closed."""

    def __init__(self) -> None:
        self._window = SendWindow()
        self._opened = trio.Event()

    async def pass_through(self, data: bytes) -> None:
        while not self._window.open:
            self._opened = trio.Event()
            await self._opened.wait()
        self._window.sent(data)

    def taken(self, count: int) -> None:
        self._window.taken(count)
        self._opened.set()
