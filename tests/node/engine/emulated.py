"""The units of the compiled decoder that this processor lacks, in the instructions that it has."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from openlora.kernels.cpu import build

HEADER = Path(__file__).with_name("matrix_unit.h")
UNITS = {"amx": "amx_bf16", "avx512-bf16": "avx512_bf16"}  # and the flag of processors that have it
NEEDED = {"avx512_vnni", "avx512_vbmi2"}


@contextmanager
def emulated(unit: str) -> Iterator[None]:
    """A library built in here has the unit even if the processor has not, as long as it has AVX-512 with VNNI."""
    with pytest.MonkeyPatch.context() as patch:
        flags = _processor_flags()
        if unit in UNITS and UNITS[unit] not in flags and flags >= NEEDED:
            include = ("-include", str(HEADER), f"-DVERSION={zlib.crc32(HEADER.read_bytes())}")  # for the cache
            units = {name: (*build._X86_UNITS[name], *include) for name in ("amx", "avx512_bf16")}
            patch.setattr(build, "_X86_UNITS", build._X86_UNITS | units)
        yield


def _processor_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split())
    return set()
