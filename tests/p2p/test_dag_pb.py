"""dag-pb: bytes derived by hand from the specification, and that a node has one encoding."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora.p2p.content.cid import Cid, Codec
from openlora.p2p.content.dag_pb import Link, Node, decode_node, decode_varint, encode_node, encode_varint
from openlora.p2p.errors import ContentRefused, MalformedBlock

CID = Cid.of(Codec.RAW, b"")
LINK = b"\x0a\x24" + CID.encode() + b"\x12\x01a\x18\x05"  # Hash · Name "a" · Tsize 5

links = st.builds(
    Link,
    st.builds(Cid, st.sampled_from(Codec), st.binary(min_size=32, max_size=32)),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.integers(0, 2**64 - 1),
)
nodes = st.builds(Node, st.lists(links, max_size=4).map(tuple), st.binary(max_size=40))


def test_links_are_written_before_data() -> None:
    node = Node((Link(CID, "a", 5),), b"\x08\x01")
    assert encode_node(node) == b"\x12\x2b" + LINK + b"\x0a\x02\x08\x01"
    assert decode_node(encode_node(node)) == node


@given(nodes)
def test_round_trip(node: Node) -> None:
    assert decode_node(encode_node(node)) == node


@given(nodes, st.data())
def test_what_decodes_is_canonical(node: Node, data: st.DataObject) -> None:
    block = bytearray(encode_node(node))
    at = data.draw(st.integers(0, len(block) - 1))
    block[at] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_node(bytes(block))
    except ContentRefused:
        return
    assert encode_node(decoded) == block


@given(st.binary(max_size=64))
def test_any_bytes_decode_or_are_refused(block: bytes) -> None:
    try:
        decode_node(block)
    except ContentRefused:
        return


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (b"", "canonical"),  # Data is missing
        (b"\x0a\x02\x08\x01\x12\x2b" + LINK, "canonical"),  # Data before Links
        (b"\x0a\x00\x0a\x00", "canonical"),  # Data twice
        (b"\x0a\x80\x00", "shortest"),  # a padded length
        (b"\x0a", "truncated"),
        (b"\x0a\x80", "truncated"),
        (b"\x0a\x05abcd", "ends after"),
        (b"\x0a" + b"\xff" * 10 + b"\x01", "64 bits"),
        (b"\x0a" + b"\xff" * 9 + b"\x7f", "64 bits"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "ends after"),
        (b"\x1a\x00\x0a\x00", "unexpected field 3"),
        (b"\x08\x01", "unexpected field 1"),  # Data as a number
        (b"\x09" + bytes(8), "wire type 1"),
        (b"\x0b", "truncated"),
        (b"\x0b\x00", "wire type 3"),
        (b"\x12\x00\x0a\x00", "needs Hash"),
        (b"\x12\x26\x0a\x24" + CID.encode() + b"\x0a\x00", "needs Hash"),  # no Name, no Tsize
        (b"\x12\x2b\x12\x01a" + LINK[:38] + b"\x18\x05" + b"\x0a\x00", "canonical"),  # Name before Hash
        (b"\x12\x2b" + LINK.replace(b"a\x18", b"\xff\x18") + b"\x0a\x00", "not UTF-8"),
        (b"\x12\x2b" + LINK.replace(b"\x01\x55\x12", b"\x01\x71\x12") + b"\x0a\x00", "CIDv1"),
        (b"\x12\x2d" + LINK + b"\x18\x05" + b"\x0a\x00", "canonical"),  # Tsize twice
    ],
)
def test_other_encodings_are_refused(block: bytes, reason: str) -> None:
    with pytest.raises(ContentRefused, match=reason):
        decode_node(block)


@given(st.integers(0, 2**64 - 1))
def test_numbers_round_trip(value: int) -> None:
    encoded = encode_varint(value)
    assert decode_varint(b"?" + encoded + b"?", 1) == (value, 1 + len(encoded))


@pytest.mark.parametrize(("value", "encoded"), [(0, "00"), (127, "7f"), (128, "8001"), (300, "ac02")])
def test_known_numbers(value: int, encoded: str) -> None:
    assert encode_varint(value).hex() == encoded


def test_a_number_beyond_64_bits_is_refused() -> None:
    assert decode_varint(encode_varint(2**64 - 1), 0)[0] == 2**64 - 1
    with pytest.raises(MalformedBlock):
        decode_varint(encode_varint(2**64), 0)
