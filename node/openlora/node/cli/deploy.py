"""`openlora deploy`: the market's contracts, on a chain of your choice."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from openlora.node.cli.hand import PasswordFile
from openlora.node.cli.output import JsonFlag, Output
from openlora.node.errors import ConfigError


def deploy(
    settings: Annotated[Path, typer.Argument(help="Who governs, and on what terms: see configs/market.example.toml.")],
    rpc: Annotated[str, typer.Option(help="RPC URL of the chain.")],
    chain_id: Annotated[int, typer.Option(help="The chain's id, which the RPC must serve.")],
    keystore: Annotated[Path, typer.Option(help="Keystore v3 file of the key that pays the gas; it keeps no power.")],
    out: Annotated[Path, typer.Option(help="File to write the addresses to.")] = Path("deployment.json"),
    password_file: PasswordFile = None,
    json: JsonFlag = False,
) -> None:
    """Put the contracts on a chain, and write the deployment file that nodes and clients read."""
    from openlora.node.chain.client import ChainClient
    from openlora.node.cli.hand import unlocked
    from openlora.node.deploying import deploy as deploy_market
    from openlora.node.deploying import load_settings

    output = Output(json)
    if out.exists():
        raise ConfigError(f"{out} exists already; move it away, or choose another --out")
    chosen, key = load_settings(settings), unlocked(keystore, password_file)

    async def run() -> None:
        chain = await ChainClient.connect([rpc], chain_id)
        try:
            deployment = await deploy_market(chain, key, chosen, output.say)
        finally:
            await chain.close()
        out.write_text(deployment.to_json())
        output.say(f"{out} names them; give it to nodes and clients")
        output.result({"deployment": str(out), "chain_id": chain_id, "block": deployment.block})

    asyncio.run(run())
