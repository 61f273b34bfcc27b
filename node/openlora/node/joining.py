"""A child that a service manager starts, in a sandbox of its own: it knows nothing but where the agent waits for it.

    python -m openlora.node.joining <socket> [argument …]

waits until the agent wants a child there, is told which one to be, and becomes it; the arguments are added to that
command line, for what belongs to the sandbox and not to the agent: a folder of its own.
"""

import logging
import os
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from openlora.node.children import Become
from openlora.node.frames import FrameDecoder

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.2
END_WITHIN_S: Final = 20.0  # of the agent's closing the connection
_JOINED: Final = "fd:"  # `--socket fd:3`: a connection that is made already
_LENGTH: Final = struct.Struct(">I")  # as in `openlora.node.frames`


def join(path: Path, arguments: Sequence[str]) -> None:
    """Returns only if the agent went away before it answered."""
    with socket.socket(socket.AF_UNIX) as sock:
        _connect(sock, path)
        become = _receive(sock)
        if become is None:
            return
        sock.set_inheritable(True)
        command = [*become.command, *arguments, "--socket", f"{_JOINED}{sock.fileno()}"]
        os.execv(command[0], command)  # noqa: S606 - the agent, whose socket only its own children may reach, says so


def connected(argument: str, end_within_s: float = END_WITHIN_S) -> socket.socket:
    """A child's connection to its agent, from its `--socket`: a path, or what `join` hands on.

    A process that joined ends at the latest `end_within_s` after the agent has closed the connection, for nobody else
    would end one that hangs.
    """
    if not argument.startswith(_JOINED):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(argument)
        return sock
    sock = socket.socket(fileno=int(argument.removeprefix(_JOINED)))
    sock.set_inheritable(False)
    threading.Thread(target=_end_with, args=(sock.dup(), end_within_s), name="end-with-agent", daemon=True).start()
    return sock


def _connect(sock: socket.socket, path: Path) -> None:
    while True:
        try:
            return sock.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):  # it starts, or has a child
            time.sleep(LOOK_EVERY_S)


def _receive(sock: socket.socket) -> Become | None:
    """The first frame and not a byte more, for the rest is the child's."""
    decoder = FrameDecoder[Become](Become)
    header = sock.recv(_LENGTH.size, socket.MSG_WAITALL)
    decoder.feed(header)
    if len(header) == _LENGTH.size and decoder.next() is None:
        decoder.feed(sock.recv(_LENGTH.unpack(header)[0], socket.MSG_WAITALL))
    return decoder.next()


def _end_with(sock: socket.socket, within_s: float) -> None:
    watch = select.poll()
    watch.register(sock, select.POLLRDHUP)
    watch.poll()
    time.sleep(within_s)
    log.error("event=hung_child_ended after_s=%g", within_s)
    os._exit(1)


if __name__ == "__main__":
    join(Path(sys.argv[1]), sys.argv[2:])
