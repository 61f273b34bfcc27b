"""CIDs: known ones, and that every CID has one spelling."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora.p2p.content.cid import Cid, Codec
from openlora.p2p.errors import MalformedCid

EMPTY_RAW = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"
HELLO_WORLD_RAW = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
EMPTY_FOLDER = "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"

digests = st.binary(min_size=32, max_size=32)
cids = st.builds(Cid, st.sampled_from(Codec), digests)


@pytest.mark.parametrize(
    ("codec", "block", "text"),
    [
        (Codec.RAW, b"", EMPTY_RAW),
        (Codec.RAW, b"hello world", HELLO_WORLD_RAW),
        (Codec.DAG_PB, b"\x0a\x02\x08\x01", EMPTY_FOLDER),
    ],
)
def test_known_cids(codec: Codec, block: bytes, text: str) -> None:
    assert str(Cid.of(codec, block)) == text
    assert Cid.parse(text) == Cid.of(codec, block)
    assert Cid.parse(text).matches(block)
    assert not Cid.parse(text).matches(block + b"!")


def test_binary_form() -> None:
    sha2_256_of_nothing = bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    assert Cid.of(Codec.RAW, b"").encode() == b"\x01\x55\x12\x20" + sha2_256_of_nothing


@given(cids)
def test_both_forms_round_trip(cid: Cid) -> None:
    assert Cid.parse(str(cid)) == cid
    assert Cid.decode(cid.encode()) == cid


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz234567", min_size=58, max_size=58))
def test_what_parses_is_canonical(text: str) -> None:
    try:
        cid = Cid.parse("bafk" + text[3:])
    except MalformedCid:
        return
    assert str(cid) == "bafk" + text[3:]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn",  # version 0
        EMPTY_RAW.upper(),
        "B" + EMPTY_RAW[1:].upper(),
        EMPTY_RAW + "=",
        EMPTY_RAW + "a",
        EMPTY_RAW[:-1],
        " " + EMPTY_RAW[:-1],
        EMPTY_RAW[:-1] + "v",  # stray bits in the last character
        EMPTY_RAW[:-1] + "1",
        EMPTY_RAW[:-1] + "é",
        "z" + EMPTY_RAW[1:],
        "../../etc/passwd" + EMPTY_RAW[16:],
    ],
)
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(MalformedCid):
        Cid.parse(text)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x12\x20" + bytes(32),  # version 0
        b"\x00\x55\x12\x20" + bytes(32),
        b"\x02\x55\x12\x20" + bytes(32),
        b"\x01\x71\x12\x20" + bytes(32),  # dag-cbor
        b"\x01\x55\x13\x20" + bytes(32),  # sha2-512
        b"\x01\x55\x12\x1f" + bytes(32),
        b"\x01\x55\x12\x20" + bytes(31),
        b"\x01\x55\x12\x20" + bytes(33),
    ],
)
def test_other_kinds_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedCid):
        Cid.decode(data)
    with pytest.raises(MalformedCid):
        Cid.parse("b" + base64.b32encode(data).decode().rstrip("=").lower())


def test_a_digest_has_32_bytes() -> None:
    with pytest.raises(MalformedCid):
        Cid(Codec.RAW, bytes(31))
