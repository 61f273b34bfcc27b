"""Children connect or are refused by name, and none outlives its parent."""

import asyncio
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from openlora.node.children import ending, spawn
from openlora.node.errors import ChildDied, ConfigError
from openlora.node.supervise import Backoff
from tests.node import fake_engine

SILENT = (sys.executable, "-c", "import time; time.sleep(60)")
CONNECTS = (
    sys.executable,
    "-c",
    "import signal, socket, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[-1]); s.send(b'x'); signal.pause()",
)


def test_waits_double_and_begin_anew_after_a_healthy_life() -> None:
    backoff = Backoff(first_s=1, max_s=5, healthy_s=60)
    assert [backoff.after(0.1) for _ in range(4)] == [1, 2, 4, 5]
    assert [backoff.after(61), backoff.after(0.1)] == [1, 2]


async def test_a_child_that_ends_instead_of_connecting_is_named(tmp_path: Path) -> None:
    with pytest.raises(ChildDied, match="ended with exit code 3 before it connected"):
        await spawn((sys.executable, "-c", "raise SystemExit(3)"), tmp_path / "s", timeout_s=20)
    assert list(tmp_path.iterdir()) == []


async def test_a_silent_child_is_killed_after_the_time_limit(tmp_path: Path) -> None:
    with pytest.raises(ChildDied, match="did not connect within"):
        await spawn(SILENT, tmp_path / "s", timeout_s=0.05)


async def test_who_connects_when_the_start_has_been_given_up_is_turned_away(tmp_path: Path) -> None:
    ready = f"import pathlib, time; pathlib.Path({str(tmp_path / 'ready')!r}).touch(); time.sleep(60)"
    start = asyncio.create_task(spawn((sys.executable, "-c", ready), tmp_path / "s", timeout_s=20))
    while not (tmp_path / "ready").exists():  # noqa: ASYNC110 - a file offers no event
        await asyncio.sleep(0.05)
    with socket.socket(socket.AF_UNIX) as late:
        late.connect(str(tmp_path / "s"))
        start.cancel()  # before the connection is taken
        with pytest.raises(asyncio.CancelledError):
            await start
        await asyncio.sleep(0)
        late.settimeout(1)
        assert late.recv(1) == b""


async def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose a shorter state directory"):
        await spawn(SILENT, tmp_path / ("x" * 120) / "s", timeout_s=1)


async def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    child = await spawn(CONNECTS, tmp_path / "s", timeout_s=20)
    assert await child.reader.readexactly(1) == b"x"
    await child.stop(grace_s=0.05)
    assert ending(child.process) == "was ended by SIGKILL"


async def test_only_this_user_can_connect_and_the_name_is_gone_afterwards(tmp_path: Path) -> None:
    watch = "import os, socket, stat, sys; print(oct(stat.S_IMODE(os.stat(sys.argv[-1]).st_mode)), file=sys.stderr);"
    child = await spawn((*CONNECTS[:2], watch + CONNECTS[2]), tmp_path / "state" / "s", timeout_s=20)
    assert list((tmp_path / "state").iterdir()) == []
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    await child.stop(grace_s=0)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG")
def test_a_child_ends_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    """The child is stopped meanwhile, so that only the kernel can end it."""
    parent = f"""
        import asyncio, sys
        from pathlib import Path
        from openlora.node.engine.supervisor import EngineOptions, supervised_engine

        async def main():
            options = EngineOptions(Path({str(tmp_path)!r}), command=(sys.executable, {fake_engine.__file__!r}))
            async with supervised_engine(options, Path({str(tmp_path)!r})):
                print("ready", flush=True)
                await asyncio.Event().wait()

        asyncio.run(main())
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(parent)], stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        watched = os.pidfd_open(child)
        os.kill(child, signal.SIGSTOP)
        process.kill()
    ended, _, _ = select.select([watched], [], [], 10)
    os.close(watched)
    assert ended
