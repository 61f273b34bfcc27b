"""Deposits and what they are for: nothing is deposited for what would be refused, and nobody is left to wonder."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_utils.address import to_checksum_address

from openlora.contracts import Call, Deployment
from openlora.node.cli.hand import Hand
from openlora.node.cli.output import CLIENT_TOML, Output
from openlora.node.deeds import Deed, Desk
from openlora.node.errors import Reverted
from tests.node.chain.fake_chain import effect
from tests.node.chain.world import HOT_KEY, World
from tests.node.facts import OPERATOR

CLIENT = Account.from_key(b"\x07" * 32)
SESSIONS = to_checksum_address("0x" + "5e" * 20)


@dataclass
class Chain:
    """Has tokens of the client's, and refuses what `refusals` say of a contract's method."""

    vault_wei: int = 0
    own_wei: int = 10
    refusals: dict[str, str] = field(default_factory=dict)

    async def call(self, call: Call[Any], *, sender: str | None = None) -> Any:
        if name := self.refusals.get(call.name):
            raise Reverted(name, f"{call.name}: {name}")
        return {"Vault.balanceOf": self.vault_wei, "DevToken.balanceOf": self.own_wei}.get(call.name)


def desk(chain: Any) -> Desk:
    fields: dict[str, Any] = dict.fromkeys(Deployment.__dataclass_fields__, OPERATOR)
    return Desk(chain, Deployment(**fields | {"sessions": SESSIONS, "chain_id": 31337, "block": 0}), CLIENT.address)


async def drawn(chain: Chain) -> list[str]:
    _, deeds = await desk(chain).open_session(OPERATOR, 5)
    return [deed.call.name for deed in deeds]


async def test_what_a_session_lacks_is_deposited_first():
    poor = Chain(refusals={"Sessions.open": "InsufficientBalance"})
    assert await drawn(poor) == ["DevToken.approve", "Vault.deposit", "Sessions.open"]
    assert await drawn(Chain(vault_wei=5)) == ["Sessions.open"]


@pytest.mark.parametrize("refusal", ["NotStaked", "EnforcedPause"])
async def test_nothing_is_deposited_for_a_session_that_would_be_refused(refusal: str):
    with pytest.raises(Reverted, match=refusal):
        await drawn(Chain(refusals={"Sessions.open": refusal}))


async def test_what_became_of_a_deposit_is_said_when_what_it_was_for_is_refused(tmp_path: Path):
    world = World(tmp_path, automine=True)
    world.open()

    class Here(Hand):
        @asynccontextmanager
        async def desk(self) -> AsyncIterator[Any]:
            ours = desk(world.client)
            yield ours, HOT_KEY

    async def draw(_: Desk) -> Sequence[Deed]:
        world.chain.reverting.add(b"open")  # by the time its turn comes
        deposit = Deed(replace(effect("deposit"), name="Vault.deposit"), "deposit 5 OLRA in the Vault")
        return [deposit, Deed(effect("open"), "open a session")]

    with pytest.raises(Reverted, match="is claimed") as refusal:
        await Here(CLIENT_TOML)._carry_out(draw, Output(as_json=True), {})
    told = (
        "; done before: deposit 5 OLRA in the Vault; `openlora withdraw balance` takes out again what lies in the Vault"
    )
    assert str(refusal.value).endswith(told)
    await world.kill()
