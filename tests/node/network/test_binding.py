"""A peer speaks for an operator only by the signature of the operator's hot key."""

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address

from openlora.contracts import Domain, InvalidSignature
from openlora.node.network.binding import authoriser, binding_signer, sign_binding
from openlora.p2p.errors import GossipRefused
from openlora.p2p.presence.record import Presence
from tests.p2p.presence.people import Node

HOT_KEY: LocalAccount = Account.from_key(b"\x01" * 32)
OTHER_KEY: LocalAccount = Account.from_key(b"\x02" * 32)
OPERATOR = to_checksum_address("0x" + "0d" * 20)
DOMAIN = Domain(31337, to_checksum_address("0x" + "11" * 20))
NODE = Node("a")
PEER = NODE.identity.peer_id


def presence(binding: bytes, *, hot_key: LocalAccount = HOT_KEY, operator: str = OPERATOR) -> Presence:
    return NODE.presence(operator=operator.lower(), hot_key=hot_key.address.lower(), binding=binding)


def code(record: Presence, staked: dict[str, str], domain: Domain = DOMAIN) -> str:
    with pytest.raises(GossipRefused) as caught:
        authoriser(domain, staked)(record)
    return caught.value.code


STAKED = {HOT_KEY.address.lower(): OPERATOR.lower(), OTHER_KEY.address.lower(): "0x" + "0e" * 20}
GOOD = sign_binding(HOT_KEY, DOMAIN, OPERATOR, PEER)


def test_the_signer_is_the_hot_key() -> None:
    assert binding_signer(DOMAIN, OPERATOR.lower(), PEER, GOOD) == HOT_KEY.address.lower()
    with pytest.raises(InvalidSignature):
        binding_signer(DOMAIN, OPERATOR, PEER, bytes(65))


def test_a_good_binding_is_authorised_again_and_again() -> None:
    authorise = authoriser(DOMAIN, STAKED)
    for _ in range(3):
        authorise(presence(GOOD))


@pytest.mark.parametrize(
    ("record", "refused"),
    [
        (presence(GOOD, hot_key=OTHER_KEY), "unstaked"),
        (presence(GOOD, operator="0x" + "0e" * 20), "unstaked"),
        (presence(sign_binding(OTHER_KEY, DOMAIN, OPERATOR, PEER)), "binding_forged"),
        (presence(sign_binding(HOT_KEY, DOMAIN, OPERATOR, Node("b").identity.peer_id)), "binding_forged"),
        (presence(sign_binding(HOT_KEY, DOMAIN, to_checksum_address("0x" + "0e" * 20), PEER)), "binding_forged"),
        (presence(sign_binding(HOT_KEY, Domain(1, DOMAIN.verifying_contract), OPERATOR, PEER)), "binding_forged"),
        (presence(sign_binding(HOT_KEY, Domain(31337, OPERATOR), OPERATOR, PEER)), "binding_forged"),
        (presence(GOOD[:-1] + b"\x1d"), "binding_forged"),
        (presence(bytes(65)), "binding_forged"),
    ],
)
def test_anything_else_is_refused_by_name(record: Presence, refused: str) -> None:
    assert code(record, STAKED) == refused


def test_stake_is_looked_up_each_time_and_a_good_binding_makes_no_other_good() -> None:
    staked = dict(STAKED)
    authorise = authoriser(DOMAIN, staked)
    authorise(presence(GOOD))
    with pytest.raises(GossipRefused, match="hot key's"):
        authorise(presence(sign_binding(OTHER_KEY, DOMAIN, OPERATOR, PEER)))
    staked.clear()
    with pytest.raises(GossipRefused, match="too little is staked"):
        authorise(presence(GOOD))
