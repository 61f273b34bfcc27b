"""`openlora account` and `openlora faucet`: a key for people who run no node, and play money on a dev network."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from openlora.node.cli.hand import parse_address
from openlora.node.cli.init import checked_peers, chosen_chain
from openlora.node.cli.output import CLIENT_TOML, ClientFile, JsonFlag, Output, tokens
from openlora.node.errors import ConfigError, RpcError
from openlora.node.wei import TOKEN_WEI

COIN_WEI = 10**18  # that a key has at least afterwards, of the dev chain's coin
GIFT_WEI = 1_000 * TOKEN_WEI


def account(
    rpc: Annotated[str, typer.Option(help="RPC URL of the chain.")],
    deployment: Annotated[Path, typer.Option(help="JSON file that names the contracts.")],
    chain_id: Annotated[int | None, typer.Option(help="The chain's id; by default the RPC is asked.")] = None,
    bootstrap: Annotated[list[str] | None, typer.Option(help="Multiaddr of a node to join by. Repeatable.")] = None,
    state: Annotated[Path, typer.Option(help="Folder for the configuration and the key.")] = Path("openlora-account"),
    json: JsonFlag = False,
) -> None:
    """Write client.toml and a new key into a folder: to submit jobs, register texts, publish adapters, be paid.

    Overwrites nothing.
    """
    from openlora.node.new_node import served_chain, write_account

    output = Output(json)
    peers = checked_peers(bootstrap or ())
    chain_id = chosen_chain(rpc, served_chain(rpc), chain_id, _ask_nobody)
    config, address = write_account(state, rpc, chain_id, deployment, peers)
    output.say(f"{config} is the configuration of {address}; its key lies beside it")
    output.say("Fund it: it needs the chain's coin for gas, and tokens to pay for jobs")
    if not peers:
        output.say(
            "Before you watch answers or publish, name a node in its network.bootstrap (or give --bootstrap here)"
        )
    output.result({"config": str(config), "address": address})


def _ask_nobody(question: str, _default: str) -> str:
    raise ConfigError(f"{question} is missing")


def faucet(
    others: Annotated[list[str] | None, typer.Argument(metavar="ADDRESS…", help="Further addresses to fund.")] = None,
    client: ClientFile = CLIENT_TOML,
    json: JsonFlag = False,
) -> None:
    """On a dev network: fund a configuration's key, and other addresses, with the chain's coin and tokens."""
    from openlora.node.market import open_market

    output, given = Output(json), [parse_address(text) for text in others or ()]

    async def run() -> None:
        async with open_market(client) as person:
            people = list(dict.fromkeys([person.key.address, *given]))
            for address in people:
                if await person.chain.balance(address) < COIN_WEI:
                    try:
                        await person.chain.set_dev_balance(address, COIN_WEI)
                    except RpcError as error:
                        raise ConfigError(f"this chain is no dev network and gives nothing away: {error}") from None
                await person.transact(person.token.mint(address, GIFT_WEI))
                output.say(
                    f"{address} is given {tokens(GIFT_WEI)} OLRA; it has {tokens(COIN_WEI)} coin of the chain or more"
                )
            output.result({"addresses": people, "tokens_wei": GIFT_WEI})

    asyncio.run(run())
