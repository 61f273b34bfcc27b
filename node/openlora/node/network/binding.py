"""What ties a libp2p peer to an operator: the hot key's EIP-712 signature over both, made out to one NodeRegistry."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

import base58

from openlora.p2p.errors import GossipRefused
from openlora.p2p.presence.record import Presence
from openlora.typed_data import Domain, InvalidSignature, node_peer_digest, sign_digest, signer_of

if TYPE_CHECKING:  # the network process, which has no such key, need not load 12 MB for its type
    from eth_account.signers.local import LocalAccount

_REMEMBERED: Final = 16_384  # good bindings, more than a table of peers has records


def sign_binding(hot_key: "LocalAccount", domain: Domain, operator: str, peer: str) -> bytes:
    """65 bytes by which `hot_key` says that `peer` is the operator's node. `domain` is NodeRegistry's."""
    return sign_digest(bytes(hot_key.key), _digest(domain, operator, peer))


def binding_signer(domain: Domain, operator: str, peer: str, binding: bytes) -> str:
    """The hot key that signed a binding, as a lower-case address. Raises InvalidSignature."""
    return signer_of(_digest(domain, operator, peer), binding)


def authoriser(domain: Domain, staked: Mapping[str, str]) -> Callable[[Presence], None]:
    """Judges presence records by `staked`, hot key → operator (lower-case addresses), as it is at the time of asking.

    Raises GossipRefused: unstaked, or binding_forged where the record's hot key has not signed its operator and peer.
    A binding that was good once is not computed again: 1 µs instead of 0.2 ms."""
    good: OrderedDict[tuple[str, str, str, bytes], None] = OrderedDict()

    def authorise(presence: Presence) -> None:
        operator, hot_key, peer, binding = presence.operator, presence.hot_key, presence.peer, presence.binding
        if staked.get(hot_key) != operator:
            raise GossipRefused("unstaked", f"{hot_key} is not the hot key of {operator}, or too little is staked")
        key = (operator, hot_key, peer, binding)
        if key not in good:
            _check(domain, presence)
            if len(good) >= _REMEMBERED:
                good.popitem(last=False)
        good[key] = None
        good.move_to_end(key)

    return authorise


def _check(domain: Domain, presence: Presence) -> None:
    try:
        signer = binding_signer(domain, presence.operator, presence.peer, presence.binding)
    except InvalidSignature as error:
        raise GossipRefused("binding_forged", f"the binding of {presence.operator}: {error}") from None
    if signer != presence.hot_key:
        raise GossipRefused("binding_forged", f"the binding of {presence.operator} is not its hot key's")


def _digest(domain: Domain, operator: str, peer: str) -> bytes:
    return node_peer_digest(domain, operator, base58.b58decode(peer))
