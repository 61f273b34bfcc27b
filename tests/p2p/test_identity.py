"""The file that a peer id comes from, and signatures that anyone can check who knows the id."""

import importlib
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from openlora.p2p.errors import P2PError
from openlora.p2p.identity import Identity, public_key_of, verify
from openlora.p2p.network import PeerId


def test_it_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    first = Identity.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Identity.load_or_create(path).peer_id == first.peer_id
    assert list(tmp_path.iterdir()) == [path]


def test_whoever_creates_it_at_once_gets_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: Identity.load_or_create(tmp_path / "identity").peer_id, range(8)))
    assert len(set(made)) == 1


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data[:-1], id="short"),
        pytest.param(lambda data: data + b"\n", id="long"),
        pytest.param(lambda data: b"\x00" + data[1:], id="another type"),
        pytest.param(lambda data: data[:10] + bytes((data[10] ^ 1,)) + data[11:], id="a flipped bit"),
    ],
)
def test_a_damaged_file_is_said_and_left_alone(tmp_path: Path, damage: "object") -> None:
    assert callable(damage)
    path = tmp_path / "identity"
    Identity.load_or_create(path)
    path.write_bytes(damage(path.read_bytes()))
    damaged = path.read_bytes()
    with pytest.raises(P2PError, match="identity is damaged"):
        Identity.load_or_create(path)
    assert path.read_bytes() == damaged


def test_a_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    Identity.load_or_create(path)
    path.chmod(0o640)
    with pytest.raises(P2PError, match="chmod 600"):
        Identity.load_or_create(path)


def test_the_key_is_never_shown(tmp_path: Path) -> None:
    identity = Identity(bytes(range(32)))
    assert f"{identity} {identity!r}" == f"Identity({identity.peer_id}) Identity({identity.peer_id})"


def test_it_is_what_libp2p_makes_of_the_same_key() -> None:
    importlib.import_module("openlora.p2p.host")  # libp2p, tamed
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.peer.id import ID

    theirs = create_new_key_pair(bytes(range(32)))
    ours = Identity(bytes(range(32)))
    assert ours.peer_id == str(ID.from_pubkey(theirs.public_key))
    assert ours.sign(b"data") == theirs.private_key.sign(b"data")
    assert ours.file_bytes()[4:] == theirs.private_key.to_bytes() + ours.public_key


def test_only_the_owner_of_a_peer_id_can_sign_for_it() -> None:
    ours, other = Identity(bytes(32)), Identity(bytes(31) + b"\x01")
    signature = ours.sign(b"data")
    assert verify(ours.peer_id, b"data", signature)
    assert not verify(ours.peer_id, b"Data", signature)
    assert not verify(other.peer_id, b"data", signature)
    assert not verify(ours.peer_id, b"data", signature[:-1])
    assert not verify(ours.peer_id, b"data", b"")


@pytest.mark.parametrize(
    "peer_id",
    [
        "",
        "12D3KooW",
        "0" * 52,
        "é" * 52,
        "1" * 52,
        "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG",
        "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp" * 20000,
    ],
)
def test_what_is_no_peer_id_of_ours_verifies_nothing(peer_id: str) -> None:
    with pytest.raises(P2PError):
        public_key_of(peer_id)
    assert not verify(PeerId(peer_id), b"data", bytes(64))
