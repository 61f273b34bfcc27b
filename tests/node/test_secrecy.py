import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

CRASH = "import resource, os; resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2); {}; os.abort()"
FORBID = "from openlora.node.secrecy import leave_no_core; leave_no_core()"
PATTERN = Path("/proc/sys/kernel/core_pattern")


def crash(folder: Path, before: str) -> bool:
    """Whether a process that aborts leaves a core in its folder."""
    command = [sys.executable, "-c", CRASH.format(before)]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = 0  # it has been waited for
    assert os.WIFSIGNALED(status)
    return os.WCOREDUMP(status) or any(folder.iterdir())


@pytest.mark.skipif(resource.getrlimit(resource.RLIMIT_CORE)[1] != resource.RLIM_INFINITY, reason="cores are limited")
@pytest.mark.skipif(PATTERN.read_text().startswith("|"), reason="a collector takes this machine's cores")
def test_a_process_that_crashes_leaves_no_core(tmp_path: Path):
    assert crash(tmp_path, before="pass"), "here one would be"
    for core in tmp_path.iterdir():
        core.unlink()
    assert not crash(tmp_path, FORBID)


def test_no_limit_that_is_raised_again_brings_one_back():
    """A core that is piped to a collector knows no limit: the process must not be dumpable."""
    dumpable = "import ctypes; print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    done = subprocess.run([sys.executable, "-c", f"{FORBID}; {dumpable}"], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"
