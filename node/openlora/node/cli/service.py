"""`openlora service`: the node as services of this machine."""

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from openlora.node.cli.output import JsonFlag, Output
from openlora.node.config import NodeConfig, load
from openlora.node.errors import ConfigError
from openlora.node.service_units import (
    CONFIG,
    TARGET,
    Plan,
    is_hidden,
    misfits,
    own_bin_dir,
    shipped,
    to_install,
    to_uninstall,
)

app = typer.Typer(help="The node as services that systemd starts, watches and confines.", no_args_is_help=True)

Prefix = Annotated[Path, typer.Option(help="Folder that stands for /; nothing is started then.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
ROOT = Path("/")


@app.command()
def install(prefix: Prefix = ROOT, dry_run: DryRun = False, json: JsonFlag = False) -> None:
    """Write units, users and folders for agent, network process and engine, and make them known to systemd."""
    output, bin_dir = Output(json), own_bin_dir()
    if not shipped().is_dir():
        raise ConfigError(f"{shipped()} does not exist; install the package anew")
    if prefix == ROOT and is_hidden(bin_dir):
        raise ConfigError(f"the services cannot see {bin_dir}; install this program under /opt, say, and run it there")
    _carry_out(to_install(prefix.absolute(), bin_dir), prefix, dry_run, output)
    if CONFIG.exists() and prefix == ROOT:
        for misfit in misfits(load(CONFIG, NodeConfig)):
            output.say(f"{CONFIG}: {misfit}")
    output.say(f"Next: put the node's configuration at {CONFIG}, encrypt the hot key's password, and start the node:")
    output.say("  systemd-creds encrypt --name=hot.password hot.password /etc/credstore.encrypted/hot.password")
    output.say(f"  systemctl enable --now {TARGET}")


@app.command()
def uninstall(prefix: Prefix = ROOT, dry_run: DryRun = False, json: JsonFlag = False) -> None:
    """Stop the node and remove its units; its users, keys, journal and adapters stay."""
    output = Output(json)
    plan = to_uninstall(prefix.absolute())
    if not plan.gone:
        output.say("no services of this node are installed")
    _carry_out(plan, prefix, dry_run, output)


def _carry_out(plan: Plan, prefix: Path, dry_run: bool, output: Output) -> None:
    if not dry_run and prefix == ROOT:
        refuse_unless_possible(Path("/run/systemd/system").is_dir(), os.geteuid() == 0)
    said = "would be " if dry_run else ""
    _run(plan.before, dry_run, output)
    for path, text in plan.files.items():
        if not dry_run:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        output.say(f"{path} {said}written")
    for path in plan.gone:
        if not dry_run:
            path.unlink()
        output.say(f"{path} {said}removed")
    _run(plan.commands, dry_run, output)
    output.result(
        {
            "written": [str(path) for path in plan.files],
            "removed": [str(path) for path in plan.gone],
            "commands": [shlex.join(command) for command in (*plan.before, *plan.commands)],
            "dry_run": dry_run,
        }
    )


def refuse_unless_possible(has_systemd: bool, is_root: bool) -> None:
    """Raises ConfigError."""
    if not has_systemd:
        raise ConfigError("this machine is not run by systemd; start the node with `openlora run`, or see --prefix")
    if not is_root:
        raise ConfigError("services are installed by root: run this with sudo, or look first with --dry-run")


def _run(commands: Sequence[Sequence[str]], dry_run: bool, output: Output) -> None:
    for command in commands:
        output.say(f"{'would run' if dry_run else 'runs'} {shlex.join(command)}")
        if dry_run:
            continue
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - systemd's own, by name
        if done.returncode:
            raise ConfigError(f"{shlex.join(command)} failed: {done.stderr.strip() or f'exit code {done.returncode}'}")
