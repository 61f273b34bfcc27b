"""The units of the compiled decoder on the processor at hand: as they are, or in the instructions that it has."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from openlora.kernels.cpu import build

EMULATED = {"avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"}
EMULATION, CLAIMS = (Path(__file__).with_name(name) for name in ("matrix_unit.h", "claims.h"))
EMULATION_NEEDS = build.NEEDED_FLAGS["avx512_vnni"] | {"avx512_vbmi2"}


@contextmanager
def with_unit(unit: str) -> Iterator[None]:
    """A library that is loaded in here has the unit, emulated if need be; where that cannot be either, the test is
    skipped."""
    has = build.processor_flags()
    lacks = build.NEEDED_FLAGS.get(unit.replace("-", "_"), frozenset()) - has  # "", the best there is, needs nothing
    with pytest.MonkeyPatch.context() as patch:
        if lacks and lacks <= EMULATED and has >= EMULATION_NEEDS:
            patch.setattr(build, "processor_flags", lambda: has | EMULATED)
            for unit, header in (("amx", EMULATION), ("avx512_bf16", EMULATION), ("choice", CLAIMS)):
                version = zlib.crc32(header.read_bytes())  # each state of a header has a library of its own
                units = build._ANY_UNITS if unit in build._ANY_UNITS else build._X86_UNITS
                patch.setitem(units, unit, (*units[unit], "-include", str(header), f"-DVERSION={version}"))
        elif lacks:
            pytest.skip(f"this processor has no {', '.join(sorted(lacks))}")
        yield
