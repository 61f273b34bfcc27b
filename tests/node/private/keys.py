"""What the tests of private jobs share: a node's keys, and a key wrapped to it."""

from openlora.node.private.brought import BroughtKeys
from openlora.node.private.sealing import Recipient, encryption_key, public_key, wrap
from openlora.typed_data import Domain
from tests.node.facts import OPERATOR

HOT_KEY = b"\x07" * 32
QUEUE = "0x" + "0d" * 20
DOMAIN = Domain(31337, QUEUE)
KEY = b"\x4b" * 32


def brought(operator: str = OPERATOR, told: list[int] | None = None) -> BroughtKeys:
    """A node's, whose hot key is HOT_KEY; jobs whose key has come are appended to `told`."""
    arrived = (lambda job_id: None) if told is None else told.append
    return BroughtKeys(encryption_key(HOT_KEY), DOMAIN, operator, arrived)


def wrapped(job_id: int = 1, operator: str = OPERATOR, key: bytes = KEY) -> bytes:
    return wrap(key, public_key(HOT_KEY), Recipient(DOMAIN.chain_id, QUEUE, job_id, operator))
