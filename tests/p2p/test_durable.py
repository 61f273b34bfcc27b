"""A file is there whole or not at all, and what was unfinished is gone."""

import stat
from pathlib import Path

import pytest

from openlora.p2p import durable


def test_a_file_is_replaced_as_a_whole_and_read_by_its_owner_alone(tmp_path: Path):
    path = tmp_path / "file"
    durable.write(path, b"old")
    durable.write(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_there_may_be_left_as_it_is(tmp_path: Path):
    path = tmp_path / "file"
    for data in (b"first", b"second"):
        durable.write(path, data, overwrite=False)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path):
    scratch, taken = tmp_path / "scratch", tmp_path / "taken"
    scratch.mkdir()
    taken.mkdir()
    with pytest.raises(OSError, match="taken"):
        durable.write(taken, b"data", unfinished_in=scratch)
    assert not list(scratch.iterdir())
    assert taken.is_dir()
