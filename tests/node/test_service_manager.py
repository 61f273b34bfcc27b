import os
import socket
from pathlib import Path

import pytest

from openlora.node.service_manager import ServiceManager


def test_it_is_told_that_the_node_is_ready_lives_and_stops(tmp_path: Path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        told = ServiceManager.of({"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000000"})
        assert told.watchdog_s == 30
        told.waiting("Waits.")
        told.ready()
        told.alive()
        told.stopping()
        words = [manager.recv(4096).decode() for _ in range(4)]
    assert words == ["STATUS=Waits.", "READY=1\nSTATUS=The node runs.", "WATCHDOG=1", "STOPPING=1"]
    told.alive()  # it restarts, and nobody listens


def test_an_abstract_socket_is_meant_by_an_at_sign():
    name = f"openlora-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name)
        ServiceManager.of({"NOTIFY_SOCKET": "@" + name}).alive()
        assert manager.recv(64) == b"WATCHDOG=1"


@pytest.mark.parametrize("environment", [{}, {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}])
def test_without_one_or_with_anothers_watchdog_nobody_is_told(environment):
    manager = ServiceManager.of(environment)
    assert manager.watchdog_s is None
    manager.ready()
