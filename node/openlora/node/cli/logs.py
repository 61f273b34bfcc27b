"""`openlora logs`: what the node's processes said, from the journal of systemd or from a file."""

import json as json_module
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final

import typer

from openlora.node.cli.output import JsonFlag, NodeFile, Output, printable
from openlora.node.errors import ConfigError

UNITS: Final = ("openlora-agent.service", "openlora-p2p.service", "openlora-engine@*.service")
FILE: Final = "node.log"
PRIORITIES: Final = {"debug": "7", "info": "6", "warning": "4", "error": "3", "critical": "2"}  # syslog's


def logs(
    config: NodeFile = Path("node.toml"),
    file: Annotated[
        Path | None, typer.Option(help=f"Log file; by default the services' journal, or {FILE} in the state folder.")
    ] = None,
    job: Annotated[int | None, typer.Option(help="Lines about this job only.")] = None,
    level: Annotated[str, typer.Option(help=f"This level and worse: {', '.join(PRIORITIES)}.")] = "debug",
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many past lines.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines as they come.")] = False,
    json: JsonFlag = False,
) -> None:
    """Show the node's log, past and present, by job and by level."""
    from openlora.node.config import NodeConfig, load

    if level not in PRIORITIES:
        raise ConfigError(f"--level {level} is unknown; choose one of {', '.join(PRIORITIES)}")
    path = file or load(config, NodeConfig).state_dir / FILE
    if file is None and not path.exists() and (journalctl := shutil.which("journalctl")) and has_units():
        os.execv(journalctl, command(journalctl, job, level, lines, follow, json))  # noqa: S606 - its pager and signals
    show(path, job, level, lines, follow, Output(json))


def has_units() -> bool:
    return any(Path("/etc/systemd/system").glob("openlora-*.service"))


def command(journalctl: str, job: int | None, level: str, lines: int, follow: bool, json: bool) -> list[str]:
    """journalctl's command line. The fields are those of `openlora.node.logs`."""
    units = [part for unit in UNITS for part in ("--unit", unit)]
    wanted = [journalctl, *units, "--priority", PRIORITIES[level], "--lines", str(lines)]
    wanted += ["--follow"] * follow + ["--output=json"] * json
    return [*wanted, f"JOB_ID={job}"] if job is not None else wanted


def show(path: Path, job: int | None, level: str, lines: int, follow: bool, output: Output) -> None:
    from openlora.node import log_reader

    wanted = log_reader.Wanted(job, level)
    try:
        past, position = log_reader.last(path, wanted, lines)
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; a node writes to its stderr: keep it with `openlora run 2>> {path}`,"
            " or name the file with --file"
        ) from None
    _print(past, output)
    if follow:
        _print(log_reader.follow(path, wanted, position, lambda: False), output)


def _print(lines: Iterable[str], output: Output) -> None:
    from openlora.node.log_reader import fields

    for line in lines:
        print(json_module.dumps(fields(line)) if output.as_json else printable(line), flush=True)
