"""The dag-pb codec (https://ipld.io/specs/codecs/dag-pb/spec/): a node is links and some bytes, in protobuf.

    PBNode { repeated PBLink Links = 2; optional bytes Data = 1; }      Links are written before Data
    PBLink { bytes Hash = 1; string Name = 2; uint64 Tsize = 3; }       all three are always written

Decoding is strict: `decode_node` accepts exactly the bytes that `encode_node` writes, so a node has one encoding.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from openlora.p2p.content.cid import Cid
from openlora.p2p.errors import MalformedBlock

VARINT, BYTES = 0, 2


@dataclass(frozen=True, slots=True)
class Link:
    """`total_bytes` (Tsize) is what the builder says lies below the link, blocks and all; a hint, never trusted."""

    cid: Cid
    name: str
    total_bytes: int


@dataclass(frozen=True, slots=True)
class Node:
    links: tuple[Link, ...]
    data: bytes


def encode_node(node: Node) -> bytes:
    return encode_fields([*((2, _encode_link(link)) for link in node.links), (1, node.data)])


def decode_node(block: bytes) -> Node:
    """Raises MalformedBlock unless `block` is the one canonical encoding of a node with Data."""
    links, data = [], b""
    for number, value in decode_fields(block):
        if number == 2 and isinstance(value, bytes):
            links.append(_decode_link(value))
        elif number == 1 and isinstance(value, bytes):
            data = value
        else:
            raise MalformedBlock(f"dag-pb: unexpected field {number}")
    node = Node(tuple(links), data)
    if encode_node(node) != block:
        raise MalformedBlock("dag-pb: not in canonical form")
    return node


def _encode_link(link: Link) -> bytes:
    return encode_fields([(1, link.cid.encode()), (2, link.name.encode()), (3, link.total_bytes)])


def _decode_link(data: bytes) -> Link:
    fields = dict(decode_fields(data))  # repeats are found by encoding again
    cid, name, total_bytes = fields.get(1), fields.get(2), fields.get(3)
    if not (isinstance(cid, bytes) and isinstance(name, bytes) and isinstance(total_bytes, int)):
        raise MalformedBlock("dag-pb: a link needs Hash, Name and Tsize")
    try:
        return Link(Cid.decode(cid), name.decode(), total_bytes)
    except UnicodeDecodeError as error:
        raise MalformedBlock("dag-pb: a link's name is not UTF-8") from error


# ---- protobuf's wire format, as much of it as dag-pb and UnixFS need ------------------------------------------------


def encode_fields(fields: Iterable[tuple[int, int | bytes]]) -> bytes:
    """(field number, value) in the given order; numbers below 16."""
    out = bytearray()
    for number, value in fields:
        if isinstance(value, int):
            out += bytes((number << 3 | VARINT,)) + encode_varint(value)
        else:
            out += bytes((number << 3 | BYTES,)) + encode_varint(len(value)) + value
    return bytes(out)


def decode_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The inverse; raises MalformedBlock at a truncated field or a wire type that neither format has."""
    at = 0
    while at < len(data):
        tag, at = decode_varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        value, at = decode_varint(data, at)
        if wire_type == VARINT:
            yield number, value
        elif wire_type == BYTES:
            if value > len(data) - at:
                raise MalformedBlock("protobuf: a field ends after the block does")
            yield number, data[at : at + value]
            at += value
        else:
            raise MalformedBlock(f"protobuf: wire type {wire_type}")


def encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_varint(data: bytes, at: int) -> tuple[int, int]:
    """(value, index after it). At most 64 bits; raises MalformedBlock if truncated, too long or padded."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise MalformedBlock("protobuf: truncated number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 64 or (byte == 0 and shift):
                raise MalformedBlock("protobuf: a number is not in its shortest form of at most 64 bits")
            return value, at
    raise MalformedBlock("protobuf: a number has more than 64 bits")
