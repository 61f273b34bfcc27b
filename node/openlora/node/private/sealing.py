"""The cryptography of private jobs, all of it.

    document key   32 random bytes, one a job, the client's
    sealed         commitment ‖ nonce ‖ ChaCha20-Poly1305(document key, nonce, document, aad = what it is)
    wrapped key    HPKE (RFC 9180, base mode: X25519, HKDF-SHA256, ChaCha20-Poly1305) of the document key to a node,
                   info = label ‖ chain id ‖ JobQueue ‖ job id ‖ operator

A sealed document is what travels, lies in block stores and has its digest on chain: the input, and under the same key
the output; what it is, as associated data, keeps one from passing for the other. The commitment, a hash of the key, is
there because this AEAD alone lets one ciphertext open to two documents under two keys: with it, what the chain's digest
names is one document. A wrapped key opens at one operator's node, for one job of one queue on one chain.

A node's own key is derived from its hot key, so that there is nothing more to keep; the operator's key puts its public
half into the NodeRegistry, where clients read it.
"""

import secrets
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from hmac import compare_digest
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from openlora.node.errors import RequestError

KEY_BYTES: Final = 32
WRAPPED_BYTES: Final = 80  # an X25519 key, the document key and a tag
_COMMITMENT_BYTES: Final = 32
_NONCE_BYTES: Final = 12  # random: a key seals few documents
_HEAD_BYTES: Final = _COMMITMENT_BYTES + _NONCE_BYTES
SEALED_MORE_BYTES: Final = _HEAD_BYTES + 16  # by which a sealed document is longer
_HPKE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


class Sealed(Enum):
    """What a sealed document is; the value is its associated data."""

    INPUT = b"openlora/1/private input"
    OUTPUT = b"openlora/1/private output"


@dataclass(frozen=True, slots=True)
class Recipient:
    """For whom and for what a key is wrapped. Addresses are hex, in any case."""

    chain_id: int
    queue: str
    job_id: int
    operator: str

    @property
    def info(self) -> bytes:
        """HPKE's `info`: every part has its fixed length."""
        addresses = bytes.fromhex(self.queue.removeprefix("0x")), bytes.fromhex(self.operator.removeprefix("0x"))
        numbers = self.chain_id.to_bytes(32, "big"), self.job_id.to_bytes(8, "big")
        return b"openlora/1/document key" + numbers[0] + addresses[0] + numbers[1] + addresses[1]


def new_key() -> bytes:
    """A document key."""
    return secrets.token_bytes(KEY_BYTES)


def encryption_key(hot_key: bytes) -> X25519PrivateKey:
    """The key to which clients wrap theirs, from the 32 bytes of a node's hot key."""
    derived = HKDF(SHA256(), KEY_BYTES, salt=None, info=b"openlora/1/encryption key").derive(hot_key)
    return X25519PrivateKey.from_private_bytes(derived)


def public_key(hot_key: bytes) -> bytes:
    """What the NodeRegistry has of it."""
    return encryption_key(hot_key).public_key().public_bytes_raw()


def seal(key: bytes, document: bytes, what: Sealed) -> bytes:
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return _commitment(key) + nonce + ChaCha20Poly1305(key).encrypt(nonce, document, what.value)


def unseal(key: bytes, sealed: bytes, what: Sealed) -> bytes:
    """The document. Raises RequestError("bad_seal") for any other key, kind or bytes than were sealed."""
    commitment, nonce = sealed[:_COMMITMENT_BYTES], sealed[_COMMITMENT_BYTES:_HEAD_BYTES]
    try:
        if compare_digest(commitment, _commitment(key)) and len(nonce) == _NONCE_BYTES:
            return ChaCha20Poly1305(key).decrypt(nonce, sealed[_HEAD_BYTES:], what.value)
    except InvalidTag:
        pass
    raise RequestError("bad_seal", "the sealed document does not open with this key; it was sealed under another one")


def wrap(key: bytes, public: bytes, recipient: Recipient) -> bytes:
    """The document key for the node whose public key this is. Raises RequestError("bad_key") for what is none."""
    try:
        return _HPKE.encrypt(key, X25519PublicKey.from_public_bytes(public), info=recipient.info)
    except ValueError:  # a length, or a point of low order, with which anybody could open it
        raise RequestError("bad_key", f"node {recipient.operator} has no encryption key; ask another one") from None


def unwrap(wrapped: bytes, private: X25519PrivateKey, recipient: Recipient) -> bytes:
    """The document key. Raises RequestError("bad_key") for one that is wrapped to another node, job, queue or chain."""
    try:
        key = _HPKE.decrypt(wrapped, private, info=recipient.info)
    except (InvalidTag, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise RequestError(
            "bad_key", "the key was not wrapped for this node and this job; read the node's key from the chain again"
        )
    return key


def _commitment(key: bytes) -> bytes:
    return sha256(b"openlora/1/document key commitment" + key).digest()
