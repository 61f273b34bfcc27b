"""Operators of the test network, and the records that they sign."""

import time
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address

from openlora.contracts import Domain
from openlora.node.network.binding import sign_binding
from openlora.p2p.identity import Identity
from openlora.p2p.presence.record import Presence, encode
from tests.p2p.presence.people import status

REGISTRY: Final = "0x" + "5e" * 20
CHAIN_ID: Final = 31337


@dataclass(frozen=True)
class Operator:
    """One with a hot key of its own. Staked are those of STAKED."""

    name: str

    @property
    def address(self) -> str:
        return "0x" + sha256(f"operator {self.name}".encode()).hexdigest()[:40]

    @property
    def hot_key(self) -> LocalAccount:
        account: LocalAccount = Account.from_key(sha256(f"hot key {self.name}".encode()).digest())
        return account

    def binding(self, peer: str, signer: LocalAccount | None = None, chain_id: int = CHAIN_ID) -> bytes:
        domain = Domain(chain_id, to_checksum_address(REGISTRY))
        return sign_binding(signer or self.hot_key, domain, to_checksum_address(self.address), peer)


VICTIM, HONEST, ROGUE, NOBODY = (Operator(name) for name in ("victim", "honest", "rogue", "nobody"))
STAKED: Final = {each.hot_key.address.lower(): each.address for each in (VICTIM, HONEST, ROGUE)}


def record(operator: Operator, identity: Identity, *, signer: Identity | None = None, **changes: object) -> bytes:
    """A record of `operator` that only `changes` make wrong; signed by `signer` in the peer's stead."""
    now = int(time.time())
    fields: dict[str, object] = {
        "v": 1,
        "chain_id": CHAIN_ID,
        "operator": operator.address,
        "hot_key": operator.hot_key.address.lower(),
        "peer": identity.peer_id,
        "sequence": time.time_ns(),
        "issued_at": now,
        "expires_at": now + 60,
        "addresses": (f"/ip4/127.0.0.1/tcp/4001/p2p/{identity.peer_id}",),
        "status": status(),
        **changes,
    }
    fields.setdefault("binding", operator.binding(identity.peer_id))
    return encode(Presence(**fields), (signer or identity).sign)  # type: ignore[arg-type]
