"""Bitswap's messages (https://specs.ipfs.tech/bitswap-protocol/), as much of 1.1.0 and 1.2.0 as has a meaning here.

    Message       { Wantlist wantlist = 1; repeated Block payload = 3; repeated BlockPresence blockPresences = 4; … }
    Wantlist      { repeated Entry entries = 1; bool full = 2; }
    Entry         { bytes block = 1; int32 priority = 2; bool cancel = 3; WantType wantType = 4;
                    bool sendDontHave = 5; }
    Block         { bytes prefix = 1; bytes data = 2; }        prefix: version, codec, hash and length of the CID
    BlockPresence { bytes cid = 1; BlockPresenceType type = 2; }

On a stream each message follows its length, a varint. CIDs that are none of ours are skipped; everything else that is
not as above is refused. Sizes are checked before anything of that size is read.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from openlora.p2p.content.cid import Cid, Codec
from openlora.p2p.content.dag_pb import decode_fields, decode_varint, encode_fields, encode_varint
from openlora.p2p.errors import MalformedBlock, MalformedCid, StreamLost, StreamRefused
from openlora.p2p.network import Stream

PROTOCOLS: Final = ("/ipfs/bitswap/1.2.0", "/ipfs/bitswap/1.1.0")
MAX_WANTS: Final = 1024  # of one message; the rest is skipped
MAX_FIELDS: Final = 8192  # of one message, at any one level
_LENGTH_BYTES: Final = 4  # 28 bits
_CHUNK_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Want:
    """One entry of a wantlist: the block, or (`only_presence`) whether the peer has it; or neither any more."""

    cid: Cid
    cancel: bool = False
    only_presence: bool = False
    say_missing: bool = False  # answer DONT_HAVE rather than nothing


@dataclass(frozen=True, slots=True)
class Message:
    """`full`: `wants` replaces what was wanted before. `blocks` are named by what they hash to."""

    wants: tuple[Want, ...] = ()
    full: bool = False
    blocks: tuple[tuple[Cid, bytes], ...] = ()
    presences: tuple[tuple[Cid, bool], ...] = ()  # True: HAVE


def encode_message(message: Message) -> bytes:
    """With its length in front, as it goes on the stream."""
    fields: list[tuple[int, int | bytes]] = []
    if message.wants or message.full:
        entries = [(1, _encode_want(want)) for want in message.wants]
        fields.append((1, encode_fields([*entries, (2, int(message.full))])))
    for cid, block in message.blocks:
        fields.append((3, encode_fields([(1, cid.encode()[:4]), (2, block)])))
    for cid, have in message.presences:
        fields.append((4, encode_fields([(1, cid.encode()), (2, int(not have))])))
    body = encode_fields(fields)
    return encode_varint(len(body)) + body


def decode_message(body: bytes) -> Message:
    """Raises MalformedBlock."""
    wants: tuple[Want, ...] = ()
    full = False
    blocks: list[tuple[Cid, bytes]] = []
    presences: list[tuple[Cid, bool]] = []
    for number, value in _fields(body):
        if number == 1:
            wants, full = _decode_wantlist(_bytes(value))
        elif number == 3:
            blocks += _decode_block(_bytes(value))
        elif number == 4:
            presences += _decode_presence(_bytes(value))
    return Message(wants, full, tuple(blocks), tuple(presences))


class MessageReader:
    """The messages of one stream. First the next one's length, then its body: the caller decides in between."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def length(self) -> int | None:
        """Of the next message; None at the end of the stream. Raises StreamRefused if it is no such number."""
        while True:
            end = next((at for at, byte in enumerate(self._buffer[:_LENGTH_BYTES]) if byte < 0x80), None)
            if end is not None:
                break
            if len(self._buffer) >= _LENGTH_BYTES:
                raise StreamRefused("a message with a malformed length")
            data = await self._stream.read(_CHUNK_BYTES)
            if not data:
                if self._buffer:
                    raise StreamLost("the stream ended within a message")
                return None
            self._buffer += data
        length, start = decode_varint(bytes(self._buffer[: end + 1]), 0)
        del self._buffer[:start]
        return length

    async def body(self, length: int) -> bytes:
        while len(self._buffer) < length:
            data = await self._stream.read(max(length - len(self._buffer), 1))
            if not data:
                raise StreamLost("the stream ended within a message")
            self._buffer += data
        body = bytes(memoryview(self._buffer)[:length])
        del self._buffer[:length]
        return body


# ---- parts ----------------------------------------------------------------------------------------------------------


def _encode_want(want: Want) -> bytes:
    flags = ((3, want.cancel), (4, want.only_presence), (5, want.say_missing))
    return encode_fields([(1, want.cid.encode()), (2, 1), *((number, 1) for number, flag in flags if flag)])


def _decode_wantlist(data: bytes) -> tuple[tuple[Want, ...], bool]:
    fields = list(_fields(data))
    wants = [want for number, value in fields if number == 1 for want in _decode_want(_bytes(value))]
    return tuple(islice(wants, MAX_WANTS)), any(number == 2 and value == 1 for number, value in fields)


def _decode_want(data: bytes) -> Iterable[Want]:
    fields = dict(_fields(data))
    for cid in _our_cid(fields.get(1)):
        yield Want(cid, fields.get(3) == 1, fields.get(4) == 1, fields.get(5) == 1)


def _decode_block(data: bytes) -> Iterable[tuple[Cid, bytes]]:
    fields = dict(_fields(data))
    prefix, block = fields.get(1), fields.get(2, b"")
    for codec in Codec:
        if prefix == bytes((1, codec, 0x12, 0x20)):
            yield Cid.of(codec, _bytes(block)), _bytes(block)


def _decode_presence(data: bytes) -> Iterable[tuple[Cid, bool]]:
    fields = dict(_fields(data))
    for cid in _our_cid(fields.get(1)):
        yield cid, fields.get(2, 0) == 0


def _our_cid(data: int | bytes | None) -> Iterable[Cid]:
    try:
        yield Cid.decode(_bytes(data))
    except MalformedCid:
        return  # CIDv0 or another codec or hash: well-formed for others, nothing that we can have


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    for count, field in enumerate(decode_fields(data)):
        if count == MAX_FIELDS:
            raise MalformedBlock(f"bitswap: more than {MAX_FIELDS} fields")
        yield field


def _bytes(value: int | bytes | None) -> bytes:
    if not isinstance(value, bytes):
        raise MalformedBlock("bitswap: a number where bytes belong")
    return value
