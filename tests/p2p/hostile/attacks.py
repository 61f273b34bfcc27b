"""Every attack by name, in the order in which one victim goes through them, and the refusals that each must meet."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from tests.p2p.hostile.blocks import lying_provider, tree_bombs, wantlist_flood
from tests.p2p.hostile.crowds import idlers, many_names, nothing, silent_connections, sybils
from tests.p2p.hostile.messages import garbage, gossip_control, gossip_flood, oversize
from tests.p2p.hostile.records import forged_presence, presence_flood, replayed_presence, timeless_presence
from tests.p2p.hostile.requests import request_flood
from tests.p2p.hostile.routing import dht_flood
from tests.p2p.hostile.siege import Tally
from tests.p2p.hostile.streams import frame_abuse, slow_streams, stream_storm
from tests.p2p.hostile.wire import Target


@dataclass(frozen=True)
class Attack:
    """`refused`: codes, each of which the victim must have counted by the end."""

    run: Callable[[Target, Tally], Awaitable[None]]
    refused: frozenset[str] = field(default_factory=frozenset)
    seconds: float = 2.5

    @property
    def name(self) -> str:
        return self.run.__name__


def _codes(text: str) -> frozenset[str]:
    return frozenset(text.split())


ATTACKS: Final = {
    attack.name: attack
    for attack in (
        Attack(oversize, _codes("gossip-too-large dht-too-large identify-too-large bitswap-message request-malformed")),
        Attack(gossip_flood, _codes("gossip-rate malformed banned")),
        Attack(gossip_control, _codes("gossip-control banned")),
        Attack(silent_connections, _codes("handshakes handshakes-per-address handshake")),
        Attack(many_names, _codes("identify-too-large")),
        Attack(idlers, _codes("connections"), seconds=4),
        Attack(slow_streams, _codes("negotiation streams-of-one-protocol"), seconds=6.5),
        Attack(stream_storm, _codes("streams streams-flood banned")),
        Attack(forged_presence, _codes("forged binding_forged unstaked wrong_chain oversize malformed")),
        Attack(replayed_presence, _codes("replayed expired")),
        Attack(timeless_presence, _codes("expires_too_late from_the_future")),
        Attack(presence_flood, _codes("rate_limited")),
        Attack(garbage, _codes("bitswap-message stream-error banned")),
        Attack(tree_bombs),
        Attack(wantlist_flood, _codes("too-many-wants")),
        Attack(lying_provider, _codes("unasked-block")),
        Attack(frame_abuse, _codes("window-overrun yamux-protocol")),
        Attack(dht_flood, _codes("streams-of-one-protocol")),
        Attack(request_flood, _codes("asked_too_much_by_peer asked_too_much")),
        Attack(sybils, _codes("malformed banned")),
        Attack(nothing),
    )
}
