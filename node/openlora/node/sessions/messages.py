"""What the signed lane says on "/openlora/1/infer".

    Order      a signed JobSpec, to be answered now        → Text …, OutputPart …, Receipted
    Pay        a voucher for receipts                      → Thanks
    HowStands  what the node holds of a session            → Standing

or a refusal. Structs that contracts know travel ABI-encoded, as they are hashed. Asking for an order again, by its
client, shows the same answer and the same receipt: a client that lost its connection loses nothing.
"""

from collections.abc import Sequence
from typing import Annotated, Final, TypeVar

import base58
import msgspec
from eth_abi.abi import encode

from openlora.contracts import AbiMismatch, Domain, JobSpec, Line, Receipt, Voucher
from openlora.contracts.call import decode_values
from openlora.node.errors import RequestError
from openlora.node.malformed import MALFORMED
from openlora.typed_data import watch_session_digest

MAX_INLINE_BYTES: Final = 12 << 10  # an input that may travel in the order itself
MAX_PIECE_CHARACTERS: Final = 15_000  # of text in one reply: at most 60 KB in UTF-8
MAX_PART_BYTES: Final = 60 << 10  # of an output document in one reply
MAX_ORDERS_PAID: Final = 64  # by one voucher
MAX_SIGNATURE_BYTES: Final = 1024  # a contract's own may be longer than a key's 65

Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Signature = Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_SIGNATURE_BYTES)]


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=str.lower):
    """Root of all; the lower-case class name is the tag."""


class Order(Message, frozen=True):
    """`signature` is the client's over the spec in Sessions' domain; `document` is empty for an input by digest."""

    session: Digest
    spec: bytes
    signature: Signature
    document: Annotated[bytes, msgspec.Meta(max_length=MAX_INLINE_BYTES)] = b""


class Pay(Message, frozen=True):
    """The voucher pays what the last one did and the receipts of these orders, in this order."""

    voucher: bytes
    signature: Signature
    orders: Annotated[tuple[Digest, ...], msgspec.Meta(min_length=1, max_length=MAX_ORDERS_PAID)]


class HowStands(Message, frozen=True):
    """`signature` is the client's over WatchSession(session, the asker's peer id)."""

    session: Digest
    signature: Signature


Request = Order | Pay | HowStands
TAGS: Final = frozenset({"order", "pay", "howstands"})


class Text(Message, frozen=True):
    """What was added to the answer; None begins it anew: the engine was restarted."""

    text: str | None


class OutputPart(Message, frozen=True):
    """The next bytes of the output document, once it is whole."""

    data: bytes


class Receipted(Message, frozen=True):
    """The end of an order: the node's receipt, signed by its hot key."""

    receipt: bytes
    signature: bytes


class Thanks(Message, frozen=True):
    """The voucher is in the node's journal."""


class TreePeaks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a ReceiptTree is of one recipe."""

    recipe_id: int
    count: int
    peaks: tuple[bytes, ...]


class OwedOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    spec: bytes
    signature: bytes


class Standing(Message, frozen=True):
    """The last voucher, if any, with what it commits to, and the orders that it does not pay: all of it signed by the
    client itself, who need keep nothing."""

    last_number: int
    voucher: bytes  # empty before the first
    lines: bytes
    signature: bytes
    trees: tuple[TreePeaks, ...]
    owed: tuple[OwedOrder, ...]


Reply = Text | OutputPart | Receipted | Thanks | Standing

_request_decoder: Final[msgspec.msgpack.Decoder[Request]] = msgspec.msgpack.Decoder(Request)
_reply_decoder: Final[msgspec.msgpack.Decoder[Reply]] = msgspec.msgpack.Decoder(Reply)


def encode_message(message: Request | Reply) -> bytes:
    return msgspec.msgpack.encode(message)


def decode_request(body: bytes) -> Request:
    """Raises RequestError("malformed")."""
    try:
        return _request_decoder.decode(body)
    except MALFORMED:
        raise RequestError("malformed", "this is no request that the node knows") from None


def decode_reply(data: bytes) -> Reply:
    """Raises one of MALFORMED."""
    return _reply_decoder.decode(data)


S = TypeVar("S", JobSpec, Receipt, Voucher)


def packed(struct: JobSpec | Receipt | Voucher) -> bytes:
    return encode([struct.ABI], [struct.to_abi()])


def unpacked(kind: type[S], data: bytes) -> S:
    """Raises RequestError("malformed") for bytes that are not exactly one such struct."""
    try:
        struct = kind.from_abi(decode_values([kind.ABI], data)[0])
        if packed(struct) == data:
            return struct
    except (AbiMismatch, ValueError):
        pass
    raise RequestError("malformed", f"these bytes are no {kind.__name__}")


def packed_lines(lines: Sequence[Line]) -> bytes:
    return encode([f"{Line.ABI}[]"], [[line.to_abi() for line in lines]])


def unpacked_lines(data: bytes) -> list[Line]:
    """Raises RequestError("malformed")."""
    try:
        return [Line.from_abi(values) for values in decode_values([f"{Line.ABI}[]"], data)[0]]
    except (AbiMismatch, ValueError):
        raise RequestError("malformed", "these bytes are no lines of a voucher") from None


def standing_digest(domain: Domain, session: bytes, peer: str) -> bytes:
    """What a client signs to be told how its session stands, for its own peer; `domain` is Sessions'."""
    return watch_session_digest(domain, session, base58.b58decode(peer))
