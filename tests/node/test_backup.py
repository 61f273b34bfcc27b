"""A node's backup: one moment of its journal, nothing readable by others, nothing overwritten, nothing too old."""

import io
import os
import sqlite3
import tarfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from eth_account import Account

from openlora.node.backup import MANIFEST, Archive, back_up, open_archive, restore
from openlora.node.config import NodeConfig
from openlora.node.config_files import ChainEntry, write_node_config
from openlora.node.errors import BackupError
from openlora.node.job import JobId
from openlora.node.sealed_file import PIECE_BYTES
from tests.node.damage import clear_first_page
from tests.node.doctor.clinic import write_key
from tests.node.facts import IDENTITY, block, open_journal, spec, spec_hash

JOBS = 60
HOT_KEY = IDENTITY.hot_key.lower()


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """The folder of a node that has signed with the nonces 0 to 4."""
    folder = tmp_path / "node"
    folder.mkdir()
    key = write_key(folder, "hot", Account.from_key(b"\x07" * 32))
    (folder / "deployment.json").write_text("{}")
    write_node_config(
        folder / "node.toml",
        ChainEntry(31337, "http://127.0.0.1:1", folder / "deployment.json"),
        model=folder / "model",
        key=key,
        state_dir=folder / "state",
        content_dir=folder / "content",
    )
    (folder / "state").mkdir()
    (folder / "state/libp2p.key").write_bytes(b"\x01" * 32)
    with open_journal(folder / "state") as journal:
        journal.set_meta("first nonce", "5")
        with journal.transaction():
            for job_id in range(JOBS):
                journal.see(JobId(job_id), spec(), spec_hash(job_id), os.urandom(20_000), block(1))
    return folder


def nonce_is(nonce: int | None) -> Callable[[NodeConfig, str], int | None]:
    def ask(config: NodeConfig, hot_key: str) -> int | None:
        assert (config.chain.chain_id, hot_key) == (31337, HOT_KEY)
        return nonce

    return ask


def unpacked(archive: Path, folder: Path, password: str | None = None) -> Archive:
    folder.mkdir()
    return open_archive(archive, folder, password)


@pytest.mark.parametrize("password", [None, "correct horse"])
def test_what_was_backed_up_comes_back_elsewhere(node: Path, tmp_path: Path, password: str | None):
    archive = tmp_path / "backup"
    manifest, missing = back_up(node / "node.toml", archive, password)
    assert (manifest.hot_key, manifest.next_nonce, manifest.chain_id) == (HOT_KEY, 5, 31337)
    assert missing == ["operator.toml", "presence.sequence"]
    assert archive.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob(".backup-*"))

    opened = unpacked(archive, tmp_path / "opened", password)
    placed = restore(opened, tmp_path / "other/node.toml", nonce_is(5))
    assert {path.relative_to(tmp_path / "other").as_posix() for path in placed} == {
        *("node.toml", "deployment.json", "hot.json", "hot.password"),
        *("state/journal.sqlite", "state/libp2p.key"),
    }
    assert all(path.stat().st_mode & 0o077 == 0 for path in placed)
    assert (tmp_path / "other/hot.json").read_text() == (node / "hot.json").read_text()
    with open_journal(tmp_path / "other/state") as journal:
        assert len(journal.jobs()) == JOBS


def test_the_journal_is_copied_while_the_agent_writes_it(node: Path, tmp_path: Path):
    with open_journal(node / "state") as journal, journal.transaction():
        journal.set_meta("first nonce", "9")
        manifest, _ = back_up(node / "node.toml", tmp_path / "backup")
    assert manifest.next_nonce == 5, "what is not committed is not in it"
    with open_journal(node / "state"):
        manifest, _ = back_up(node / "node.toml", tmp_path / "later")
    assert manifest.next_nonce == 9
    with closing(sqlite3.connect(unpacked(tmp_path / "later", tmp_path / "x").folder / "journal.sqlite")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_journal_after_a_kill_is_whole(node: Path, tmp_path: Path):
    """Its last transactions are in the write-ahead log alone."""
    with open_journal(node / "state") as journal:
        journal.set_meta("first nonce", "7")
        for path in (node / "state").glob("journal.sqlite*"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    for path in tmp_path.glob("journal.sqlite*"):
        path.rename(node / "state" / path.name)
    assert back_up(node / "node.toml", tmp_path / "backup")[0].next_nonce == 7


def test_a_journal_older_than_the_chain_is_refused_in_plain_words(node: Path, tmp_path: Path):
    back_up(node / "node.toml", tmp_path / "backup")
    opened = unpacked(tmp_path / "backup", tmp_path / "opened")
    with pytest.raises(BackupError, match=r"knows 5 transactions.*chain has seen 6.*signed twice.*newer backup"):
        restore(opened, tmp_path / "other/node.toml", nonce_is(6))
    assert not (tmp_path / "other").exists()
    assert restore(opened, tmp_path / "other/node.toml", nonce_is(None))


def test_nothing_is_overwritten(node: Path, tmp_path: Path):
    archive = tmp_path / "backup"
    back_up(node / "node.toml", archive)
    with pytest.raises(BackupError, match="exists already"):
        back_up(node / "node.toml", archive)
    opened = unpacked(archive, tmp_path / "opened")
    with pytest.raises(BackupError, match=r"journal\.sqlite"):
        restore(opened, node / "node.toml", nonce_is(5))
    (node / "state/journal.sqlite").unlink()
    (node / "hot.json").write_text("another")
    with pytest.raises(BackupError, match=r"hot\.json"):
        restore(opened, node / "node.toml", nonce_is(5))
    assert not (node / "state/journal.sqlite").exists()
    (node / "hot.json").unlink()
    assert len(restore(opened, node / "node.toml", nonce_is(5))) == 6, "what is the same already is left"


def test_an_encrypted_archive_that_was_changed_is_refused(node: Path, tmp_path: Path):
    archive = tmp_path / "backup"
    back_up(node / "node.toml", archive, "password")
    sealed = archive.read_bytes()
    assert b"deployment" not in sealed
    assert len(sealed) > PIECE_BYTES, "of several pieces, so that one can be missing"
    changed = [sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :] for at in (3, 20, 1000, len(sealed) - 1)]
    cut = [sealed[:length] for length in (41 + PIECE_BYTES + 16, 30, 0)]
    for number, damaged in enumerate(changed + cut):
        archive.write_bytes(damaged)
        with pytest.raises(BackupError, match="damaged"):
            unpacked(archive, tmp_path / f"opened-{number}", "password")


def test_a_wrong_or_missing_password(node: Path, tmp_path: Path):
    archive = tmp_path / "backup"
    back_up(node / "node.toml", archive, "password")
    with pytest.raises(BackupError, match="another one"):
        unpacked(archive, tmp_path / "1", "guess")
    with pytest.raises(BackupError, match="--password-file"):
        unpacked(archive, tmp_path / "2")


@pytest.mark.parametrize("name", ["../node.toml", "/etc/passwd", "extra", "node.toml", "link"])
def test_an_archive_of_a_strangers_writes_nowhere_else(tmp_path: Path, name: str):
    archive = tmp_path / "backup"
    with tarfile.open(archive, "w") as tar:
        tar.addfile(tarfile.TarInfo("node.toml"), io.BytesIO())
        entry = tarfile.TarInfo("hot.json" if name == "link" else name)
        if name == "link":
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(entry, io.BytesIO())
    with pytest.raises(BackupError, match="does not belong"):
        unpacked(archive, tmp_path / "opened")
    assert {path.name for path in (tmp_path / "opened").iterdir()} == {"node.toml"}


def test_a_damaged_journal_takes_no_good_backups_place(node: Path, tmp_path: Path):
    clear_first_page(node / "state/journal.sqlite", "attempts")
    with pytest.raises(BackupError, match="keep the backups that you have"):
        back_up(node / "node.toml", tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


@pytest.mark.parametrize("name", ["hot.json", "state/journal.sqlite", "state/libp2p.key"])
def test_what_is_there_and_cannot_be_read_is_not_left_out(node: Path, tmp_path: Path, name: str):
    (node / name).unlink()
    (node / name).symlink_to((node / name).name)
    with pytest.raises(BackupError, match=r"nothing was backed up|cannot be copied"):
        back_up(node / "node.toml", tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


def test_a_journal_of_a_newer_version_is_refused(node: Path, tmp_path: Path):
    with closing(sqlite3.connect(node / "state/journal.sqlite")) as db:
        db.execute("PRAGMA user_version = 99")
    back_up(node / "node.toml", tmp_path / "backup")
    with pytest.raises(BackupError, match="newer version"):
        unpacked(tmp_path / "backup", tmp_path / "opened")


def test_what_is_no_backup_says_so(tmp_path: Path):
    (tmp_path / "backup").write_text("hello")
    with pytest.raises(BackupError, match="no backup"):
        unpacked(tmp_path / "backup", tmp_path / "1")
    with pytest.raises(BackupError, match="No such file"):
        unpacked(tmp_path / "nowhere", tmp_path / "2")
    for number, (headers, manifest) in enumerate(
        [
            ({}, b""),
            ({}, b"\xff"),
            ({}, b"[" * 10_000),
            ({}, b'{"made_at_s": 1e300, "chain_id": 1, "hot_key": "", "next_nonce": 0, "schema": 1}'),
            ({}, b'{"made_at_s": 1, "chain_id": 1, "hot_key": "\\u202e", "next_nonce": 0, "schema": 1}'),
            ({"size": "nan"}, b"{}"),
            ({"GNU.sparse.map": ""}, b"{}"),
            ({"GNU.sparse.map": "0,2", "GNU.sparse.size": str(4 << 30)}, b"{}"),
        ]
    ):
        entry = tarfile.TarInfo(MANIFEST)
        entry.size, entry.pax_headers = len(manifest), headers
        archive = tmp_path / f"archive {number}"
        with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
            tar.addfile(entry, io.BytesIO(manifest))
        with pytest.raises(BackupError, match="no backup"):
            unpacked(archive, tmp_path / f"opened {number}")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BackupError, match="no plain file"):
        unpacked(tmp_path / "pipe", tmp_path / "4")
