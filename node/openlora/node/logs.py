"""What a process logs: one event a line, and the same fields wherever it goes.

    text     2026-01-31 12:00:00,000 level=INFO logger=openlora.node.worker event=job_claimed job_id=3 block=7
    json     {"at":"2026-01-31T12:00:00.000Z","level":"info","logger":"…","event":"job_claimed","job_id":3,"block":7}
    journal  MESSAGE=event=job_claimed job_id=3 block=7, and each field by its name in capitals: `journalctl JOB_ID=3`

A message is a template, `event=job_claimed job_id=%d`: its keys and its arguments are the fields, so that nothing is
read back from text. Others' libraries are heard from WARNING on, whatever our own level: what they tell at lower ones
is requests and answers.
"""

import errno
import logging
import os
import re
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from openlora.node.config import LogConfig

JOURNAL: Final = Path("/run/systemd/journal/socket")
MAX_MESSAGE_BYTES: Final = 8_192  # of a line that is too long for the journal's socket
_PLACEHOLDER: Final = re.compile(r"%[^%a-zA-Z]*[a-zA-Z]")
_CONTROL: Final = {code: f"\\x{code:02x}" for code in (*range(32), 127)}
_OWN: Final = "openlora"
_PRIORITIES: Final = {  # syslog(3)
    logging.CRITICAL: 2,
    logging.ERROR: 3,
    logging.WARNING: 4,
    logging.INFO: 6,
    logging.DEBUG: 7,
}


def set_up(config: LogConfig, environment: Mapping[str, str]) -> None:
    """All this process logs goes to stderr, or with `auto` to the journal where stderr does. Called once, by a main."""
    handler = _handler(config, environment)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(_OWN).setLevel(config.level.upper())


def _handler(config: LogConfig, environment: Mapping[str, str]) -> logging.Handler:
    if config.format == "auto" and is_journal(environment.get("JOURNAL_STREAM", "")):
        return JournalHandler(JOURNAL)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if config.format == "json" else TextFormatter())
    return handler


def is_journal(journal_stream: str, descriptor: int = 2) -> bool:
    """Whether it is what systemd.exec(5) says of $JOURNAL_STREAM: device and inode of the journal's stream."""
    try:
        status = os.fstat(descriptor)
    except OSError:  # closed
        return False
    return journal_stream == f"{status.st_dev}:{status.st_ino}"


def fields(record: logging.LogRecord) -> Iterator[tuple[str, object]]:
    """The keys of the message's template, each with its value; nothing where it is no such template."""
    if not isinstance(record.args, tuple):
        return
    arguments = iter(record.args)
    for word in str(record.msg).split():
        values = tuple(next(arguments, "") for _ in _PLACEHOLDER.findall(word))
        key, equals, template = word.partition("=")
        if equals and key.isidentifier():
            yield key, values[0] if _PLACEHOLDER.fullmatch(template) else template % values


class TextFormatter(logging.Formatter):
    """No message is more than a line, whoever wrote its words; a traceback follows it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s level=%(levelname)s logger=%(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = record.message.translate(_CONTROL)
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """Numbers and truths as such, all else as text. `message` is there where no event is."""

    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "at": f"{at}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        own = {key: _plain(value) for key, value in fields(record)}
        line |= own if "event" in own else {"message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


class JournalHandler(logging.Handler):
    """Speaks to the journal itself (systemd.io/JOURNAL_NATIVE_PROTOCOL), for lines of text carry no fields."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = str(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = self._formatter.format(record)
            try:
                self._send(record, message)
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise
                self._send(record, message.encode()[:MAX_MESSAGE_BYTES].decode(errors="ignore"), with_fields=False)
        except Exception:  # as every handler of `logging`: a log that is lost ends nothing
            self.handleError(record)

    def close(self) -> None:
        self._socket.close()
        super().close()

    def _send(self, record: logging.LogRecord, message: str, *, with_fields: bool = True) -> None:
        told = {key.upper(): str(value) for key, value in fields(record)} if with_fields else {}
        told |= {"MESSAGE": message, "PRIORITY": str(_PRIORITIES.get(record.levelno, 6)), "LOGGER": record.name}
        self._socket.sendto(b"".join(_entry(key, value) for key, value in told.items()), self._path)


def _entry(key: str, value: str) -> bytes:
    data = value.encode(errors="replace")
    if b"\n" in data:
        return key.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
    return key.encode() + b"=" + data + b"\n"


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, bool | int | float) else str(value)
