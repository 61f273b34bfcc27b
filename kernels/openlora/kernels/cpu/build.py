"""The shared library: compiled on first use, once for each state of the sources, the compiler and the flags.

It has the units that the processor at hand can run; a unit is what one instruction set computes with.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from openlora.kernels.errors import KernelsUnavailable

log = logging.getLogger(__name__)

_SOURCES = Path(__file__).parent / "src"
_COMMON = ("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-Wno-psabi", "-pthread")
# gcc 12 knows no znver4; its tuning for znver3 with wide vectors is what Sapphire Rapids and Zen 4 want.
_AVX512 = ("-march=x86-64-v4", "-mtune=znver3", "-mprefer-vector-width=512")
_ANY_UNITS: dict[str, tuple[str, ...]] = dict.fromkeys(
    (
        *("api", "choice", "decoder", "adapters", "packed", "quantised"),
        *("adapted", "altered", "product", "step", "sample", "plain"),
    ),
    (),
)
_AVX512_FLAGS = frozenset(("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd"))
_BF16_FLAGS = _AVX512_FLAGS | {"avx512_vnni", "avx512_bf16"}
# What a processor must have, as /proc/cpuinfo says, for a unit to be of use; choice.cpp asks again.
NEEDED_FLAGS: dict[str, frozenset[str]] = {
    "avx2": frozenset(("avx2", "fma")),
    "avx512": _AVX512_FLAGS,
    "avx512_vnni": _AVX512_FLAGS | {"avx512_vnni"},
    "avx512_bf16": _BF16_FLAGS,
    "amx": _BF16_FLAGS | {"avx512_vbmi2", "amx_tile", "amx_bf16", "amx_int8"},
}
_X86_UNITS: dict[str, tuple[str, ...]] = {
    "avx2": ("-march=x86-64-v3",),
    "avx512": _AVX512,
    "avx512_vnni": (*_AVX512, "-mavx512vnni"),
    "avx512_bf16": (*_AVX512, "-mavx512bf16", "-mavx512vnni"),
    "amx": (*_AVX512, "-mavx512bf16", "-mavx512vnni", "-mavx512vbmi2", "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
}
_COMPILE_TIMEOUT_S = 300.0
_UNDER_WAY = "cpu-build-"  # what the folder of a build begins with: nobody else's in a cache that others may use


def library_path(cache_dir: Path) -> Path:
    """The built library under `cache_dir`, compiled first if it is not there yet; others who want it meanwhile wait.

    Raises KernelsUnavailable with one sentence: no compiler, or what it said.
    """
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise KernelsUnavailable("no C++ compiler (c++ or g++) is on PATH")
    flags = processor_flags()
    units = _ANY_UNITS | {unit: _X86_UNITS[unit] for unit, needed in NEEDED_FLAGS.items() if needed <= flags}
    path = cache_dir / f"cpu-{_fingerprint(compiler, units)}.so"
    if path.exists():
        return path
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with (cache_dir / "cpu.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                for left in cache_dir.glob(f"{_UNDER_WAY}*"):  # by builds that were killed
                    shutil.rmtree(left)
                log.info("event=kernels_building path=%s", path)  # it takes a minute on slow machines
                _compile(compiler, units, path)
    except OSError as error:
        raise KernelsUnavailable(f"the kernels cannot be built in {cache_dir}: {error}") from error
    return path


def processor_flags() -> frozenset[str]:
    """Of an x86 processor under Linux, as /proc/cpuinfo names them; none elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))


def _fingerprint(compiler: str, units: dict[str, tuple[str, ...]]) -> str:
    digest = hashlib.sha256(_run([compiler, "--version"]).encode())
    digest.update(repr((_COMMON, units)).encode())
    for source in sorted(_SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:16]


def _compile(compiler: str, units: dict[str, tuple[str, ...]], path: Path) -> None:
    """Leaves a whole library at `path`, or nothing."""
    with (
        tempfile.TemporaryDirectory(prefix=_UNDER_WAY, dir=path.parent) as folder,
        ThreadPoolExecutor(os.cpu_count()) as threads,
    ):
        objects = {unit: f"{folder}/{unit}.o" for unit in units}
        commands = [
            [compiler, *_COMMON, *flags, "-c", str(_SOURCES / f"{unit}.cpp"), "-o", objects[unit]]
            for unit, flags in units.items()
        ]
        list(threads.map(_run, commands))
        _run([compiler, "-shared", "-pthread", *objects.values(), "-o", f"{folder}/library.so"])
        Path(folder, "library.so").replace(path)


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_TIMEOUT_S)  # noqa: S603 our own
    except subprocess.TimeoutExpired:
        raise KernelsUnavailable(f"{command[0]} took more than {_COMPILE_TIMEOUT_S:.0f} seconds") from None
    if done.returncode != 0:
        reason = next((line for line in done.stderr.splitlines() if "error" in line), f"exit code {done.returncode}")
        raise KernelsUnavailable(f"{command[0]} failed: {reason}")
    return done.stdout
