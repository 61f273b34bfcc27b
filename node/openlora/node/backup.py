"""A node's keys, configuration and journal in one file, and back again.

The archive is a tar, readable by its owner alone, and sealed with a password where there is one. Adapters and blocks
are not in it: they are fetched again. The journal is copied as it is at one moment, also while the agent writes it.
"""

import filecmp
import io
import os
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Final

import msgspec
from cryptography.exceptions import InvalidTag
from msgspec import Meta

from openlora.node.config import NodeConfig, load
from openlora.node.database import SQL_ERRORS
from openlora.node.errors import BackupError
from openlora.node.journal_schema import MIGRATIONS
from openlora.node.journal_view import next_nonce, read_only
from openlora.node.malformed import MALFORMED, quote
from openlora.node.sealed_file import PIECE_BYTES, is_sealed, pieces, sealed, unsealed

MAX_BYTES: Final = 8 << 30
MANIFEST: Final = "manifest.json"
CONFIG: Final = "node.toml"
JOURNAL: Final = "journal.sqlite"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an archive says of itself."""

    made_at_s: Annotated[float, Meta(ge=0, le=2**33)]
    chain_id: int
    hot_key: Annotated[str, Meta(pattern=r"^(0x[0-9a-fA-F]{40})?\Z")]  # its address; "" for a node that never started
    next_nonce: int  # one more than any nonce of the hot key's that the journal knows
    schema: int  # of the journal; 0 without one
    version: int = 1


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive's members in a folder of their own, none of them anywhere else yet."""

    manifest: Manifest
    folder: Path
    names: frozenset[str]


def places(config_file: Path, config: NodeConfig) -> Mapping[str, Path]:
    """Where each member of an archive belongs."""
    return {
        CONFIG: config_file,
        "operator.toml": config_file.with_name("operator.toml"),
        "deployment.json": config.chain.deployment,
        "hot.json": config.hot_key.keystore,
        "hot.password": config.hot_key.password_file,
        JOURNAL: config.state_dir / JOURNAL,
        "libp2p.key": config.state_dir / "libp2p.key",
        "presence.sequence": config.state_dir / "presence.sequence",
    }


# ---- making ---------------------------------------------------------------------------------------------------------


def back_up(config_file: Path, archive: Path, password: str | None = None) -> tuple[Manifest, Sequence[str]]:
    """Writes `archive`, which must not exist yet; returns its manifest and the names of what was not there to be kept.

    Raises ConfigError, and BackupError for what cannot be read or written.
    """
    config = load(config_file, NodeConfig)
    here = places(config_file, config)
    missing = [name for name, path in here.items() if not os.path.lexists(path)]
    try:
        with tempfile.TemporaryDirectory(prefix=".backup-", dir=archive.absolute().parent) as scratch:
            folder = Path(scratch)
            if JOURNAL not in missing:
                _copy_journal(here[JOURNAL], folder / JOURNAL)
            manifest = _manifest(config, folder / JOURNAL)
            members = {name: path for name, path in here.items() if name not in missing}
            if JOURNAL in members:
                members[JOURNAL] = folder / JOURNAL
            _write_tar(folder / "tar", members, manifest)
            with _new_file(archive) as out, (folder / "tar").open("rb") as tar:
                for piece in sealed(tar, password) if password else pieces(tar):
                    out.write(piece)
    except FileExistsError:
        raise BackupError(f"{archive} exists already; choose another name") from None
    except OSError as error:
        raise BackupError(f"{error.filename or archive}: {error.strerror}; nothing was backed up") from None
    return manifest, missing


def _copy_journal(source: Path, target: Path) -> None:
    """As it is at one moment, by SQLite's own online backup; the agent goes on writing."""
    try:
        with closing(read_only(source)) as journal, closing(sqlite3.connect(target)) as copy:
            journal.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
            damage = copy.execute("PRAGMA quick_check(1)").fetchone()[0]
            _said_by(copy)
    except (*SQL_ERRORS, ValueError) as error:
        raise BackupError(f"{source} cannot be copied: {error}; keep the backups that you have") from None
    if damage != "ok":
        raise BackupError(f"{source} is damaged: {damage}; keep the backups that you have, and restore the newest")


def _manifest(config: NodeConfig, journal: Path) -> Manifest:
    hot_key, nonce, schema = "", 0, 0
    if journal.exists():
        with closing(read_only(journal)) as db:
            hot_key, nonce, schema = _said_by(db)
    return Manifest(
        made_at_s=time.time(), chain_id=config.chain.chain_id, hot_key=hot_key, next_nonce=nonce, schema=schema
    )


def _said_by(db: sqlite3.Connection) -> tuple[str, int, int]:
    found = db.execute("SELECT value FROM meta WHERE key = 'hot key'").fetchone()
    schema = int(db.execute("PRAGMA user_version").fetchone()[0])
    return str(found[0]) if found else "", next_nonce(db) or 0, schema


def _write_tar(path: Path, members: Mapping[str, Path], manifest: Manifest) -> None:
    with tarfile.open(path, "w") as tar:
        encoded = msgspec.json.encode(manifest)
        tar.addfile(_entry(MANIFEST, len(encoded)), io.BytesIO(encoded))
        for name, source in members.items():
            with source.open("rb") as opened:
                tar.addfile(_entry(name, os.fstat(opened.fileno()).st_size), opened)


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o600
    return entry


def _new_file(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


# ---- reading --------------------------------------------------------------------------------------------------------


def open_archive(archive: Path, folder: Path, password: str | None = None) -> Archive:
    """Unpacks an archive into `folder`. Raises BackupError for one that is damaged, foreign, or of another password."""
    if archive.exists() and not archive.is_file():
        raise BackupError(f"{archive} is no plain file; copy the backup into one, and name that")
    try:
        with archive.open("rb") as raw, tempfile.TemporaryFile(dir=folder) as plain:
            encrypted = is_sealed(raw)
            if encrypted and password is None:
                raise BackupError(f"{archive} is encrypted; name its --password-file")
            for piece in unsealed(raw, password) if encrypted and password else pieces(raw):
                plain.write(piece)
            plain.seek(0)
            names = _unpack(plain, folder)
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except InvalidTag:
        raise BackupError(f"{archive} is damaged, or the password is another one") from None
    except (tarfile.TarError, ValueError, FileNotFoundError, *MALFORMED) as error:  # tarfile has ValueErrors too
        raise BackupError(f"{archive} is no backup of a node, or is damaged: {error}") from None
    except OSError as error:
        raise BackupError(f"{error.filename or archive}: {error.strerror}") from None
    if manifest.schema > len(MIGRATIONS):
        raise BackupError(f"{archive} was made by a newer version; upgrade this program first")
    return Archive(manifest, folder, names)


def _unpack(plain: BinaryIO, folder: Path) -> frozenset[str]:
    """Known names alone, and plain files alone: an archive may be anybody's."""
    known = {MANIFEST, CONFIG, "operator.toml", "deployment.json", "hot.json", "hot.password", JOURNAL}
    known |= {"libp2p.key", "presence.sequence"}
    names, total = set(), 0
    with tarfile.open(fileobj=plain, mode="r:") as tar:
        for entry in tar:
            total += entry.size
            if (
                entry.name not in known
                or not entry.isreg()
                or entry.issparse()
                or entry.name in names
                or total > MAX_BYTES
            ):
                raise tarfile.TarError(f"{quote(entry.name)} does not belong into a backup")
            source = tar.extractfile(entry)
            assert source is not None, "a regular file has content"
            with _new_file(folder / entry.name) as out:
                while piece := source.read(PIECE_BYTES):
                    out.write(piece)
            names.add(entry.name)
    return frozenset(names - {MANIFEST})


def restore(
    archive: Archive, config_file: Path, chain_nonce: Callable[[NodeConfig, str], int | None]
) -> Sequence[Path]:
    """Puts every member where the archive's configuration, at `config_file`, says; returns these places.

    `chain_nonce` says how many transactions a hot key has sent, None where nobody can say. Raises ConfigError, and
    BackupError when any place is taken, or when the hot key has sent more than the journal knows: nothing is written.
    """
    there = _targets(archive, config_file)
    if taken := [str(path) for name, path in there.items() if _in_the_way(archive.folder / name, path)]:
        raise BackupError(f"nothing is overwritten, and there is {', '.join(taken)}; move it away first")
    _refuse_old(archive, load(archive.folder / CONFIG, NodeConfig), chain_nonce)
    try:
        for name, path in there.items():
            if path.exists():
                continue  # and is the same
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _new_file(path) as out, (archive.folder / name).open("rb") as source:
                for piece in pieces(source):
                    out.write(piece)
                out.flush()
                os.fsync(out.fileno())
    except OSError as error:
        raise BackupError(f"{error.filename}: {error.strerror}; remove what was restored, and try again") from None
    return tuple(there.values())


def _in_the_way(restored: Path, place: Path) -> bool:
    """A file that is the same already is not; a journal always is, and so is what another one left."""
    if place.name == JOURNAL:
        return any(place.with_name(f"{JOURNAL}{suffix}").exists() for suffix in ("", "-wal", "-shm"))
    return place.exists() and not filecmp.cmp(restored, place, shallow=False)


def _targets(archive: Archive, config_file: Path) -> Mapping[str, Path]:
    """The configuration is read as if it lay where it will, since its paths are relative to it."""
    config = load(archive.folder / CONFIG, NodeConfig, base=config_file.absolute().parent)
    return {name: path for name, path in places(config_file, config).items() if name in archive.names}


def _refuse_old(archive: Archive, config: NodeConfig, chain_nonce: Callable[[NodeConfig, str], int | None]) -> None:
    manifest = archive.manifest
    sent = chain_nonce(config, manifest.hot_key) if manifest.hot_key else None
    if sent is not None and sent > manifest.next_nonce:
        made = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(manifest.made_at_s))
        raise BackupError(
            f"this backup of {made} knows {manifest.next_nonce} transactions of the hot key {manifest.hot_key}, and the"
            f" chain has seen {sent}: the node ran on after it was made, and its journal would let a job be signed"
            " twice, which costs the stake; restore a newer backup, or start anew with a fresh hot key"
        )
