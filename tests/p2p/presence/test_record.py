"""What a presence record may say, how large it gets, and that nothing else decodes."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openlora.p2p.errors import GossipRefused
from openlora.p2p.presence import record
from openlora.p2p.presence.record import Adapters, Gpu, Hardware, Model, Presence, Tier, decode, encode, plain_text
from tests.p2p.presence.people import Node, digests, status

NODE = Node("a")
RECORD = NODE.record()
FIELDS = Presence.__struct_fields__


def altered(change: Any, *path: int) -> bytes:
    """A signed record with one field, found by position, replaced."""
    payload = msgspec.msgpack.decode(NODE.record()[64:])
    inner = payload
    for index in path[:-1]:
        inner = inner[index]
    inner[path[-1]] = change
    encoded = msgspec.msgpack.encode(payload)
    return NODE.identity.sign(b"/openlora/1/presence\0" + encoded) + encoded


def code(data: bytes) -> str:
    with pytest.raises(GossipRefused) as caught:
        decode(data)
    return caught.value.code


def test_what_is_encoded_is_decoded() -> None:
    presence = NODE.presence()
    data = encode(presence, NODE.identity.sign)
    assert decode(data) == presence
    assert encode(decode(data), NODE.identity.sign) == data
    assert int(decode(data).status.ask.out_price_per_k) == 2**96 - 1


@pytest.mark.parametrize(
    ("slots", "ram", "disk", "told"),
    [(0, 0, 0, (0, 0, 0)), (8, 2, 12, (8, 2, 12)), (64, 64, 128, (32, 8, 16)), (900, 9000, 9000, (32, 8, 16))],
)
def test_a_record_has_no_more_than_2560_bytes(slots: int, ram: int, disk: int, told: tuple[int, int, int]) -> None:
    data = NODE.record(status=status(slots, ram, disk))
    adapters = decode(data).status.adapters
    assert len(data) <= 2560
    assert (len(adapters.slots), len(adapters.ram), len(adapters.disk)) == told
    assert (adapters.slots.total, adapters.ram.total, adapters.disk.total) == (slots, ram, disk)
    assert adapters.disk.digests() == digests("disk", disk)[: told[2]], "the most useful are told"


def test_the_largest_record_that_the_schema_allows_fits_too() -> None:
    wide = "~" * 64
    largest = msgspec.structs.replace(
        status(5000, 5000, 5000),
        hardware=Hardware(wide, 2**31, 2**53, (Gpu(wide, 2**53, wide),) * 8),
        models=(Model("f" * 64, wide, "~" * 16, 2**31),) * 8,
    )
    own = f"/p2p/{NODE.identity.peer_id}"
    data = NODE.record(status=largest, addresses=("/" + "a" * (127 - len(own)) + own,) * 8)
    assert len(data) <= record.MAX_RECORD_BYTES
    assert len(decode(data).status.adapters.slots) == record.MAX_SLOTS, "those in slots go last"


def test_tiers_are_searched_by_whole_digests() -> None:
    first, second = bytes(31) + b"\x01", bytes(32)
    tier = Tier.of([first, second], 8)
    assert first in tier
    assert second in tier
    assert tier.packed[1:33] not in tier
    assert b"\x00" not in tier
    assert bytes(32) not in Tier.of([], 8)
    adapters = Adapters.of([first], [first, second], [bytes(range(32))])
    assert [adapters.nearest(d) for d in (first, second, bytes(range(32)), b"\xff" * 32)] == [
        "slots",
        "ram",
        "disk",
        None,
    ]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("v",), 2),
        (("chain_id",), 0),
        (("chain_id",), "31337"),
        (("operator",), "0x" + "AB" * 20),
        (("operator",), "0x" + "ab" * 20 + "\n"),
        (("hot_key",), "0x"),
        (("binding",), bytes(64)),
        (("peer",), "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"),
        (("sequence",), -1),
        (("sequence",), 2**63),
        (("sequence",), 1.0),
        (("issued_at",), 2**64 - 1),
        (("addresses",), [f"/ip4/127.0.0.1/tcp/{port}/p2p/{NODE.identity.peer_id}" for port in range(9)]),
        (("addresses",), ["/ip4/127.0.0.1/tcp/4001"]),
        (("addresses",), ["/" + "a" * 128 + f"/p2p/{NODE.identity.peer_id}"]),
        (("addresses",), [f"/ip4/127.0.0.1/tcp/4001/p2p/{Node('b').identity.peer_id}"]),
        (("status", 0, 0), "\x1b[2J"),
        (("status", 0, 0), "x" * 65),
        (("status", 0, 1), 2**31 + 1),
        (("status", 0, 3), [["gpu", 1, ""]] * 9),
        (("status", 1), [["ab" * 32, "m", "bf16", 1]] * 9),
        (("status", 1), [["ab" * 31, "m", "bf16", 1]]),
        (("status", 2, 0), [1, bytes(33)]),
        (("status", 2, 0), [1, bytes(64)]),
        (("status", 2, 2), [2**20, bytes(129 * 32)]),
        (("status", 3, 0), "1" * 30),
        (("status", 3, 0), "01"),
        (("status", 3, 0), "-1"),
        (("status", 3, 0), 2**63),
        (("status", 4, 0), None),
        (("status", 5), "é"),
    ],
)
def test_every_field_is_bounded(path: tuple[Any, ...], value: object) -> None:
    assert code(altered(value, FIELDS.index(path[0]), *path[1:])) == "malformed"


def test_the_schema_is_closed() -> None:
    payload = msgspec.msgpack.decode(NODE.record()[64:])
    for changed in ([*payload, 1], payload[:-1], {"v": 1}, [], None):
        assert code(bytes(64) + msgspec.msgpack.encode(changed)) == "malformed"
    assert code(NODE.record() + b"\0") == "malformed"
    assert code(b"\x91" * 5000) == "malformed", "nesting is no way to the stack's end"


def test_size_is_looked_at_before_anything_else() -> None:
    assert code(bytes(record.MAX_RECORD_BYTES + 1)) == "oversize"


@given(st.binary(max_size=400))
def test_garbage_is_refused(data: bytes) -> None:
    assert code(data) == "malformed"


@given(st.data())
def test_a_changed_byte_is_noticed(data: st.DataObject) -> None:
    good = RECORD
    at = data.draw(st.integers(0, len(good) - 1))
    bad = good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :]
    with pytest.raises(GossipRefused) as caught:
        record.check_signature(decode(bad), bad)
    assert caught.value.code in ("malformed", "forged")


@pytest.mark.parametrize("changes", [{"operator": "0xAB"}, {"binding": b""}, {"issued_at": -1}])
def test_what_others_would_refuse_is_not_sent(changes: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        NODE.record(**changes)


@given(st.text(max_size=200))
def test_any_text_can_be_made_plain(text: str) -> None:
    plain = plain_text(text)
    assert msgspec.convert(plain, record.Text) == plain
    assert plain_text("AMD Ryzen™ 9\x1b[2J") == "AMD Ryzen? 9?[2J"
