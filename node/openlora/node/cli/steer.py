"""`openlora drain` and `openlora reload`: what an operator tells a running node."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from openlora.node.cli.output import JsonFlag, NodeFile, Output
from openlora.node.errors import ConfigError

EVERY_S: Final = 0.5


def drain(
    config: NodeFile = Path("node.toml"),
    undo: Annotated[bool, typer.Option("--undo", help="Claim jobs again.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when nothing is under way any more.")] = False,
    timeout: Annotated[float, typer.Option(min=0, help="With --wait, seconds to wait at most; then exit 1.")] = 3600.0,
    json: JsonFlag = False,
) -> None:
    """Claim no new jobs, and finish those under way: before an upgrade, a restart, or the end.

    A restart claims again.
    """
    from openlora.node.agent_client import get, send
    from openlora.node.config import NodeConfig, load

    output, socket = Output(json), load(config, NodeConfig).socket
    send(socket, "DELETE" if undo else "POST", "/v1/drain")
    if undo:
        output.say("the node claims jobs again")
        output.result({"draining": False})
        return
    finished = until_idle(lambda: get(socket, "/v1/state"), timeout if wait else 0.0, output)
    output.result({"draining": True, "drained": finished})
    if wait and not finished:
        raise typer.Exit(1)


def until_idle(look: Callable[[], Any], timeout_s: float, output: Output) -> bool:
    """Says how many jobs are left whenever that changes; whether there is none at the end."""
    end_s, told = time.monotonic() + timeout_s, -1
    while True:
        state = look()
        left = _under_way(state)
        if left != told:
            told = left
            output.say(_said(left, state["jobs_by_state"].get("committed", 0)))
        if left == 0 or time.monotonic() >= end_s:
            return left == 0
        time.sleep(min(EVERY_S, max(0.0, end_s - time.monotonic())))


def _under_way(state: Any) -> int:
    """Of the queue and of sessions, whose orders are seen in the engine alone."""
    queue, engine = state["queue"], state["engine"]
    requests = engine["running_requests"] + engine["waiting_requests"]
    return int(max(len(queue["live"]), queue["active_jobs"], requests))


def _said(left: int, committed: int) -> str:
    if left:
        return f"draining: {left} job{'' if left == 1 else 's'} to finish"
    unpaid = f"; {committed} committed jobs are paid after their window" if committed else ""
    return f"drained: nothing is under way, the node may be stopped{unpaid}"


def reload(config: NodeFile = Path("node.toml"), json: JsonFlag = False) -> None:
    """Have the running node take over prices, limits and allow-lists: all of market, and storage.min_free_bytes.

    The file is checked as a whole first. What cannot change in a running node is named. SIGHUP does the same.
    """
    from openlora.node.agent_client import send
    from openlora.node.config import NodeConfig, load
    from openlora.node.errors import RequestError

    output, socket = Output(json), load(config, NodeConfig).socket
    try:
        done = send(socket, "POST", "/v1/reload")
    except RequestError as error:
        raise ConfigError(f"{error}; nothing has changed") from None
    output.say(f"taken over: {', '.join(done['changed']) or 'nothing, all is as it was'}")
    if done["needs_restart"]:
        output.say(f"takes effect at the next start: {', '.join(done['needs_restart'])}")
    output.result(done)
