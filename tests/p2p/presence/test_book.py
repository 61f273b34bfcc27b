"""The table of live records: what it believes, what it refuses and by which name, and that it stays small."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openlora.p2p.errors import GossipRefused
from openlora.p2p.presence.book import FAULTS, BookLimits, PresenceBook
from openlora.p2p.presence.record import Presence, encode
from tests.p2p.presence.people import CHAIN_ID, NOW, Clock, Node, Registry, status

LIMITS = BookLimits()


class Table:
    def __init__(self, limits: BookLimits = LIMITS, made: Callable[[Presence], bool] = lambda record: True) -> None:
        self.clock, self.registry = Clock(), Registry()
        self.own = Node("own")
        own = self.own.identity.peer_id
        self.book = PresenceBook(CHAIN_ID, self.registry, self.clock, own=own, made=made, limits=limits)
        self.changes: list[tuple[str, bool]] = []
        self.book.on_change(lambda operator, record: self.changes.append((operator, record is not None)))

    def code(self, data: bytes) -> str:
        with pytest.raises(GossipRefused) as caught:
            self.book.accept(data)
        return caught.value.code


def forged(node: Node) -> bytes:
    return encode(node.presence(), Node("another").identity.sign)


REFUSED: dict[str, Callable[[Node], bytes]] = {
    "oversize": lambda node: node.record() + bytes(8192),
    "malformed": lambda node: node.record()[:-1],
    "wrong_chain": lambda node: node.record(chain_id=1),
    "expires_too_late": lambda node: node.record(expires_at=4_070_908_800),
    "from_the_future": lambda node: node.record(at=4_070_908_800),
    "expired": lambda node: node.record(at=NOW - 60),
    "binding_forged": lambda node: node.record(binding=bytes(65)),
    "forged": forged,
}


def test_a_record_is_in_the_table_until_it_expires() -> None:
    table, node = Table(), Node("a")
    record = table.book.accept(node.record())
    assert table.book.live() == [record]
    assert table.book.get(node.operator) == record
    table.clock.now += 59
    table.book.expire()
    assert table.book.get(node.operator) == record
    table.clock.now += 1
    assert table.book.get(node.operator) is None
    assert table.book.live() == []
    assert list(table.book.newest()) == []
    table.book.expire()
    assert len(table.book) == 0
    assert table.changes == [(node.operator, True), (node.operator, False)]


@pytest.mark.parametrize("code", REFUSED)
def test_a_bad_record_is_refused_by_name_and_changes_nothing(code: str) -> None:
    table, node = Table(), Node("a")
    good = table.book.accept(node.record())
    assert table.code(REFUSED[code](node)) == code
    assert table.book.refused == {code: 1}
    assert table.book.live() == [good]
    assert table.book.accept(node.record()).sequence > good.sequence, (
        "the operator is not locked out by others' forgeries"
    )


def test_what_an_honest_node_may_pass_on_is_no_fault() -> None:
    assert set(REFUSED) - FAULTS == {"from_the_future", "expired"}
    assert not FAULTS & {"own", "replayed", "rate_limited", "unstaked"}


def test_the_unstaked_are_refused_before_any_signature_is_looked_at() -> None:
    table, node = Table(), Node("a")
    table.registry.unstaked.add(node.operator)
    assert table.code(forged(node)) == "unstaked"


def test_a_record_is_accepted_once_and_never_again() -> None:
    table, node = Table(), Node("a")
    first, second = node.record(), node.record()
    table.book.accept(second)
    assert table.code(second) == "replayed"
    assert table.code(first) == "replayed", "older than the last"
    table.clock.now += 61
    table.book.expire()
    assert table.code(node.record(at=NOW + 61, sequence=2)) == "replayed", "remembered though the record is gone"
    table.book.accept(node.record(at=NOW + 61))


def test_our_own_record_is_no_news() -> None:
    table = Table()
    assert table.code(table.own.record()) == "own"


def test_a_record_that_our_key_signed_and_we_did_not_is_anothers() -> None:
    """An agent on a copy of this node's state folder."""
    table = Table(made=lambda record: record.sequence == 7)
    assert table.code(table.own.record(sequence=7)) == "own"
    assert table.code(encode(table.own.presence(sequence=8), Node("another").identity.sign)) == "forged"
    twin = table.book.accept(table.own.record(sequence=8))
    assert table.book.get(table.own.operator) == twin


def test_an_operator_may_send_a_burst_and_then_one_in_two_seconds() -> None:
    table, node = Table(), Node("a")
    for _ in range(5):
        table.book.accept(node.record())
    assert table.code(node.record()) == "rate_limited"
    table.clock.now += 2
    table.book.accept(node.record())
    assert table.code(node.record()) == "rate_limited"
    table.book.accept(Node("b").record())
    table.clock.now -= 100  # a clock set back takes nothing away and gives nothing
    assert table.code(node.record(at=NOW - 95)) == "rate_limited"


def test_refused_records_cost_the_operator_nothing_of_its_rate() -> None:
    table, node = Table(), Node("a")
    for _ in range(20):
        assert table.code(forged(node)) == "forged"
    for _ in range(5):
        table.book.accept(node.record())


def test_an_operator_that_moves_to_another_peer_has_still_one_record() -> None:
    table, node = Table(), Node("a")
    table.book.accept(node.record())
    moved = Node("elsewhere")
    moved.operator, moved.sequence = node.operator, 10
    record = table.book.accept(moved.record())
    assert table.book.live() == [record]


def test_the_table_is_bounded_by_count_and_the_stalest_leaves() -> None:
    table = Table(BookLimits(records=3))
    nodes = [Node(str(index)) for index in range(4)]
    for node in [*nodes[:3], nodes[0], nodes[3]]:
        table.book.accept(node.record())
    assert {record.operator for record in table.book.live()} == {nodes[i].operator for i in (0, 2, 3)}
    assert table.changes[-1] == (nodes[1].operator, False)


def test_the_table_is_bounded_by_bytes() -> None:
    table = Table(BookLimits(record_bytes=6_000))
    for index in range(10):
        table.book.accept(Node(str(index)).record(status=status(64, 64, 128)))
        assert sum(map(len, table.book.newest())) <= 6_000
    assert len(table.book) == 2


def test_sequence_numbers_are_remembered_of_so_many() -> None:
    table = Table(BookLimits(remembered=2))
    a, b, c = (Node(name) for name in "abc")
    again = a.record()
    for data in (again, b.record(), c.record()):
        table.book.accept(data)
    table.book.accept(again)  # forgotten, and so is b now: memory is bounded, and the record expires all the same
    assert table.code(c.record(sequence=1)) == "replayed"


def test_whoever_loses_its_stake_leaves_the_table() -> None:
    table, a, b = Table(), Node("a"), Node("b")
    table.book.accept(a.record())
    stays = table.book.accept(b.record())
    table.registry.unstaked.add(a.operator)
    table.book.reauthorise()
    assert table.book.live() == [stays]
    assert table.changes[-1] == (a.operator, False)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 6), st.integers(0, 30)), max_size=30))
def test_the_last_accepted_of_each_is_what_the_table_shows(steps: list[tuple[str, int, int]]) -> None:
    table = Table(BookLimits(burst=1000))
    nodes = {name: Node(name) for name in "abc"}
    best: dict[str, Presence] = {}
    for name, sequence, later_s in steps:
        table.clock.now += later_s
        node = nodes[name]
        presence = node.presence(at=int(table.clock.now), sequence=sequence)
        known = best.get(node.operator)
        if known is None or sequence > known.sequence:
            best[node.operator] = table.book.accept(encode(presence, node.identity.sign))
        else:
            assert table.code(encode(presence, node.identity.sign)) == "replayed"
        table.book.expire()
        alive = {record.operator: record for record in best.values() if record.expires_at > table.clock.now}
        assert {record.operator: record for record in table.book.live()} == alive
