"""Gossipsub's router: who hands which message to whom. The library's, but for these of its ways:

- Its meshes fill up at a start, and it prunes the surplus for a whole minute, by scores that differ by chance, but
  takes in at once whom it has just pruned. Of ten nodes that all know each other one stood outside of every mesh for a
  minute, others in meshes that were not mutual. Here meshes are wide, pruning is rare, random, short, and for both
  sides; and neighbours remind each other of being in a mesh, so that it comes to be mutual.
- It hands its own messages to the mesh alone: strangers who fill the mesh would silence us. Here all neighbours get
  them.
- It relays at once: everybody gets every message from most of its neighbours. Here those who hear one say so at once,
  and pass it on a moment later to those who have not said so.
- It tells what it has (IHAVE) three times, and never to whom it has pruned. Here it tells once, to whom it may be news.
- It sends 300 signed bytes of its own addresses with every message. Identify has told them already.
- It remembers every topic that anybody has named, for ever.
"""

import random
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

import trio
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub

from openlora.p2p.host.guard import Guard
from openlora.p2p.network import PeerId

_PROTOCOLS: Final = (TProtocol("/meshsub/1.2.0"), TProtocol("/meshsub/1.1.0"))
_DEGREE_LOW: Final = 4
_DEGREE: Final = 6
_DEGREE_HIGH: Final = 12
_LAZY_DEGREE: Final = 4  # neighbours outside the mesh that are told what we have heard
_BACK_OFF_S: Final = 10  # until whoever was pruned may come back
_REMIND_EVERY: Final = 30  # heartbeats
_RELAY_AFTER_S: Final = (0.25, 0.75)  # more than a message takes to the other neighbours and back from them
_CONTROL_ENTRIES: Final = 64  # in one message; with one topic, neighbours need two or three
_HELD_MESSAGES: Final = 1024  # of which we remember for a second or two who has them
_ID_BYTES: Final = 64


class Router(GossipSub):
    """Gossipsub 1.2. `attach` comes before everything else."""

    def __init__(self, guard: Guard) -> None:
        super().__init__(
            _PROTOCOLS,
            degree=_DEGREE,
            degree_low=_DEGREE_LOW,
            degree_high=_DEGREE_HIGH,
            gossip_window=1,
            heartbeat_interval=1,
            prune_back_off=_BACK_OFF_S,
            adaptive_gossip_enabled=False,
            spam_protection_enabled=False,  # it drops over 10 messages a second of a topic, silently: ours counts
            eclipse_protection_enabled=False,  # it grafts ever new peers while fewer than 3 addresses are known
        )
        self.scorer = None  # whoever misbehaves is the guard's affair
        self._guard = guard
        self._holders: dict[bytes, set[ID]] = {}  # of messages, since the last heartbeat …
        self._past_holders: dict[bytes, set[ID]] = {}  # … and between the two before
        self._heartbeats = 0

    def note_holder(self, msg_id: bytes, peer: ID) -> None:
        """`peer` has the message."""
        if len(msg_id) <= _ID_BYTES and (msg_id in self._holders or len(self._holders) < _HELD_MESSAGES):
            self._holders.setdefault(msg_id, set()).add(peer)

    def forget_old(self) -> None:
        """Drops what the library only ever adds to."""
        self.recent_message_deliveries.clear()
        now = time.time()
        for topic, until_s in self.back_off.items():
            self.back_off[topic] = {peer: end_s for peer, end_s in until_s.items() if end_s > now}

    # ---- what neighbours say ----------------------------------------------------------------------------------------

    async def handle_rpc(self, rpc: rpc_pb2.RPC, sender_peer_id: ID) -> None:
        """Control messages, about our topics only. A neighbour that leaves the mesh cannot send us to others."""
        control = rpc.control
        topics = [entry.topicID for entry in control.ihave]
        topics += [entry.topicID for entry in control.graft]
        topics += [entry.topicID for entry in control.prune]
        if len(topics) > _CONTROL_ENTRIES or not self.mesh.keys() >= set(topics):
            self._guard.penalise(PeerId(str(sender_peer_id)), "gossip-control")
            rpc.ClearField("control")
        for prune in rpc.control.prune:
            prune.ClearField("peers")
        rpc.ClearField("senderRecord")  # it was looked at before, and is again
        await super().handle_rpc(rpc, sender_peer_id)

    async def handle_idontwant(self, idontwant_msg: rpc_pb2.ControlIDontWant, sender_peer_id: ID) -> None:
        for msg_id in idontwant_msg.messageIDs[:_CONTROL_ENTRIES]:
            self.note_holder(msg_id, sender_peer_id)

    # ---- messages ---------------------------------------------------------------------------------------------------

    async def publish(self, msg_forwarder: ID, pubsub_msg: rpc_pb2.Message) -> None:
        """One that is ours goes at once, another's after those who have it, too, had time to say so."""
        if msg_forwarder != self._pubsub.my_id:
            await self._tell_holding(pubsub_msg, msg_forwarder)
            await trio.sleep(random.uniform(*_RELAY_AFTER_S))  # noqa: S311 - so that not all neighbours relay at once
        await super().publish(msg_forwarder, pubsub_msg)

    async def _tell_holding(self, message: rpc_pb2.Message, forwarder: ID) -> None:
        msg_id = self._pubsub.get_message_id(message)
        mesh = {peer for topic in message.topicIDs for peer in self.mesh.get(topic, ())}
        for peer in mesh - {forwarder, ID(message.from_id)}:
            if self.supports_protocol_feature(peer, "idontwant"):
                await self.emit_idontwant([msg_id], peer)

    async def _emit_idontwant_for_message(self, msg_id: bytes, topic_ids: Iterable[str]) -> None:
        """Done by `publish`, before it waits."""

    def _get_peers_to_send(
        self, topic_ids: Iterable[str], msg_forwarder: ID, origin: ID, msg_id: bytes | None = None
    ) -> Iterable[ID]:
        if origin == self._pubsub.my_id:
            return {peer for topic in topic_ids for peer in self._pubsub.peer_topics.get(topic, ())}
        peers = super()._get_peers_to_send(topic_ids, msg_forwarder, origin, msg_id)
        return [peer for peer in peers if msg_id is None or not self._holds(peer, msg_id)]

    def send_rpc(self, peer_id: ID, rpc: rpc_pb2.RPC, priority: bool = False) -> None:
        rpc.ClearField("senderRecord")
        super().send_rpc(peer_id, rpc, priority)

    # ---- the heartbeat ----------------------------------------------------------------------------------------------

    def mesh_heartbeat(self) -> tuple[defaultdict[ID, list[str]], defaultdict[ID, list[str]]]:
        """Whom to graft and whom to prune. Now and again those who are in the mesh are grafted anew: one in whose mesh
        we are not takes us in, or prunes us."""
        graft, prune = super().mesh_heartbeat()
        for peer, topics in prune.items():
            for topic in topics:
                self._add_back_off(peer, topic, False)
        self._heartbeats += 1
        if self._heartbeats % _REMIND_EVERY == 0:
            for topic, mesh in self.mesh.items():
                for peer in mesh:
                    graft[peer] = [*{*graft[peer], topic}]
        return graft, prune

    def gossip_heartbeat(self) -> defaultdict[ID, dict[str, list[bytes]]]:
        """What came since the last heartbeat, for a few neighbours outside the mesh that may lack it."""
        lacked: defaultdict[ID, dict[str, list[bytes]]] = defaultdict(dict)
        for topic, mesh in self.mesh.items():
            recent = self.mcache.window(topic)
            outside = [peer for peer in self._pubsub.peer_topics.get(topic, ()) if peer not in mesh]
            for peer in random.sample(outside, min(_LAZY_DEGREE, len(outside))):
                if unheard := [msg_id for msg_id in recent if not self._holds(peer, msg_id)]:
                    lacked[peer][topic] = unheard
        return lacked

    async def _emit_control_msgs(
        self,
        peers_to_graft: Mapping[ID, list[str]],
        peers_to_prune: Mapping[ID, list[str]],
        peers_to_gossip: Mapping[ID, dict[str, list[bytes]]],
    ) -> None:
        """One message for each peer. The library's repeats to each of them what those before were told."""
        for peer in {*peers_to_graft, *peers_to_prune, *peers_to_gossip}:
            control = rpc_pb2.ControlMessage(
                graft=[rpc_pb2.ControlGraft(topicID=topic) for topic in peers_to_graft.get(peer, ())],
                prune=[
                    rpc_pb2.ControlPrune(topicID=topic, backoff=_BACK_OFF_S) for topic in peers_to_prune.get(peer, ())
                ],
                ihave=[
                    rpc_pb2.ControlIHave(topicID=topic, messageIDs=msg_ids)
                    for topic, msg_ids in peers_to_gossip.get(peer, {}).items()
                ],
            )
            await self.emit_control_message(control, peer)

    def _prune_idontwant_entries(self) -> None:
        """At the end of each heartbeat."""
        self._past_holders, self._holders = self._holders, {}

    def _holds(self, peer: ID, msg_id: bytes) -> bool:
        return peer in self._holders.get(msg_id, ()) or peer in self._past_holders.get(msg_id, ())

    @property
    def _pubsub(self) -> Pubsub:
        if self.pubsub is None:
            raise RuntimeError("a router without a pubsub")
        return self.pubsub
