"""A client's keys on its disk."""

import stat
from pathlib import Path

import pytest

from openlora.node.errors import RequestError
from openlora.node.private.kept import KeptKey, KeptKeys

DIGEST = b"\x05" * 32
KEPT = KeptKey(key=b"\x4b" * 32, node="0x" + "0a" * 20)


def test_what_is_kept_is_found_and_nobody_else_may_read_it(tmp_path: Path):
    keys = KeptKeys(tmp_path / "private")
    keys.keep(DIGEST, KEPT)
    assert keys.of(DIGEST) == KEPT
    (file,) = keys.folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.folder.stat().st_mode) == 0o700


def test_a_key_that_is_not_here_says_where_it_belongs(tmp_path: Path):
    with pytest.raises(RequestError, match=rf"belongs at {tmp_path}/{DIGEST.hex()}.json"):
        KeptKeys(tmp_path).of(DIGEST)


@pytest.mark.parametrize("data", [b"", b"{}", b'{"v":1,"key":"S0tLSw==","node":null}', b'{"v":2}', b"\xff" * 99])
def test_a_damaged_file_is_no_key(tmp_path: Path, data: bytes):
    (tmp_path / f"{DIGEST.hex()}.json").write_bytes(data)
    with pytest.raises(RequestError, match="cannot be read; put the file back"):
        KeptKeys(tmp_path).of(DIGEST)


def test_what_cannot_be_kept_is_not_submitted(tmp_path: Path):
    (tmp_path / "private").write_text("in the way")
    keys = KeptKeys(tmp_path / "private")
    with pytest.raises(RequestError, match="cannot be kept"):
        keys.keep(DIGEST, KEPT)
