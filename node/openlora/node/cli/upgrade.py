"""`openlora upgrade --check`: whether this version can take over the node as it is."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from openlora.node.cli.output import JsonFlag, NodeFile, Output
from openlora.node.errors import ConfigError


def upgrade(
    config: NodeFile = Path("node.toml"),
    check: Annotated[bool, typer.Option("--check", help="Required: nothing else is done; nothing is changed.")] = False,
    json: JsonFlag = False,
) -> None:
    """Check with the new version that it understands the node's configuration, journal and contracts; exit 1 if not.

    Run it by the new version, installed beside the old one. Nothing is changed.
    """
    from openlora.node.upgrade import check_upgrade

    if not check:
        raise ConfigError(
            "this program does not replace itself: install the new version beside it and type `openlora upgrade"
            " --check` with that; then `openlora drain --wait`, `openlora backup`, and start the new one"
        )
    output = Output(json)
    checks = asyncio.run(check_upgrade(config))
    for one in checks:
        mark, style = ("✓", "green") if one.ok else ("✗", "bold red")
        output.line((f"{mark} {one.about:<15}", style), (one.said, ""))
        if not one.ok:
            output.line(("→ ", "green"), (one.fix, ""), indent=2)
    ready = all(one.ok for one in checks)
    if ready:
        output.say("Next: openlora drain --wait, openlora backup FILE, stop the node, start this version")
    output.result({"ready": ready, "checks": checks})
    raise typer.Exit(0 if ready else 1)
