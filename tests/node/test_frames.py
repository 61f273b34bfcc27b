"""Frames arrive whole however the bytes were cut, and each kind of broken stream is refused by name."""

import asyncio
import socket
import struct

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora.node.engine.messages import Cancel, Command, GetStatus, LoadAdapter, Shutdown
from openlora.node.errors import FrameMalformed, FrameTooLarge, FrameTruncated
from openlora.node.frames import AsyncFrames, BlockingFrames, FrameDecoder, pack

commands = st.one_of(
    st.builds(Cancel, request_id=st.text(max_size=40)),
    st.builds(LoadAdapter, key=st.text(max_size=40), path=st.text(max_size=400)),
    st.just(GetStatus()),
)


@given(messages=st.lists(commands, max_size=8), cuts=st.lists(st.integers(1, 50), min_size=1))
def test_messages_survive_any_cutting_of_the_stream(messages: list[Command], cuts: list[int]) -> None:
    stream = b"".join(pack(message) for message in messages)
    decoder = FrameDecoder[Command](Command)
    received = []
    for index in range(len(stream) + 1):
        size = cuts[index % len(cuts)]
        piece, stream = stream[:size], stream[size:]
        decoder.feed(piece)
        while (message := decoder.next()) is not None:
            received.append(message)
    decoder.end()
    assert received == messages


def test_an_oversized_frame_is_refused_by_its_header_alone() -> None:
    decoder = FrameDecoder[Command](Command, max_bytes=100)
    decoder.feed(struct.pack(">I", 101))
    with pytest.raises(FrameTooLarge, match="101 bytes is over the limit of 100"):
        decoder.next()
    with pytest.raises(FrameTooLarge):
        pack(Cancel(request_id="x" * 200), max_bytes=100)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode({"type": "Unheard", "request_id": "1"}),
        msgspec.msgpack.encode({"type": "Cancel"}),
        msgspec.msgpack.encode({"type": "Cancel", "request_id": 7}),
        msgspec.msgpack.encode({"type": "Cancel", "request_id": "1", "extra": 1}),
        b"\x91" * 100_000,
        b"\x81\xa4type\xa1\xff",
    ],
)
def test_a_payload_outside_the_union_is_malformed(payload: bytes) -> None:
    decoder = FrameDecoder[Command](Command)
    decoder.feed(struct.pack(">I", len(payload)) + payload)
    with pytest.raises(FrameMalformed, match="not a known message"):
        decoder.next()


def test_a_stream_that_ends_inside_a_frame_is_truncated() -> None:
    decoder = FrameDecoder[Command](Command)
    decoder.feed(pack(GetStatus())[:-1])
    assert decoder.next() is None
    with pytest.raises(FrameTruncated):
        decoder.end()


def test_the_blocking_end_drains_without_waiting_and_sees_the_close() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frames = BlockingFrames[Command](ours, Command)
        assert frames.receive(wait=False) == []
        theirs.sendall(pack(GetStatus()) + pack(Shutdown()) + pack(Cancel(request_id="1"))[:3])
        assert frames.receive(wait=True) == [GetStatus(), Shutdown()]
        assert frames.receive(wait=False) == []
        theirs.sendall(pack(Cancel(request_id="1"))[3:])
        theirs.shutdown(socket.SHUT_WR)
        assert frames.receive(wait=True) == [Cancel(request_id="1")]
        assert frames.receive(wait=True) is None
        assert frames.receive(wait=False) is None


async def test_both_ends_understand_each_other() -> None:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    frames = AsyncFrames[Command](reader, writer, Command)
    with theirs:
        blocking = BlockingFrames[Command](theirs, Command)
        frames.post(Cancel(request_id="1"))
        await frames.send(GetStatus())
        assert blocking.receive(wait=True) == [Cancel(request_id="1"), GetStatus()]
        blocking.send(Shutdown(), Cancel(request_id="é" * 70_000))
        assert await frames.receive() == Shutdown()
    assert await frames.receive() == Cancel(request_id="é" * 70_000)
    assert await frames.receive() is None
    frames.close()
    await writer.wait_closed()
