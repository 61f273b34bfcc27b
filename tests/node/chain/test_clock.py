"""A wrong clock is told of by the blocks that come."""

import logging

import pytest

from openlora.node.chain.clock import ClockWatch


@pytest.mark.parametrize("ahead_s", [3_600, -3_600, 61, -16])
def test_a_wrong_clock_is_told_of_once_until_it_is_right_again(ahead_s: int, caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    watch = ClockWatch(lambda: now)
    for block in range(0, 120, 12):
        now = float(block + ahead_s)
        watch.look(block)
    assert watch.ahead_s == ahead_s
    assert watch.chain_s() == 108, "the chain's time all the same"
    assert [record.getMessage() for record in caplog.records] == [f"event=clock_off ahead_s={ahead_s}"]
    now = 121.0
    watch.look(120)
    assert watch.ahead_s == 0
    assert watch.chain_s() == now


def test_a_clock_that_goes_on_going_wrong_is_followed() -> None:
    now = 0.0
    watch = ClockWatch(lambda: now)
    for block, ahead_s in ((0, 100), (12, 100), (24, 100), (36, 900), (48, 900), (60, 900)):
        now = float(block + ahead_s)
        watch.look(block)
    assert watch.chain_s() == 60


def test_blocks_that_were_seen_late_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """After an outage the newest is old, and the next one is not."""
    caplog.set_level(logging.WARNING)
    now = 600.0
    watch = ClockWatch(lambda: now)
    for block in (0, 12, 590):
        watch.look(block)
    assert (watch.ahead_s, caplog.records) == (0, [])


def test_the_chains_time_goes_on_while_its_newest_block_stands_still() -> None:
    elapsed_s = 0.0
    watch = ClockWatch(lambda: 9_999_999.0, monotonic=lambda: elapsed_s)
    assert watch.now_s(100) == 100, "nothing better is known"
    watch.look(112)
    elapsed_s = 30.0
    assert watch.now_s(112) == watch.now_s(100) == 142
    assert watch.now_s(148) == 148
