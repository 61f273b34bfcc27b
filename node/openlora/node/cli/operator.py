"""What a node operator types to run the node."""

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from openlora.node.cli.output import NodeFile


def run(
    config: NodeFile = Path("node.toml"),
    children: Annotated[
        Path | None,
        typer.Option(help="Folder of the sockets at which engine and network process join, where they are services."),
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
