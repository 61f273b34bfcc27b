"""What a node says of its machine comes from the machine."""

import os
import subprocess
from pathlib import Path

import pytest

from openlora.node.hardware import Gpu, read_gpus, read_hardware

STUB = r"""
#include <string.h>
typedef struct { unsigned long long total, free, used; } memory_t;
int nvmlInit_v2(void) { return INIT; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 3; return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { strncpy(text, "550.54.15", size); return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    if (index == 1) return 15; /* NVML_ERROR_GPU_IS_LOST */
    *device = (void *)(0x100000000UL + index);
    return 0;
}
int nvmlDeviceGetName(void *device, char *text, unsigned size) {
    strncpy(text, device == (void *)0x100000000UL ? "NVIDIA H100 80GB HBM3" : "Tesla \xff", size);
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *device, memory_t *memory) {
    memory->total = 85899345920ULL + ((unsigned long)device & 0xff);
    return 0;
}
typedef struct { unsigned gpu, memory; } utilization_t;
int nvmlDeviceGetUtilizationRates(void *device, utilization_t *busy) {
    if (device != (void *)0x100000000UL) return 3; /* NVML_ERROR_NOT_SUPPORTED */
    busy->gpu = 87;
    return 0;
}
"""


def test_this_machine_is_read() -> None:
    hardware = read_hardware()
    assert hardware.cores == len(os.sched_getaffinity(0))
    assert hardware.ram_bytes > 256 << 20
    assert hardware.cpu


@pytest.mark.parametrize(
    ("text", "cpu"),
    [
        ("processor\t: 0\nmodel name\t: AMD EPYC  7B13\nmodel name\t: other\n", "AMD EPYC 7B13"),
        ("processor\t: 0\nCPU part : 0xd0c\n", ""),
        ("Model : Raspberry Pi 5\n", "Raspberry Pi 5"),
        ("", ""),
    ],
)
def test_processors_of_every_kind(tmp_path: Path, text: str, cpu: str) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert read_hardware(cpuinfo=tmp_path / "cpuinfo").cpu == cpu


def test_nothing_is_raised_for_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "not a library").write_bytes(b"\x7fELF")
    hardware = read_hardware(cpuinfo=tmp_path / "none", nvml=str(tmp_path / "not a library"))
    assert (hardware.cpu, hardware.gpus) == ("", ())
    assert read_gpus("libc.so.6") == (), "a library without NVML's functions"


@pytest.mark.slow
@pytest.mark.parametrize("init", [0, 9])
def test_gpus_by_nvml(tmp_path: Path, init: int) -> None:
    source, library = tmp_path / "nvml.c", tmp_path / f"libnvidia-ml.{init}.so"
    source.write_text(STUB)
    subprocess.run(["cc", "-shared", "-fPIC", f"-DINIT={init}", "-o", library, source], check=True, timeout=60)
    first = Gpu(0, "NVIDIA H100 80GB HBM3", 80 << 30, "550.54.15", busy_percent=87)
    present = (first, Gpu(2, "Tesla �", (80 << 30) + 2, "550.54.15"))
    assert read_gpus(str(library)) == (present if init == 0 else ())
