"""Money commands: register, stake, unstake, withdraw, rotate-hot-key, earnings.

Each draws up its transactions and has them signed here, or prints them for a key that is elsewhere.
"""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openlora.node.cli.hand import Hand, parse_address, signed
from openlora.node.cli.output import CLIENT_TOML, ClientFile, JsonFlag, NodeFile, Output, parse_tokens, tokens
from openlora.node.config import KeyConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from openlora.node.deeds import Deed, Desk

withdraw = typer.Typer(help="Take out earnings, Vault balance, or what has left the stake.", no_args_is_help=True)

OPERATOR_TOML = Path("operator.toml")
Amount = Annotated[str, typer.Argument(help="Tokens, such as 12.5.")]
Receiver = Annotated[str | None, typer.Option(help="Address that receives the tokens; the key's own by default.")]


@signed(OPERATOR_TOML)
def register(
    hand: Hand,
    stake: Annotated[str, typer.Option(help="Tokens to put at stake; a claim locks a part of them.")],
    config: NodeFile = Path("node.toml"),
    json: JsonFlag = False,
) -> None:
    """Register the operator's key as an operator with the node's hot key, and stake."""
    from openlora.node.config import NodeConfig, load
    from openlora.node.deeds import CONSENT_S, UNSIGNED_CONSENT_S
    from openlora.node.keys import load_key
    from openlora.node.private.sealing import public_key

    stake_wei = parse_tokens(stake, "--stake")
    hot_key = load_key(load(config, NodeConfig).hot_key)

    async def draw(desk: "Desk") -> "Sequence[Deed]":
        consent = await desk.consent(hot_key, UNSIGNED_CONSENT_S if hand.unsigned else CONSENT_S)
        return await desk.register(consent, public_key(bytes(hot_key.key)), stake_wei)

    hand.carry_out(draw, Output(json), {"hot_key": hot_key.address, "stake_wei": stake_wei})


@signed(OPERATOR_TOML)
def stake(hand: Hand, amount: Amount, json: JsonFlag = False) -> None:
    """Add tokens to the operator's stake, from its Vault balance first."""
    amount_wei = parse_tokens(amount, "AMOUNT")
    hand.carry_out(lambda desk: desk.stake(amount_wei), Output(json), {"amount_wei": amount_wei})


@signed(OPERATOR_TOML)
def unstake(hand: Hand, amount: Amount, json: JsonFlag = False) -> None:
    """Begin to take tokens out of the stake; `withdraw stake` takes them out once the exit delay is over."""
    amount_wei = parse_tokens(amount, "AMOUNT")
    hand.carry_out(lambda desk: desk.unstake(amount_wei), Output(json), {"amount_wei": amount_wei})


@withdraw.command("stake")
@signed(OPERATOR_TOML)
def withdraw_stake(hand: Hand, json: JsonFlag = False) -> None:
    """Move what has left the stake to the Vault balance; `withdraw balance` sends it on."""
    hand.carry_out(lambda desk: desk.withdraw_stake(), Output(json))


@withdraw.command("credits")
@signed(CLIENT_TOML)
def withdraw_credits(hand: Hand, to: Receiver = None, json: JsonFlag = False) -> None:
    """Send everything earned to an address."""
    receiver = parse_address(to) if to else None
    hand.carry_out(lambda desk: desk.withdraw_credits(receiver or desk.address), Output(json))


@withdraw.command("balance")
@signed(CLIENT_TOML)
def withdraw_balance(
    hand: Hand,
    amount: Annotated[str | None, typer.Option(help="Tokens; all of the balance if none is given.")] = None,
    to: Receiver = None,
    json: JsonFlag = False,
) -> None:
    """Send the Vault balance, which is neither in a job nor in a session nor at stake, to an address."""
    receiver = parse_address(to) if to else None
    amount_wei = None if amount is None else parse_tokens(amount, "--amount")
    hand.carry_out(lambda desk: desk.withdraw_balance(receiver or desk.address, amount_wei), Output(json))


@signed(OPERATOR_TOML)
def rotate_hot_key(
    hand: Hand,
    new_hot_key: Annotated[Path, typer.Option(help="Keystore v3 file of the new key; made if it does not exist.")],
    new_password_file: Annotated[
        Path | None, typer.Option(help="File with its password; the .password file beside it by default.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Give the operator another, unused hot key. The node stops; configure the new key and start it again."""
    from openlora.node.deeds import CONSENT_S, UNSIGNED_CONSENT_S
    from openlora.node.keys import create_key, load_key
    from openlora.node.private.sealing import public_key

    output = Output(json)
    if new_password_file is None and not new_hot_key.exists():
        create_key(new_hot_key.parent, new_hot_key.stem)
    password_of_new = new_password_file or new_hot_key.with_suffix(".password")
    hot_key = load_key(KeyConfig(keystore=new_hot_key, password_file=password_of_new))

    async def draw(desk: "Desk") -> "Sequence[Deed]":
        consent = await desk.consent(hot_key, UNSIGNED_CONSENT_S if hand.unsigned else CONSENT_S)
        return await desk.rotate_hot_key(consent, public_key(bytes(hot_key.key)))

    hand.carry_out(draw, output, {"hot_key": hot_key.address})
    if not hand.unsigned:
        output.say(f"now send coin to {hot_key.address}, name {new_hot_key} in [hot_key], and start the node again")


def earnings(client: ClientFile = CLIENT_TOML, json: JsonFlag = False) -> None:
    """Show what this key has earned, by role, and what it can take out."""
    from openlora.node.market import open_market

    output = Output(json)

    async def show() -> None:
        async with open_market(client) as person:
            earned = await person.earned()
            credits_wei, balance_wei = await person.desk.credits(), await person.desk.balance()
            node = await person.chain.call(person.nodes.node(person.key.address))
        if earned:
            output.table(("role", "OLRA"), [(role, tokens(wei)) for role, wei in earned.items()])
        output.say(f"{tokens(credits_wei)} OLRA earned can be withdrawn by {person.key.address}")
        output.say(f"{tokens(balance_wei)} OLRA in its Vault balance, {tokens(node.stake)} OLRA at stake")
        output.result(
            {
                "address": person.key.address,
                "earned_wei": earned,
                "withdrawable_wei": credits_wei,
                "balance_wei": balance_wei,
                "stake_wei": node.stake,
                "unstaking_wei": node.unstaking,
            }
        )

    asyncio.run(show())
