"""`openlora status`: what the running node on this machine does."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.live import Live

from openlora.node.cli.output import JsonFlag, NodeFile, Output
from openlora.node.cli.status_screen import SHOWN_JOBS, Moment, screen

EVERY_S: Final = 1.0
FILE_COLUMNS: Final = 100


def status(
    config: NodeFile = Path("node.toml"),
    once: Annotated[bool, typer.Option("--once", help="Print one look, also on a terminal.")] = False,
    json: JsonFlag = False,
) -> None:
    """Watch the node on this machine: health, engine, work, money, alerts. Ctrl-C leaves it; the node runs on."""
    from openlora.node.config import NodeConfig, load

    output, socket = Output(json), load(config, NodeConfig).socket
    moment = look(socket)
    if json:
        output.result(moment.state)
    elif once or not output.console.is_terminal:
        width = output.console.width if output.console.is_terminal else FILE_COLUMNS
        Console(width=width, highlight=False, markup=False).print(screen(moment, width))
    else:
        with suppress(KeyboardInterrupt):  # how one leaves it
            watch(output, socket, moment)


def look(socket: Path, before: Moment | None = None) -> Moment:
    """Raises AgentUnreachable."""
    from openlora.node.agent_client import get

    state, now_s = get(socket, "/v1/state"), time.time()
    jobs = get(socket, f"/v1/jobs?limit={SHOWN_JOBS}")["jobs"]
    speed = None
    if before is not None and now_s > before.now_s:
        made = state["engine"]["generated_tokens"] - before.state["engine"]["generated_tokens"]
        speed = max(0, made) / (now_s - before.now_s)
    return Moment(state, jobs, now_s, speed)


def watch(output: Output, socket: Path, moment: Moment) -> None:
    """Until Ctrl-C. Raises AgentUnreachable once the node ends."""
    with Live(console=output.console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(screen(moment, output.console.width), refresh=True)
            time.sleep(EVERY_S)
            moment = look(socket, moment)
