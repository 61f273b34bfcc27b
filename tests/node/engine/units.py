"""The units of the compiled decoder on the processor at hand: as they are, or in the instructions that it has."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from openlora.kernels.cpu import build

AVX512 = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd"}
BF16 = AVX512 | {"avx512_vnni", "avx512_bf16"}
NEEDED = {  # as /proc/cpuinfo says; "": the best there is
    "": set[str](),
    "plain": set[str](),
    "avx2": {"avx2", "fma"},
    "avx512": AVX512,
    "avx512-bf16": BF16,
    "amx": BF16 | {"avx512_vbmi2", "amx_tile", "amx_bf16", "amx_int8"},
}
EMULATED = {"avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"}
EMULATION, CLAIMS = (Path(__file__).with_name(name) for name in ("matrix_unit.h", "claims.h"))
EMULATION_NEEDS = AVX512 | {"avx512_vnni", "avx512_vbmi2"}


@contextmanager
def with_unit(unit: str) -> Iterator[None]:
    """A library that is loaded in here has the unit, emulated if need be; where that cannot be either, the test is
    skipped."""
    has = _processor_flags()
    lacks = NEEDED[unit] - has
    with pytest.MonkeyPatch.context() as patch:
        if lacks and lacks <= EMULATED and has >= EMULATION_NEEDS:
            for unit, header in (("amx", EMULATION), ("avx512_bf16", EMULATION), ("choice", CLAIMS)):
                version = zlib.crc32(header.read_bytes())  # each state of a header has a library of its own
                units = build._ANY_UNITS if unit in build._ANY_UNITS else build._X86_UNITS
                patch.setitem(units, unit, (*units[unit], "-include", str(header), f"-DVERSION={version}"))
        elif lacks:
            pytest.skip(f"this processor has no {', '.join(sorted(lacks))}")
        yield


def _processor_flags() -> set[str]:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            return set(line.split())
    return set()
