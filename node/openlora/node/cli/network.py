"""`openlora network`: who is there, what they hold and what they ask."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from openlora.node.cli.output import JsonFlag, Output, tokens
from openlora.node.errors import ConfigError

SETTLED_S = 2.0  # without a new node: the table is complete
POLL_S = 0.1


def network(
    config: Annotated[Path | None, typer.Option(help="A node's configuration: what its running agent sees.")] = None,
    client: Annotated[Path | None, typer.Option(help="A client's configuration: join, look around, leave.")] = None,
    wait: Annotated[float, typer.Option(min=0, help="With --client, seconds to look for nodes at most.")] = 15.0,
    json: JsonFlag = False,
) -> None:
    """Show the live nodes: machine, models, adapters by tier, prices, jobs."""
    from openlora.node.network.table import COLUMNS, table_rows

    if (config is None) == (client is None):
        raise ConfigError("name one of --config (a running node's view) and --client (join and look)")
    output = Output(json)
    views = asyncio.run(_look(client, wait)) if client else _ask(config)
    output.table(COLUMNS, table_rows(views, tokens))
    output.say(f"{len(views)} node{'' if len(views) == 1 else 's'}")
    output.result(views)


def _ask(config: Path | None) -> Sequence[Mapping[str, Any]]:
    from openlora.node.agent_client import get
    from openlora.node.config import NodeConfig, load

    assert config is not None, "one of the two is given"
    nodes: Sequence[Mapping[str, Any]] = get(load(config, NodeConfig).socket, "/v1/network")["nodes"]
    return nodes


async def _look(client: Path, wait_s: float) -> Sequence[Mapping[str, Any]]:
    """Until no node has been added for a while."""
    from openlora.node.network.participant import participant
    from openlora.node.network.table import node_view

    async with participant(client) as peer:
        known, since_s, end_s = 0, time.monotonic(), time.monotonic() + wait_s
        while (now_s := time.monotonic()) < end_s and (not known or now_s - since_s < SETTLED_S):
            if len(peer.network.nodes()) > known:
                known, since_s = len(peer.network.nodes()), now_s
            await asyncio.sleep(POLL_S)
        return [msgspec.to_builtins(node_view(record)) for record in peer.network.nodes()]
