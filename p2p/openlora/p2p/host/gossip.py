"""Gossipsub, with the bounds it lacks: rates and sizes for each neighbour, and errors that end nothing else."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Final

from libp2p.abc import INetStream
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub

from openlora.p2p.errors import GossipRefused
from openlora.p2p.host.guard import Guard
from openlora.p2p.host.mesh import Router
from openlora.p2p.host.swarm import GuardedHost, muxed
from openlora.p2p.limits import TokenBucket
from openlora.p2p.network import PeerId, Validator

_log = logging.getLogger(__name__)

_QUEUED_MESSAGES: Final = 256  # for one neighbour; they are shared with the other neighbours' queues
_SIGNATURE_BYTES: Final = 64
_SEQUENCE_BYTES: Final = 8


class Gossip(Pubsub):
    """The library's pubsub over gossipsub: signed messages of at most `gossip_message_bytes`, relayed once valid."""

    def __init__(self, host: GuardedHost, guard: Guard) -> None:
        self.gossipsub: Final = Router(guard)
        super().__init__(
            host,
            self.gossipsub,
            max_subscriptions_per_rpc=16,
            max_subscriptions_per_peer=16,
            max_inbound_rpc_size=guard.limits.gossip_rpc_bytes,
        )
        # It counts messages from the second it started, so one that sent 600 in a minute and restarts repeats numbers,
        # and peers take the new messages for old ones. Nobody sends one a nanosecond.
        self.counter = time.time_ns()
        for protocol in self.gossipsub.get_protocols():
            host.bound_frames(protocol, guard.limits.gossip_rpc_bytes, "gossip-too-large")
        self._guard = guard
        self._rates: OrderedDict[ID, TokenBucket] = OrderedDict()

    def deliver(self, topic: str, validate: Validator) -> None:
        """`validate(neighbour, data)` sees each message of `topic` once, before it is relayed."""

        def accept(neighbour: ID, message: rpc_pb2.Message) -> bool:
            return neighbour == self.my_id or self._valid(PeerId(str(neighbour)), message, validate)

        self.set_topic_validator(topic, accept, is_async_validator=False)

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        """The root of each message's task. In the library's, a malformed key or sender id ends all of pubsub."""
        if msg_forwarder == self.my_id:
            await super().push_msg(msg_forwarder, msg)
            return
        neighbour = PeerId(str(msg_forwarder))
        if not self._rate(msg_forwarder).try_take(1.0):
            self._guard.refuse(neighbour, "gossip-rate")
            return
        self.gossipsub.note_holder(self.get_message_id(msg), msg_forwarder)
        try:
            await super().push_msg(msg_forwarder, msg)
        except Exception as error:
            self._guard.penalise(neighbour, "gossip-malformed")
            _log.debug("event=gossip_failed peer=%s", neighbour, exc_info=error)

    async def _handle_new_peer(self, peer_id: ID) -> None:
        """The library queues 32 messages for a neighbour and drops the rest: less than a burst of ten nodes. And a
        neighbour that restarts before its old connection is seen to end stays known by its dead stream."""
        await super()._handle_new_peer(peer_id)
        queue, stream = self.peer_queues.get(peer_id), self.peers.get(peer_id)
        if queue is not None and stream is not None:
            queue._queue.max_size = _QUEUED_MESSAGES
            queue.max_message_size = self._guard.limits.gossip_rpc_bytes
            inner = muxed(stream)
            inner.on_over = partial(self._stream_over, peer_id, stream, inner.on_over)
            if inner.over:
                self._stream_over(peer_id, stream, None)

    def _stream_over(self, peer_id: ID, stream: INetStream, then: Callable[[], None] | None) -> None:
        if then is not None:
            then()
        if self.peers.get(peer_id) is stream:
            self._handle_dead_peer(peer_id)

    def forget_old(self) -> None:
        """Drops what the library only ever adds to."""
        self.gossipsub.forget_old()

    def _is_subscribed_to_msg(self, msg: rpc_pb2.Message) -> bool:
        """Also sorts out, before a task is made of it, what cannot be a signed message of one topic."""
        return (
            len(msg.topicIDs) == 1
            and len(msg.signature) == _SIGNATURE_BYTES
            and len(msg.seqno) == _SEQUENCE_BYTES
            and super()._is_subscribed_to_msg(msg)
        )

    def _valid(self, neighbour: PeerId, message: rpc_pb2.Message, validate: Callable[[PeerId, bytes], None]) -> bool:
        if message.from_id == self.my_id.to_bytes():
            return False
        if len(message.data) > self._guard.limits.gossip_message_bytes:
            self._guard.penalise(neighbour, "gossip-too-large")
            return False
        try:
            validate(neighbour, message.data)
        except GossipRefused:  # whoever validates also counts
            return False
        except Exception:
            _log.exception("event=validator_failed")
            return False
        return True

    def _rate(self, neighbour: ID) -> TokenBucket:
        rate = self._rates.pop(neighbour, None)
        if rate is None:
            rate = TokenBucket(self._guard.limits.gossip_messages_per_s, self._guard.limits.gossip_burst)
        self._rates[neighbour] = rate
        while len(self._rates) > self._guard.limits.remembered_peers:
            self._rates.popitem(last=False)
        return rate
