"""What a node operator types: register, run; and what everyone who is paid types: earnings, withdraw."""

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer
from eth_typing import ChecksumAddress
from eth_utils.address import is_checksum_address, is_hex_address, to_checksum_address

from openlora.node.cli.output import ClientFile, JsonFlag, NodeFile, Output, parse_tokens, tokens
from openlora.node.errors import ConfigError


def register(
    stake: Annotated[str, typer.Option(help="Tokens to put at stake; a claim locks a part of them.")],
    config: NodeFile = Path("node.toml"),
    client: ClientFile = Path("operator.toml"),
    json: JsonFlag = False,
) -> None:
    """Register the operator key of --client with the node's hot key, and stake."""
    from openlora.node.config import NodeConfig, load
    from openlora.node.keys import load_key
    from openlora.node.market import open_market

    output = Output(json)
    stake_wei = parse_tokens(stake, "--stake")
    hot_key = load_key(load(config, NodeConfig).hot_key)

    async def send() -> None:
        async with open_market(client) as person:
            await person.register_node(hot_key, stake_wei)
        said = f"{person.key.address} is registered with hot key {hot_key.address}"
        output.say(f"{said} and {tokens(stake_wei)} OLRA at stake")
        output.result({"operator": person.key.address, "hot_key": hot_key.address, "stake_wei": stake_wei})

    asyncio.run(send())


def run(
    config: NodeFile = Path("node.toml"),
    children: Annotated[
        Path | None, typer.Option(help="Folder where engine and network, services of their own, join the agent.")
    ] = None,
) -> None:
    """Run the node until it is told to stop (SIGTERM or Ctrl-C)."""
    from openlora.node.app import run_node
    from openlora.node.config import NodeConfig, load
    from openlora.node.logs import set_up
    from openlora.node.service_manager import ServiceManager

    chosen = load(config, NodeConfig)
    set_up(chosen.log, os.environ)
    asyncio.run(run_node(config, chosen, ServiceManager.of(os.environ, children)))


def earnings(client: ClientFile = Path("client.toml"), json: JsonFlag = False) -> None:
    """Show what this key has earned, by role, and what it can withdraw."""
    from openlora.node.market import open_market

    output = Output(json)

    async def show() -> None:
        async with open_market(client) as person:
            earned = await person.earned()
            credits_wei = await person.credits()
        output.table(("role", "OLRA"), [(role, tokens(wei)) for role, wei in earned.items()])
        output.say(f"{tokens(credits_wei)} OLRA can be withdrawn by {person.key.address}")
        output.result({"address": person.key.address, "earned_wei": earned, "withdrawable_wei": credits_wei})

    asyncio.run(show())


def withdraw(
    to: Annotated[str | None, typer.Option(help="Address that receives the tokens; the key's own by default.")] = None,
    client: ClientFile = Path("client.toml"),
    json: JsonFlag = False,
) -> None:
    """Send all this key has earned to an address."""
    from openlora.node.market import open_market

    output = Output(json)

    async def send() -> None:
        async with open_market(client) as person:
            receiver = parse_address(to) if to else person.key.address
            amount_wei = await person.withdraw_credits(receiver)
        output.say(f"{tokens(amount_wei)} OLRA sent to {receiver}")
        output.result({"to": receiver, "amount_wei": amount_wei})

    asyncio.run(send())


def parse_address(text: str) -> ChecksumAddress:
    """An address whose checksum, if it has one, is right: money sent to a mistyped one is gone. Raises ConfigError."""
    digits = text.removeprefix("0x")
    unmarked = digits in (digits.lower(), digits.upper())
    if not is_hex_address(text) or not (unmarked or is_checksum_address(text)):
        raise ConfigError(f"{text} is no address, or is mistyped: its checksum does not fit")
    return to_checksum_address(text)
