"""Is the adapter in this folder safe to serve? Asked of a child process, which holds no key and little memory.

    python -I -m openlora.node.adapters.verify
    stdin   {"directory": "/…", "layout": {"model.layers.0.self_attn.q_proj": ["LinearShape", 576, 576], …}}
    stdout  {"ok": true, "rank": 16, "nbytes": 19537920}  or  {"ok": false, "error": "…"}

The child starts with an empty environment and no inherited file descriptors, limits its own memory and time, leaves the
network where the kernel permits, and only then reads the stranger's bytes. Its parent kills it after a time limit.
"""

import asyncio
import ctypes
import json
import os
import resource
import sys
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Final, get_args

from openlora.node.adapters.folder import WEIGHTS_FILE, require_alone
from openlora.node.adapters.format import read_adapter
from openlora.node.adapters.modules import Layout, ModuleShape
from openlora.node.errors import AdapterCheckFailed, AdapterError

MAX_PRIVATE_BYTES: Final = 192 * 1024 * 1024  # numpy takes about 40 MiB of it
MAX_ADDRESS_BYTES: Final = 768 * 1024 * 1024  # besides the mapped weights
MAX_CPU_S: Final = 20
TIMEOUT_S: Final = 30.0
_MODULE: Final = "openlora.node.adapters.verify"
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000


@dataclass(frozen=True, slots=True)
class Verified:
    """What the engine may count on: the largest rank and the size of the tensors as stored."""

    rank: int
    nbytes: int


async def verify_adapter(directory: Path, layout: Layout, *, timeout_s: float = TIMEOUT_S) -> Verified:
    """Run `require_alone` and `read_adapter` on `directory` in a child. Raises AdapterError with the reason, or
    AdapterCheckFailed if there is none because the child died or took too long."""
    shapes = {module: (type(shape).__name__, *astuple(shape)) for module, shape in layout.items()}
    question = json.dumps({"directory": str(directory), "layout": shapes}).encode()
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-m",
        _MODULE,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={"OPENBLAS_NUM_THREADS": "1"},  # threads would reserve address space by the gigabyte
    )
    try:
        async with asyncio.timeout(timeout_s):
            answer, _ = await child.communicate(question)
    except TimeoutError as error:
        raise AdapterCheckFailed(f"the adapter could not be checked within {timeout_s:g} s") from error
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return _parse_answer(answer, child.returncode)


def _parse_answer(answer: bytes, returncode: int | None) -> Verified:
    """The child's code is ours but its memory may not be any more: take nothing but two integers or a short text."""
    try:
        fields = json.loads(answer)
        if fields["ok"] is True:
            return Verified(int(fields["rank"]), int(fields["nbytes"]))
        reason = str(fields["error"])
    except (ValueError, KeyError, TypeError) as error:
        raise AdapterCheckFailed(f"the adapter check died with status {returncode}") from error
    raise AdapterError(reason[:1000])


# ---- the child ------------------------------------------------------------------------------------------------------


def main() -> None:
    question = json.loads(sys.stdin.buffer.read())
    directory = Path(question["directory"])
    confine(directory)
    kinds = {kind.__name__: kind for kind in get_args(ModuleShape)}
    layout = {module: kinds[kind](*sizes) for module, (kind, *sizes) in question["layout"].items()}
    json.dump(_answer(directory, layout), sys.stdout)


def _answer(directory: Path, layout: Layout) -> dict[str, Any]:
    try:
        require_alone(directory)
        weights = read_adapter(directory, layout)
    except AdapterError as error:
        return {"ok": False, "error": str(error)}
    except MemoryError:
        return {"ok": False, "error": "the adapter takes more memory to check than is allowed"}
    return {"ok": True, "rank": weights.rank, "nbytes": weights.nbytes}


def confine(directory: Path) -> None:
    """Give up what checking does not need. Hostile bytes could inflate private memory; the weights are only mapped."""
    try:
        mapped_bytes = (directory / WEIGHTS_FILE).lstat().st_size
    except OSError:
        mapped_bytes = 0  # read_adapter says what is wrong
    for limit, value in (
        (resource.RLIMIT_DATA, MAX_PRIVATE_BYTES),
        (resource.RLIMIT_AS, MAX_ADDRESS_BYTES + mapped_bytes),
        (resource.RLIMIT_CPU, MAX_CPU_S),
        (resource.RLIMIT_NOFILE, 16),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    leave_network()


def leave_network() -> bool:
    """Move this process into a network namespace of its own, without interfaces; False where the kernel refuses."""
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    alone = _CLONE_NEWNET if os.geteuid() == 0 else _CLONE_NEWUSER | _CLONE_NEWNET
    return int(unshare(alone)) == 0


if __name__ == "__main__":
    main()
