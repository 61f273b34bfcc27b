"""The key that a peer id is made of: Ed25519, kept in one file that only its owner may read.

A peer id spells the public key itself (https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md): an identity
multihash of the protobuf `PublicKey{Type: Ed25519, Data}`, in base58btc. So whoever knows a peer id can check its
signatures. The file is libp2p's protobuf `PrivateKey{Type: Ed25519, Data: seed · public key}`, as other libp2p
programs write it.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from openlora.p2p import durable
from openlora.p2p.errors import P2PError
from openlora.p2p.network import PeerId

# Identity multihash of 36 bytes · Type: Ed25519 · Data: 32 bytes.
_PEER_ID_PREFIX: Final = bytes.fromhex("002408011220")
_PRIVATE_KEY_PREFIX: Final = bytes.fromhex("08011240")  # Type: Ed25519 · Data: 64 bytes
_KEY_BYTES: Final = 32
_PEER_ID_CHARACTERS: Final = 52


class Identity:
    """One Ed25519 key pair. `str()` shows the peer id and never the key."""

    __slots__ = ("_key", "peer_id", "public_key")

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key: Final = self._key.public_key().public_bytes_raw()
        self.peer_id: Final = PeerId(base58.b58encode(_PEER_ID_PREFIX + self.public_key).decode())

    @classmethod
    def load_or_create(cls, path: Path) -> "Identity":
        """The identity in `path`; on first use a new one, durable and whole before it is used, with mode 0600.

        Raises P2PError if the file is damaged or others may read it: neither is mended silently, since a new key is a
        new peer to everybody else."""
        with suppress(FileNotFoundError):
            return cls._load(path)
        durable.write(path, cls(os.urandom(_KEY_BYTES)).file_bytes(), overwrite=False)
        return cls._load(path)  # ours, or that of a process that was quicker

    @classmethod
    def _load(cls, path: Path) -> "Identity":
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(len(_PRIVATE_KEY_PREFIX) + 2 * _KEY_BYTES + 1)
        if mode & 0o077:
            raise P2PError(f"{path}: the network identity may be read by others; run chmod 600 on it")
        seed = data[len(_PRIVATE_KEY_PREFIX) : len(_PRIVATE_KEY_PREFIX) + _KEY_BYTES]
        if len(seed) != _KEY_BYTES or cls(seed).file_bytes() != data:
            raise P2PError(f"{path}: the network identity is damaged; restore it, or move it away to get a new peer id")
        return cls(seed)

    def file_bytes(self) -> bytes:
        """The private key in libp2p's protobuf spelling: a secret."""
        return _PRIVATE_KEY_PREFIX + self._key.private_bytes_raw() + self.public_key

    def seed(self) -> bytes:
        """The 32 bytes that the key pair follows from: a secret."""
        return self._key.private_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data)

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"


def public_key_of(peer_id: str) -> bytes:
    """The 32-byte Ed25519 public key inside a peer id. Raises P2PError if it is no canonical "12D3Koo…" id."""
    if len(peer_id) != _PEER_ID_CHARACTERS:
        raise P2PError("a peer id has 52 characters and begins with 12D3Koo")
    try:
        data = base58.b58decode(peer_id)
    except ValueError:
        raise P2PError("a peer id is spelled in base58") from None
    if len(data) != len(_PEER_ID_PREFIX) + _KEY_BYTES or not data.startswith(_PEER_ID_PREFIX):
        raise P2PError("the peer id holds no Ed25519 key")
    return data[len(_PEER_ID_PREFIX) :]


def verify(peer_id: PeerId, data: bytes, signature: bytes) -> bool:
    """Whether the owner of `peer_id` signed `data`; False, too, for a peer id that holds no Ed25519 key."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key_of(peer_id)).verify(signature, data)
    except (P2PError, InvalidSignature):
        return False
    return True
