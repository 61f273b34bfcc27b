"""The service manager that started us, if one did: it is told when we are ready, and that we live (sd_notify(3))."""

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class ServiceManager:
    """Without one nobody is told anything, and the agent starts its children itself."""

    notify_socket: str = ""
    watchdog_s: float | None = None  # it kills us after that long without a word
    children_dir: Path | None = None  # where its services join us: `engine/engine-<n>.sock`, `p2p/network.sock`

    @classmethod
    def of(cls, environment: Mapping[str, str], children_dir: Path | None = None) -> Self:
        ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = environment.get("WATCHDOG_USEC", "") if ours else ""
        return cls(
            notify_socket=environment.get("NOTIFY_SOCKET", ""),
            watchdog_s=int(microseconds) / 1e6 if microseconds.isdigit() else None,
            children_dir=children_dir,
        )

    def ready(self) -> None:
        self._tell("READY=1\nSTATUS=The node runs.")

    def waiting(self, what: str) -> None:
        """Shown by `systemctl status` until we are ready."""
        self._tell(f"STATUS={what}")

    def alive(self) -> None:
        self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def _tell(self, words: str) -> None:
        if not self.notify_socket:
            return
        path = "\0" + self.notify_socket[1:] if self.notify_socket.startswith("@") else self.notify_socket
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:  # it does not listen now
            sock.sendto(words.encode(), socket.MSG_DONTWAIT, path)
