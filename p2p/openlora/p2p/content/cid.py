"""Content identifiers: CIDv1, sha2-256, codec raw or dag-pb, base32. Nothing else has a meaning here.

Binary form (https://github.com/multiformats/cid): 0x01 · codec · 0x12 (sha2-256) · 0x20 (32 bytes) · digest.
"""

import base64
import binascii
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from typing import Final

from openlora.p2p.errors import MalformedCid

CID_BYTES: Final = 36
CID_CHARACTERS: Final = 59
_VERSION: Final = 1
_SHA2_256: Final = b"\x12\x20"  # multihash code and length


class Codec(IntEnum):
    RAW = 0x55
    DAG_PB = 0x70


@dataclass(frozen=True, slots=True, order=True)
class Cid:
    """The name of one block. `str()` is the base32 spelling: "bafkrei…" (raw) or "bafybei…" (dag-pb)."""

    codec: Codec
    digest: bytes

    def __post_init__(self) -> None:
        if len(self.digest) != 32:
            raise MalformedCid(f"a sha2-256 digest has 32 bytes, not {len(self.digest)}")

    @classmethod
    def of(cls, codec: Codec, block: bytes) -> "Cid":
        return cls(codec, sha256(block).digest())

    @classmethod
    def decode(cls, data: bytes) -> "Cid":
        """The binary form. Raises MalformedCid for any other version, hash, codec or length."""
        if (
            len(data) != CID_BYTES
            or data[0] != 1
            or data[1] not in (Codec.RAW, Codec.DAG_PB)
            or data[2:4] != b"\x12\x20"
        ):
            raise MalformedCid("not a CIDv1 of sha2-256 with codec raw or dag-pb")
        return cls(Codec(data[1]), bytes(data[4:]))

    @classmethod
    def parse(cls, text: str) -> "Cid":
        """The base32 spelling, lower case, without padding. Raises MalformedCid for any other spelling."""
        if len(text) != CID_CHARACTERS or text[0] != "b":
            raise MalformedCid("not a CIDv1 in base32 (59 characters that begin with 'b')")
        try:
            cid = cls.decode(base64.b32decode(text[1:].upper() + "======"))
        except (binascii.Error, ValueError) as error:
            raise MalformedCid("not base32") from error
        if str(cid) != text:  # upper case, or stray bits in the last character
            raise MalformedCid("not the canonical spelling of its CID")
        return cid

    def encode(self) -> bytes:
        return bytes((_VERSION, self.codec)) + _SHA2_256 + self.digest

    def matches(self, block: bytes) -> bool:
        return sha256(block).digest() == self.digest

    def __str__(self) -> str:
        return "b" + base64.b32encode(self.encode()).decode().rstrip("=").lower()
