"""Sequence numbers never repeat, whatever crashes and whatever the clock says."""

from pathlib import Path
from typing import Any

import pytest

from openlora.p2p.presence.announcer import Announcer
from openlora.p2p.presence.sequence import SequenceCounter
from tests.p2p.presence.people import CHAIN_ID, NOW, Node


def test_numbers_rise_across_crashes_and_clocks_set_back(tmp_path: Path) -> None:
    seen: list[int] = []
    for seconds, draws in [(1_000.0, 3), (1_000.0, 2_500), (10.0, 5), (0.0, 1), (5_000.0, 2)]:
        counter = SequenceCounter(tmp_path / "sequence", lambda at=seconds: at)  # the last one just stopped
        seen += [counter.next() for _ in range(draws)]
    assert seen == sorted(set(seen))
    assert seen[0] == 1_000_000
    assert seen[-1] == 5_000_001


def test_a_number_is_out_only_once_its_range_is_on_disk(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    counter = SequenceCounter(tmp_path / "gone" / "sequence", lambda: 1.0)
    (tmp_path / "gone").rmdir()
    with pytest.raises(OSError, match="gone"):
        counter.next()


def test_the_file_is_written_once_in_a_thousand(tmp_path: Path) -> None:
    path = tmp_path / "sequence"
    counter = SequenceCounter(path, lambda: 1.0)
    assert not path.exists()
    assert [counter.next() for _ in range(1000)] == list(range(1000, 2000))
    assert path.read_text() == "2000\n"
    counter.next()
    assert path.read_text() == "3000\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["sequence"]


@pytest.mark.parametrize("damaged", [b"", b"\xff\xfe", b"twelve", b"9" * 100])
def test_a_damaged_file_is_as_good_as_a_lost_one(tmp_path: Path, damaged: bytes) -> None:
    path = tmp_path / "sequence"
    path.write_bytes(damaged)
    assert SequenceCounter(path, lambda: 7.0).next() == 7_000


def test_an_announcer_knows_its_own_records_and_those_of_its_earlier_lives(tmp_path: Path) -> None:
    """Whatever else its key has signed was signed by another process: started later, or earlier and still alive."""
    now = float(NOW)
    network: Any = None
    announcer = Announcer(
        network, CHAIN_ID, counter := SequenceCounter(tmp_path / "sequence", lambda: now), lambda: now
    )
    node, mine = Node("us"), counter.next()
    for sequence, issued_at, made in (
        (mine, NOW, True),
        (mine + 1, NOW, False),
        (mine - 5, NOW - 1, True),
        (mine - 5, NOW + 1, False),
    ):
        assert announcer.made(node.presence(at=issued_at, sequence=sequence)) is made, (sequence, issued_at)
