"""A file under a password: ChaCha20-Poly1305 over pieces of 1 MiB, which are numbered and the last one marked (the
STREAM construction), under a key of scrypt."""

import os
from collections.abc import Iterator
from typing import BinaryIO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from openlora.node.keys import SCRYPT_N

MAGIC: Final = b"openlora backup 1\n"
PIECE_BYTES: Final = 1 << 20
SALT_BYTES: Final = 16
PREFIX_BYTES: Final = 7  # of each piece's nonce; a number of 4 bytes and the mark of the last one follow
TAG_BYTES: Final = 16


def pieces(source: BinaryIO, size: int = PIECE_BYTES) -> Iterator[bytes]:
    while piece := source.read(size):
        yield piece


def is_sealed(source: BinaryIO) -> bool:
    """By how it begins; reading starts there again."""
    found = source.read(len(MAGIC)) == MAGIC
    source.seek(0)
    return found


def sealed(plain: BinaryIO, password: str) -> Iterator[bytes]:
    salt, prefix = os.urandom(SALT_BYTES), os.urandom(PREFIX_BYTES)
    yield MAGIC + salt + prefix
    key, number, piece = _key(password, salt), 0, plain.read(PIECE_BYTES)
    while True:
        following = plain.read(PIECE_BYTES)
        yield key.encrypt(_nonce(prefix, number, last=not following), piece, MAGIC)
        if not following:
            return
        number, piece = number + 1, following


def unsealed(source: BinaryIO, password: str) -> Iterator[bytes]:
    """Raises InvalidTag at the first piece that is changed, missing, out of place or under another password."""
    source.read(len(MAGIC))
    salt, prefix = source.read(SALT_BYTES), source.read(PREFIX_BYTES)
    key, number, size = _key(password, salt), 0, PIECE_BYTES + TAG_BYTES
    piece = source.read(size)
    while True:
        following = source.read(size)
        try:
            yield key.decrypt(_nonce(prefix, number, last=not following), piece, MAGIC)
        except ValueError:  # a header that is cut short
            raise InvalidTag from None
        if not following:
            return
        number, piece = number + 1, following


def _key(password: str, salt: bytes) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(Scrypt(salt=salt, length=32, n=SCRYPT_N, r=8, p=1).derive(password.encode()))


def _nonce(prefix: bytes, number: int, *, last: bool) -> bytes:
    return prefix + number.to_bytes(4, "big") + bytes([last])
