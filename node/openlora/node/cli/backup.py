"""`openlora backup` and `openlora restore`: a node's keys, configuration and journal, in one file."""

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openlora.node.cli.output import JsonFlag, NodeFile, Output
from openlora.node.errors import BackupError, ChainError

if TYPE_CHECKING:
    from openlora.node.config import NodeConfig

PATIENCE_S = 5.0


def backup(
    archive: Annotated[Path, typer.Argument(help="File to write; it must not exist.")],
    config: NodeFile = Path("node.toml"),
    password_file: Annotated[
        Path | None, typer.Option(help="File with a password to encrypt it with; without one it is not encrypted.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Keep keys, configuration and journal in one file, also while the node runs.

    A backup can be restored until the node signs its next transaction: `restore` refuses an older journal.
    """
    from openlora.node.backup import back_up

    output = Output(json)
    manifest, missing = back_up(config, archive, _password(password_file))
    how = "encrypted" if password_file else "not encrypted: it holds the hot key and its password"
    output.say(f"{archive} is written, {how}")
    if manifest.hot_key:
        output.say(f"its journal knows {manifest.next_nonce} transactions of the hot key {manifest.hot_key}")
    for name in missing:
        output.say(f"not there, so not in it: {name}")
    output.result({"archive": str(archive), "encrypted": password_file is not None, "missing": missing})


def restore(
    archive: Annotated[Path, typer.Argument(help="What `openlora backup` wrote.")],
    config: Annotated[Path, typer.Option("--config", help="Where the node's configuration will lie.")] = Path(
        "node.toml"
    ),
    password_file: Annotated[
        Path | None, typer.Option(help="File with the password that it was encrypted with, if it was.")
    ] = None,
    unchecked: Annotated[
        bool, typer.Option("--unchecked", help="Do not ask the chain whether the journal is the newest.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Put a backup's files where its configuration says. Overwrites nothing, and refuses a journal that is too old."""
    from openlora.node.backup import open_archive
    from openlora.node.backup import restore as put_back

    output = Output(json)
    with tempfile.TemporaryDirectory(prefix="openlora-restore-") as folder:
        opened = open_archive(archive, Path(folder), _password(password_file))
        places = put_back(opened, config, _nothing_known if unchecked else _sent)
    for path in places:
        output.say(f"{path} restored")
    output.say("If the node served sessions after the backup: openlora rotate-hot-key first, or it may sign twice.")
    output.say(f"Next: openlora doctor --config {config}")
    output.result({"restored": [str(path) for path in places]})


def _password(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        password = path.read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BackupError(f"--password-file {path} cannot be read: {error}") from None
    if not password:
        raise BackupError(f"--password-file {path} is empty; put a password into it")
    return password


def _nothing_known(_config: "NodeConfig", _hot_key: str) -> None:
    return None


def _sent(config: "NodeConfig", hot_key: str) -> int:
    """Transactions that the hot key has sent. Raises BackupError when no RPC says."""
    from openlora.node.chain.client import ChainClient

    async def ask() -> int:
        client = await ChainClient.connect(config.chain.rpc_urls, config.chain.chain_id, patience_s=PATIENCE_S)
        try:
            return await client.nonce(hot_key)
        finally:
            await client.close()

    try:
        return asyncio.run(ask())
    except ChainError as error:
        raise BackupError(
            f"the chain could not be asked whether this journal is the newest: {error}; with --unchecked the node asks"
            " when it starts"
        ) from None
