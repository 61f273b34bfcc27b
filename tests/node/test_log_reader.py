"""A node's log file, by job and by level, while it is written, cut and replaced."""

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from openlora.node.cli.logs import command, show
from openlora.node.cli.output import Output
from openlora.node.errors import ConfigError
from openlora.node.log_reader import Wanted, fields, follow, last, level_of

TEXT = (
    "2026-01-31 12:00:00,000 level=INFO logger=openlora.node.worker event=job_claimed job_id=3 block=7",
    "2026-01-31 12:00:01,000 level=ERROR logger=openlora.node.worker event=job_failed job_id=31 reason='no, none'",
    "Traceback (most recent call last):",
)
JSON = '{"at":"2026-01-31T12:00:02.000Z","level":"warning","logger":"x","event":"job_lost","job_id":3}'


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "node.log"
    path.write_text("".join(f"{line}\n" for line in (*TEXT, JSON)))
    return path


def test_lines_by_job_and_level(log: Path):
    assert last(log, Wanted(), 10)[0] == [*TEXT, JSON]
    assert last(log, Wanted(), 2)[0] == [TEXT[2], JSON]
    assert last(log, Wanted(), 0)[0] == []
    assert last(log, Wanted(job_id=3), 10)[0] == [TEXT[0], JSON]
    assert last(log, Wanted(job_id=31), 10)[0] == [TEXT[1]]
    assert last(log, Wanted(level="warning"), 10)[0] == [TEXT[1], TEXT[2], JSON]
    assert last(log, Wanted(job_id=3, level="warning"), 10)[0] == [JSON]


def test_a_line_as_fields():
    assert fields(TEXT[1]) == {
        "at": "2026-01-31 12:00:01,000",
        "level": "ERROR",
        "logger": "openlora.node.worker",
        "event": "job_failed",
        "job_id": "31",
        "reason": "no, none",
    }
    assert fields(JSON)["event"] == "job_lost"
    assert fields("{broken") == {"line": "{broken"}
    assert (level_of(JSON), level_of(TEXT[0]), level_of("level=LOUD")) == ("warning", "info", "")


def rounds(*between: Callable[[], object]) -> Callable[[], bool]:
    """Does one thing before each look at the file, and stops it after the last."""
    steps: Iterator[Callable[[], object]] = itertools.chain(between)

    def stopped() -> bool:
        for step in steps:
            step()
            return False
        return True

    return stopped


def append(path: Path, text: str) -> Callable[[], object]:
    def write() -> None:
        with path.open("a") as opened:
            opened.write(text)

    return write


def test_what_comes_is_followed_through_half_lines_cuts_and_new_files(log: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("openlora.node.log_reader.EVERY_S", 0)
    _, position = last(log, Wanted(), 0)
    stopped = rounds(
        append(log, "one\ntw"),
        append(log, "o\n"),
        lambda: log.write_text("cut\n"),
        lambda: log.rename(log.with_name("node.log.1")),
        lambda: log.write_text("a new file that is longer\n"),
        append(log, "last\n"),
    )
    followed = list(follow(log, Wanted(), position, stopped))
    assert followed == ["one", "two", "cut", "a new file that is longer", "last"]


def test_the_commands_of_a_machine_with_systemd():
    wanted = command("journalctl", 3, "error", 5, True, True)
    assert wanted[-1] == "JOB_ID=3"
    assert "openlora-engine@*.service" in wanted
    assert wanted[wanted.index("--priority") + 1] == "3"
    assert {"--follow", "--output=json"} <= set(wanted)


def test_what_is_shown(log: Path, capsys: pytest.CaptureFixture[str]):
    show(log, 3, "debug", 10, False, Output(as_json=True))
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in shown] == ["job_claimed", "job_lost"]
    with pytest.raises(ConfigError, match="openlora run 2>>"):
        show(log.with_name("nowhere"), None, "debug", 10, False, Output(as_json=False))
