"""An operator's encryption key reaches the registry with its hot key, and later where it is missing."""

from dataclasses import dataclass
from typing import Any

import pytest
from eth_account import Account
from eth_utils.address import to_checksum_address

from openlora.contracts import Deployment, HotKeyConsent, Node
from openlora.node.deeds import Desk
from openlora.node.private.sealing import public_key
from tests.node.facts import OPERATOR

OLD, NEW = Account.from_key(b"\x07" * 32), Account.from_key(b"\x08" * 32)
NOBODY = to_checksum_address("0x" + "00" * 20)


@dataclass
class Registry:
    """A chain that knows one operator."""

    hot_key: str
    encryption_key: bytes

    async def call(self, call: Any) -> Node:
        return Node(to_checksum_address(self.hot_key), 5, 0, 0, 2, 0, self.encryption_key, b"\x0c" * 32, b"peer")


def desk(hot_key: str, encryption_key: bytes) -> Desk:
    chain: Any = Registry(hot_key, encryption_key)
    fields: dict[str, Any] = dict.fromkeys(Deployment.__dataclass_fields__, OPERATOR)
    return Desk(chain, Deployment(**fields | {"chain_id": 31337, "block": 0}), OPERATOR)


def consent(key: Any) -> HotKeyConsent:
    return HotKeyConsent(key.address, 1, bytes(65))


@pytest.mark.parametrize(
    ("hot_key", "encryption_key", "drawn"),
    [
        (NOBODY, bytes(32), ["register"]),
        (NEW.address, bytes(32), ["setMetadata"]),
        (NEW.address, public_key(bytes(NEW.key)), []),
        (OLD.address, public_key(bytes(OLD.key)), ["setHotKey", "setMetadata"]),
    ],
    ids=["new", "registered before there were private jobs", "known", "with another hot key"],
)
async def test_what_is_missing_in_the_registry_is_put_there(hot_key: str, encryption_key: bytes, drawn: list[str]):
    ours = public_key(bytes(NEW.key))
    deeds = await desk(hot_key, encryption_key).register(consent(NEW), ours, stake_wei=0)
    assert [deed.call.name.removeprefix("NodeRegistry.") for deed in deeds] == drawn
    assert not deeds or ours in deeds[-1].call.data


async def test_what_else_the_registry_has_of_the_node_stays():
    (_, metadata) = await desk(OLD.address, public_key(bytes(OLD.key))).rotate_hot_key(
        consent(NEW), public_key(bytes(NEW.key))
    )
    assert b"\x0c" * 32 in metadata.call.data
    assert b"peer" in metadata.call.data
