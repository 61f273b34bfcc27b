"""Bitswap's messages: as other implementations write and read them, and bounded."""

import importlib
import warnings

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from openlora.p2p.bitswap.messages import (
    MAX_FIELDS,
    MAX_WANTS,
    Message,
    MessageReader,
    Want,
    decode_message,
    encode_message,
)
from openlora.p2p.content.cid import Cid, Codec
from openlora.p2p.content.dag_pb import decode_varint, encode_fields, encode_varint
from openlora.p2p.errors import MalformedBlock, StreamLost, StreamRefused
from openlora.p2p.network import PeerId

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what libp2p drags in
    pb = importlib.import_module("libp2p.bitswap.pb.bitswap_pb2")

RAW, NODE = Cid.of(Codec.RAW, b"raw"), Cid.of(Codec.DAG_PB, b"node")
CIDV0 = b"\x12\x20" + bytes(32)
MESSAGES = [
    Message(),
    Message(full=True),
    Message(wants=(Want(RAW), Want(NODE, cancel=True), Want(NODE, only_presence=True, say_missing=True))),
    Message(wants=(Want(RAW, say_missing=True),), full=True),
    Message(blocks=((RAW, b"raw"), (NODE, b"node"), (Cid.of(Codec.RAW, b""), b""))),
    Message(presences=((RAW, True), (NODE, False))),
]


def body(message: Message) -> bytes:
    framed = encode_message(message)
    length, start = decode_varint(framed, 0)
    assert length == len(framed) - start
    return framed[start:]


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_comes_back(message: Message) -> None:
    assert decode_message(body(message)) == message


def test_others_read_what_we_write() -> None:
    wants = (Want(RAW, say_missing=True), Want(NODE, only_presence=True), Want(NODE, cancel=True))
    message = Message(wants, True, ((RAW, b"raw"),), ((NODE, False), (RAW, True)))
    theirs = pb.Message.FromString(body(message))
    entries = [(e.block, e.cancel, e.wantType, e.sendDontHave) for e in theirs.wantlist.entries]
    assert entries == [
        (RAW.encode(), False, pb.Message.Wantlist.Block, True),
        (NODE.encode(), False, pb.Message.Wantlist.Have, False),
        (NODE.encode(), True, pb.Message.Wantlist.Block, False),
    ]
    assert theirs.wantlist.full
    assert [(block.prefix, block.data) for block in theirs.payload] == [(RAW.encode()[:4], b"raw")]
    presences = [(presence.cid, presence.type) for presence in theirs.blockPresences]
    assert presences == [(NODE.encode(), pb.Message.DontHave), (RAW.encode(), pb.Message.Have)]


def test_we_read_what_others_write() -> None:
    theirs = pb.Message(pendingBytes=7)
    theirs.wantlist.entries.add(block=RAW.encode(), priority=-5, sendDontHave=True)
    theirs.wantlist.entries.add(block=NODE.encode(), priority=2**31 - 1, wantType=pb.Message.Wantlist.Have)
    theirs.payload.add(prefix=NODE.encode()[:4], data=b"node")
    theirs.blockPresences.add(cid=RAW.encode(), type=pb.Message.DontHave)
    assert decode_message(theirs.SerializeToString()) == Message(
        wants=(Want(RAW, say_missing=True), Want(NODE, only_presence=True)),
        blocks=((NODE, b"node"),),
        presences=((RAW, False),),
    )


def test_foreign_cids_are_skipped() -> None:
    theirs = pb.Message()
    for cid in (CIDV0, b"?", b"\x01\x71" + RAW.encode()[2:], RAW.encode()):
        theirs.wantlist.entries.add(block=cid)
        theirs.blockPresences.add(cid=cid)
    for prefix in (b"\x12\x20", b"", b"\x01\x55\x12\x21", b"\x01\x71\x12\x20", RAW.encode()[:4]):
        theirs.payload.add(prefix=prefix, data=b"raw")
    message = decode_message(theirs.SerializeToString())
    assert message == Message(wants=(Want(RAW),), blocks=((RAW, b"raw"),), presences=((RAW, True),))


def test_blocks_are_named_by_what_they_hold() -> None:
    ((cid, _),) = decode_message(body(Message(blocks=((RAW, b"something else"),)))).blocks
    assert cid == Cid.of(Codec.RAW, b"something else")


def test_wants_above_the_limit_are_skipped() -> None:
    wants = tuple(Want(Cid.of(Codec.RAW, bytes([n % 256, n // 256]))) for n in range(MAX_WANTS + 50))
    assert decode_message(body(Message(wants=wants))).wants == wants[:MAX_WANTS]


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",  # truncated
        b"\x0a\x05\x00",
        b"\x09" + bytes(8),  # fixed64
        b"\x08\x01",  # a wantlist that is a number
        encode_fields([(1, encode_fields([(1, 5)]))]),
        encode_fields([(1, encode_fields([(1, encode_fields([(1, 5)]))]))]),
        encode_fields([(3, encode_fields([(1, RAW.encode()[:4]), (2, 5)]))]),
        encode_fields([(4, encode_fields([(2, 1)]))]),
        encode_fields([(9, 1)] * (MAX_FIELDS + 1)),
        encode_fields([(1, encode_fields([(9, 1)] * (MAX_FIELDS + 1)))]),
    ],
)
def test_malformed_messages_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedBlock):
        decode_message(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        message = decode_message(data)
    except MalformedBlock:
        return
    assert decode_message(body(message)) == message


class Pieces:
    """A stream that says `data` in pieces of `size` bytes and then ends."""

    peer = PeerId("peer")

    def __init__(self, data: bytes, size: int) -> None:
        self._data, self._size = data, size

    async def read(self, max_bytes: int) -> bytes:
        piece = self._data[: min(self._size, max_bytes)]
        self._data = self._data[len(piece) :]
        return piece

    async def write(self, data: bytes) -> None:
        await trio.sleep_forever()

    async def close(self) -> None: ...

    async def reset(self) -> None: ...


async def read_all(stream: Pieces) -> list[Message]:
    reader, read = MessageReader(stream), []
    while (length := await reader.length()) is not None:
        read.append(decode_message(await reader.body(length)))
    return read


@pytest.mark.parametrize("size", [1, 7, 100, 1 << 20])
def test_messages_are_told_apart_on_a_stream(size: int) -> None:
    big = bytes(range(256)) * 1200
    sent = [*MESSAGES, Message(blocks=((Cid.of(Codec.RAW, big), big),)), *MESSAGES]
    stream = Pieces(b"".join(encode_message(message) for message in sent), size if size > 1 else 50)
    assert trio.run(read_all, stream) == sent


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"\x80", StreamLost),
        (b"\x05abc", StreamLost),
        (b"\xff\xff\xff\xff\x01", StreamRefused),
        (encode_varint(1 << 40), StreamRefused),
    ],
)
def test_a_broken_stream_is_noticed(data: bytes, error: type[StreamLost]) -> None:
    with pytest.raises(error):
        trio.run(read_all, Pieces(data, 100))
