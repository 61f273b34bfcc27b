"""Each event is a line with the same fields in text, in JSON and in the journal."""

import io
import json
import logging
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from openlora.node.config import LogConfig
from openlora.node.logs import JournalHandler, JsonFormatter, TextFormatter, is_journal, set_up


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """A logger of ours, and the process's logging as it was afterwards."""
    root, ours = logging.getLogger(), logging.getLogger("openlora")
    kept = root.handlers[:], root.level, ours.level
    yield logging.getLogger("openlora.node.test")
    root.handlers[:] = kept[0]
    root.setLevel(kept[1])
    ours.setLevel(kept[2])


def record(message: str, *arguments: object, level: int = logging.INFO) -> logging.LogRecord:
    return logging.LogRecord("openlora.node.worker", level, "worker.py", 1, message, arguments, None)


def as_json(message: str, *arguments: object) -> dict[str, object]:
    line = json.loads(JsonFormatter().format(record(message, *arguments)))
    assert line.pop("at").endswith("Z")
    assert (line.pop("level"), line.pop("logger")) == ("info", "openlora.node.worker")
    return line


@pytest.mark.parametrize(
    ("message", "arguments", "line"),
    [
        ("event=job_claimed job_id=%d block=%d", (3, 7), {"event": "job_claimed", "job_id": 3, "block": 7}),
        ("event=%s_ended how=%r s=%.1f", ("engine", "a b", 1.5), {"event": "engine_ended", "how": "a b", "s": 1.5}),
        ("event=x reason=%r ok=%s", ('say "hi"\n', True), {"event": "x", "reason": 'say "hi"\n', "ok": True}),
        ("benched the source peer=%s for_s=%g", ("12D3", 5.0), {"message": "benched the source peer=12D3 for_s=5"}),
        ("100 %% done", (), {"message": "100 %% done"}),
    ],
)  # fmt: skip
def test_a_json_line_has_the_fields_of_its_message(message, arguments, line):
    assert as_json(message, *arguments) == line


def test_a_traceback_stays_in_its_json_line():
    failed = record("event=answer_failed", level=logging.ERROR)
    try:
        raise ValueError("no\nsuch thing")
    except ValueError as error:
        failed.exc_info = (type(error), error, error.__traceback__)
    text = JsonFormatter().format(failed)
    assert "\n" not in text
    assert json.loads(text)["exception"].endswith("such thing")


def test_words_of_others_cannot_forge_a_line():
    text = TextFormatter().format(record("event=ask_failed peer=%s", "x\n2026-01-01 level=INFO event=paid"))
    assert text.count("\n") == 0
    assert r"peer=x\x0a2026" in text


def test_the_journal_gets_native_fields(tmp_path: Path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(tmp_path / "journal"))
        handler = JournalHandler(tmp_path / "journal")
        handler.emit(record("event=job_failed job_id=%d reason=%r", 3, "two\nlines", level=logging.ERROR))
        sent = journal.recv(4096)
        assert b"JOB_ID=3\n" in sent
        assert b"EVENT=job_failed\n" in sent
        assert b"PRIORITY=3\n" in sent
        assert b"REASON\n" + struct.pack("<Q", 9) + b"two\nlines\n" in sent
        handler.emit(record("event=kept reason=%s", "x" * (4 << 20)))
        sent = journal.recv(1 << 20)
        assert b"MESSAGE=event=kept reason=xxx" in sent
        assert len(sent) < 9_000
        handler.close()


def test_the_journal_is_known_by_the_file_that_stderr_is(tmp_path: Path):
    with (tmp_path / "stream").open("wb") as stream:
        status = os.fstat(stream.fileno())
        assert is_journal(f"{status.st_dev}:{status.st_ino}", stream.fileno())
        assert not is_journal(f"{status.st_dev}:{status.st_ino + 1}", stream.fileno())
    assert not is_journal("")


@pytest.mark.parametrize(("level", "told"), [("debug", "d i w"), ("warning", "w")])
def test_a_level_is_of_our_own_words_and_others_are_heard_from_warnings_on(log, monkeypatch, level, told):
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    set_up(LogConfig(format="json", level=level), {})
    for letter, number in (("d", logging.DEBUG), ("i", logging.INFO), ("w", logging.WARNING)):
        log.log(number, "event=%s", letter)
        logging.getLogger("web3.providers").log(number, "event=their_%s", letter)
    events = [json.loads(line)["event"] for line in stream.getvalue().splitlines()]
    assert " ".join(event for event in events if "their" not in event) == told
    assert [event for event in events if "their" in event] == ["their_w"]
