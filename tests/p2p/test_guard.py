"""The books that hold strangers to our limits, on a clock that the tests turn."""

import logging
from dataclasses import dataclass, field

import pytest

from openlora.p2p.host.guard import Guard, Traffic
from openlora.p2p.limits import Limits, Refusals, Strikes, TokenBucket
from openlora.p2p.network import PeerId

ALICE, BOB, CAROL = (PeerId(name) for name in ("alice", "bob", "carol"))


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass(eq=False)
class Connection:
    peer: PeerId
    guard: Guard
    buffered_bytes: int = 0
    traffic: Traffic = field(default_factory=Traffic)
    is_cut: bool = False
    inbound_from: str | None = None

    def cut(self) -> None:
        self.is_cut = True

    def buffer(self, count: int) -> None:
        self.buffered_bytes += count
        self.guard.buffer(count)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_bucket_says_how_long_to_wait_for_what_was_taken_too_much(clock: Clock) -> None:
    bucket = TokenBucket(rate=10.0, burst=20.0, clock=clock)
    assert bucket.take(20.0) == 0.0
    assert bucket.take(5.0) == pytest.approx(0.5)
    assert not bucket.try_take(1.0)
    clock.now_s += 0.5
    assert bucket.take(0.0) == 0.0
    clock.now_s += 3600
    assert bucket.try_take(20.0)
    assert not bucket.try_take(0.1)


def test_misdeeds_are_all_counted_and_logged_once_a_minute(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals(remembered=2, clock=clock)
    for _ in range(100):
        refusals.note(ALICE, "forged", fault=True)
    refusals.note(BOB, "forged", fault=True)
    assert refusals.counts == {"forged": 101}
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    clock.now_s += 61
    refusals.note(ALICE, "forged", fault=True)
    assert len(caplog.records) == 3


def test_a_crowd_of_new_names_does_not_fill_the_log(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals(remembered=2, clock=clock)
    for number in range(6_000):
        refusals.note(f"sybil {number}", "malformed", fault=True)
        clock.now_s += 0.01
    assert refusals.counts == {"malformed": 6_000}
    assert 12 < len(caplog.records) <= 24
    refusals.note(ALICE, "forged", fault=True)
    assert "reason=forged" in caplog.text


def test_what_may_happen_to_anybody_is_no_warning(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals(remembered=2, clock=clock)
    with caplog.at_level(logging.DEBUG):
        refusals.note(ALICE, "replayed")
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    assert refusals.counts == {"replayed": 1}


def test_strikes_are_forgiven_and_bans_end(clock: Clock) -> None:
    strikes = Strikes(Limits(strikes=3, forgive_s=60, ban_s=600), clock)
    assert not strikes.strike(ALICE)
    assert not strikes.strike(ALICE)
    clock.now_s += 61
    assert not strikes.strike(ALICE)
    assert strikes.strike(ALICE)
    assert strikes.banned(ALICE)
    assert not strikes.banned(BOB)
    clock.now_s += 601
    assert not strikes.banned(ALICE)


def test_strikes_remember_so_many_peers(clock: Clock) -> None:
    strikes = Strikes(Limits(strikes=2, remembered_peers=10), clock)
    for number in range(1000):
        strikes.strike(f"sybil {number}")
        strikes.ban(f"other {number}")
    assert len(strikes._struck) == len(strikes._banned_until_s) == 10


def test_an_address_gets_its_places_back(clock: Clock) -> None:
    guard = Guard(Limits(inbound_per_ip=2), clock)
    with guard.inbound("10.0.0.1") as first, guard.inbound("10.0.0.1") as second:
        assert first
        assert second
        with guard.inbound("10.0.0.1") as third, guard.inbound("10.0.0.2") as elsewhere:
            assert not third
            assert elsewhere
    with guard.inbound("10.0.0.1") as again:
        assert again
    assert guard.refusals == {"connections-per-address": 1}


def test_handshakes_are_bounded_by_rate(clock: Clock) -> None:
    guard = Guard(Limits(handshakes_per_ip_per_s=1.0, handshake_burst_per_ip=2.0), clock)
    for expected in (True, True, False):
        with guard.inbound("10.0.0.1") as admitted:
            assert admitted is expected
    assert guard.refusals == {"handshakes-per-address": 1}


def test_the_most_crowded_address_makes_room_for_a_handshake(clock: Clock) -> None:
    guard = Guard(Limits(handshakes=3), clock)
    ended: list[str] = []
    with (
        guard.handshake("10.0.0.2", lambda: ended.append("bystander")),
        guard.handshake("10.0.0.1", lambda: ended.append("oldest")),
        guard.handshake("10.0.0.1", lambda: ended.append("newest")),
    ):
        with guard.inbound("10.0.0.1") as another:
            assert not another
        with guard.inbound("10.0.0.3") as newcomer:
            assert newcomer
        assert ended == ["oldest"]
    assert guard.refusals == {"handshakes": 2}


def test_the_most_crowded_address_makes_room_for_a_connection(clock: Clock) -> None:
    guard = Guard(Limits(connections=4), clock)
    crowd = [Connection(PeerId(f"sybil {number}"), guard, inbound_from="10.0.0.1") for number in range(2)]
    others = [Connection(ALICE, guard, inbound_from="10.0.0.2"), Connection(BOB, guard)]  # BOB was dialled
    assert all(guard.admit(connection) for connection in [*crowd, *others])
    assert guard.admit(Connection(CAROL, guard, inbound_from="10.0.0.3"))
    assert [connection.is_cut for connection in [*crowd, *others]] == [False, True, False, False]
    guard.released(crowd[1])
    assert not guard.admit(Connection(PeerId("dave"), guard, inbound_from="10.0.0.4"))


def test_connections_are_bounded_in_all_and_for_each_peer(clock: Clock) -> None:
    guard = Guard(Limits(connections=3, connections_per_peer=2), clock)
    alice = [Connection(ALICE, guard) for _ in range(3)]
    assert all(guard.admit(connection) for connection in alice)
    assert [connection.is_cut for connection in alice] == [True, False, False]
    assert not guard.admit(Connection(BOB, guard))
    guard.released(alice[0])
    bob = Connection(BOB, guard)
    assert guard.admit(bob)
    guard.released(bob)
    guard.released(bob)
    assert guard.refusals == {"connections-per-peer": 1, "connections": 1}


def test_whoever_has_most_unread_goes_when_there_is_too_much(clock: Clock) -> None:
    guard = Guard(Limits(buffered_bytes=1000), clock)
    alice, bob = Connection(ALICE, guard), Connection(BOB, guard)
    assert guard.admit(alice)
    assert guard.admit(bob)
    alice.buffer(800)
    bob.buffer(150)
    assert not alice.is_cut
    bob.buffer(100)
    assert alice.is_cut
    assert not bob.is_cut
    alice.buffer(-800)
    assert guard.buffered_bytes == 250


def test_a_peer_pays_for_all_its_connections_together(clock: Clock) -> None:
    guard = Guard(Limits(bytes_per_s=1000, burst_bytes=1000), clock)
    assert guard.pay(ALICE, 1000) == 0.0
    assert guard.pay(ALICE, 500) == pytest.approx(0.5)
    assert guard.pay(BOB, 1000) == 0.0


def test_banned_peers_are_cut_and_kept_out(clock: Clock) -> None:
    guard = Guard(Limits(strikes=2, ban_s=600), clock)
    alice, bob = Connection(ALICE, guard), Connection(BOB, guard)
    assert guard.admit(alice)
    assert guard.admit(bob)
    guard.penalise(ALICE, "test")
    guard.penalise(ALICE, "test")
    assert alice.is_cut
    assert not bob.is_cut
    assert not guard.admit(Connection(ALICE, guard))
    clock.now_s += 601
    assert guard.admit(Connection(ALICE, guard))


def test_traffic_is_kept_when_connections_end(clock: Clock) -> None:
    guard = Guard(Limits(), clock)
    first = Connection(ALICE, guard, traffic=Traffic(100, 10))
    assert guard.admit(first)
    guard.released(first)
    assert guard.admit(Connection(ALICE, guard, traffic=Traffic(1, 2)))
    assert guard.traffic() == {ALICE: Traffic(101, 12)}
    assert CAROL not in guard.traffic()
