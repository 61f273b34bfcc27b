"""The `openlora` command: `openlora --help` is the map."""

import errno
import logging
import sys
from importlib import metadata
from typing import Annotated

import typer

from openlora.node.cli import (
    account,
    adapter,
    backup,
    bench,
    datanet,
    deploy,
    devnet,
    doctor,
    init,
    job,
    logs,
    model,
    money,
    network,
    operator,
    serve,
    service,
    session,
    status,
    steer,
    upgrade,
)
from openlora.node.cli.output import printable
from openlora.node.errors import TEMPORARY, OpenLoraError
from openlora.node.recursion import restore_recursion_limit
from openlora.node.secrecy import leave_no_core


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"openlora {metadata.version('openlora')}")
        raise typer.Exit


app = typer.Typer(
    name="openlora",
    help="Serve thousands of LoRA adapters over one base model, and be paid per job.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("serve", rich_help_panel="Inference")(serve.serve)
app.command("bench", rich_help_panel="Inference")(bench.bench)
app.command("init", rich_help_panel="Node operators")(init.init)
app.command("register", rich_help_panel="Node operators")(money.register)
app.command("stake", rich_help_panel="Node operators")(money.stake)
app.command("unstake", rich_help_panel="Node operators")(money.unstake)
app.command("rotate-hot-key", rich_help_panel="Node operators")(money.rotate_hot_key)
app.command("run", rich_help_panel="Node operators")(operator.run)
app.command("doctor", rich_help_panel="Node operators")(doctor.doctor)
app.command("status", rich_help_panel="Node operators")(status.status)
app.command("drain", rich_help_panel="Node operators")(steer.drain)
app.command("reload", rich_help_panel="Node operators")(steer.reload)
app.command("backup", rich_help_panel="Node operators")(backup.backup)
app.command("restore", rich_help_panel="Node operators")(backup.restore)
app.command("upgrade", rich_help_panel="Node operators")(upgrade.upgrade)
app.command("logs", rich_help_panel="Node operators")(logs.logs)
app.command("network", rich_help_panel="Everyone")(network.network)
app.command("account", rich_help_panel="Everyone")(account.account)
app.command("earnings", rich_help_panel="Everyone who is paid")(money.earnings)
app.add_typer(money.withdraw, name="withdraw", rich_help_panel="Everyone who is paid")
app.add_typer(job.app, name="job", rich_help_panel="Job submitters")
app.add_typer(session.app, name="session", rich_help_panel="Job submitters")
app.add_typer(adapter.app, name="adapter", rich_help_panel="Adapter developers")
app.add_typer(datanet.app, name="datanet", rich_help_panel="Data providers")
app.add_typer(service.app, name="service", rich_help_panel="Node operators")
app.add_typer(model.app, name="model", rich_help_panel="Inference")
app.command("deploy", rich_help_panel="Everyone")(deploy.deploy)
app.command("faucet", rich_help_panel="Trying it out")(account.faucet)
app.command("devnet", rich_help_panel="Trying it out")(devnet.devnet)
app.command("demo", rich_help_panel="Trying it out")(devnet.demo)


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_say_version, help="Print the version and exit.")
    ] = False,
) -> None: ...


FULL = (errno.ENOSPC, errno.EDQUOT)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
MISNAMED = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
OTHER_KIND = (errno.EISDIR, errno.EEXIST, errno.ENXIO, errno.ENODEV)


def main() -> None:
    """Runs a command. A refusal is one sentence on stderr and exit code 2, or 3 if the chain refuses, or 75 for what
    may pass by itself; Ctrl-C is exit code 130."""
    leave_no_core()
    restore_recursion_limit()
    logging.getLogger("openlora").addHandler(logging.NullHandler())  # commands speak in sentences; a node logs
    try:
        app(standalone_mode=True)
    except OpenLoraError as error:
        print(f"openlora: {printable(str(error))}", file=sys.stderr)  # it may quote a stranger's file
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno in FULL:
            fix = "free disk space"
        elif error.errno in FORBIDDEN:
            fix = "run it as the user whose that is, or name another"
        elif error.errno in (*MISNAMED, *OTHER_KIND) and error.filename:
            fix = "name another path"
        else:
            raise
        print(f"openlora: {error.filename or 'the disk'}: {error.strerror}; {fix}", file=sys.stderr)
        sys.exit(TEMPORARY if error.errno in FULL else 2)
    except KeyboardInterrupt:
        sys.exit(130)
