"""Hostile adapters, each refused with its reason, in at most 2 s and 256 MiB."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openlora.node.adapters.folder import require_alone
from openlora.node.adapters.format import read_adapter
from openlora.node.errors import AdapterError
from tests.node.adapters.adapter_files import RANK, WHOLE_LAYOUT, write_adapter
from tests.node.adapters.hostile_adapters import HOSTILE, Hostile

MAX_SECONDS = 2.0
MAX_RESIDENT_BYTES = 256 * 1024 * 1024


def test_there_are_enough_and_each_is_named_once() -> None:
    assert len(HOSTILE) >= 240
    assert len({hostile.name for hostile in HOSTILE}) == len(HOSTILE)


def test_what_they_spoil_was_good(tmp_path: Path) -> None:
    assert read_adapter(write_adapter(tmp_path), WHOLE_LAYOUT).rank == RANK


def read_strangers(folder: Path) -> None:
    require_alone(folder)
    read_adapter(folder, WHOLE_LAYOUT)


@pytest.mark.parametrize("hostile", [pytest.param(hostile, id=ascii(hostile.name)) for hostile in HOSTILE])
def test_refused_with_the_reason(hostile: Hostile, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    hostile.spoil(folder)
    started = time.thread_time()
    with pytest.raises(AdapterError, match=hostile.reason) as refusal:
        read_strangers(folder)
    assert time.thread_time() - started < MAX_SECONDS
    reason = str(refusal.value)
    assert reason.isascii()
    assert reason.isprintable()
    assert len(reason) < 300


READ_ALL = """
import json, pathlib, re, sys, time
from openlora.node.adapters.folder import require_alone
from openlora.node.adapters.format import read_adapter
from openlora.node.errors import AdapterError
from tests.node.adapters.adapter_files import WHOLE_LAYOUT

def read(folder):
    started = time.perf_counter()
    try:
        require_alone(pathlib.Path(folder))
        read_adapter(pathlib.Path(folder), WHOLE_LAYOUT)
    except AdapterError:
        return time.perf_counter() - started
    raise SystemExit("accepted " + folder)

seconds = [read(folder) for folder in sys.argv[1:]]
peak_kib = re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]
print(json.dumps([max(seconds), int(peak_kib) * 1024]))
"""


@pytest.mark.slow
def test_refused_within_the_bounds(tmp_path: Path, repository: Path) -> None:
    """One fresh process reads them all, so that its peak is above that of each; this one's counts what else it did."""
    folders = [write_adapter(tmp_path / str(number) / "adapter") for number in range(len(HOSTILE))]
    for hostile, folder in zip(HOSTILE, folders, strict=True):
        hostile.spoil(folder)
    command = [sys.executable, "-c", READ_ALL, *map(str, folders)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True, timeout=300)
    longest_s, peak_bytes = json.loads(done.stdout)
    assert longest_s < MAX_SECONDS
    assert peak_bytes < MAX_RESIDENT_BYTES
