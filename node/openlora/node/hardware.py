"""What this machine is: read from it, never from the configuration. What cannot be read is left out, not guessed."""

import ctypes
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

NVML: Final = "libnvidia-ml.so.1"
_TEXT_BYTES: Final = 96


@dataclass(frozen=True, slots=True)
class Gpu:
    index: int  # as the driver counts
    name: str
    memory_bytes: int
    driver: str
    memory_used_bytes: int = 0  # at the time of reading, by every process
    busy_percent: int | None = None  # of the time just before the reading; None where the driver does not tell


@dataclass(frozen=True, slots=True)
class Hardware:
    cpu: str  # model name; empty when unknown
    cores: int  # that this process may use
    ram_bytes: int  # 0 when unknown
    gpus: tuple[Gpu, ...]


def read_hardware(*, cpuinfo: Path = Path("/proc/cpuinfo"), nvml: str = NVML) -> Hardware:
    """This machine. Raises nothing for what is missing; takes some 10 ms, most of them NVML's."""
    return Hardware(_cpu_model(cpuinfo), _cores(), _ram_bytes(), read_gpus(nvml))


def _cpu_model(cpuinfo: Path) -> str:
    """The first processor's `model name`, or what other architectures than x86 call it."""
    with suppress(OSError):
        fields: dict[str, str] = {}
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
        for key in ("model name", "Model", "cpu model", "uarch"):
            if fields.get(key):
                return " ".join(fields[key].split())
    return ""


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 0


def ram_available_bytes() -> int:
    """What new work can have without swapping, as the kernel estimates it; 0 when unknown."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0


def link_mbit(*, routes: Path = Path("/proc/net/route"), interfaces: Path = Path("/sys/class/net")) -> int:
    """The speed of the interface that leads to the internet, in Mbit/s as its driver says; 0 when it does not."""
    with suppress(OSError, ValueError, IndexError):
        for line in routes.read_text().splitlines()[1:]:
            name, destination = line.split()[:2]
            if int(destination, 16) == 0:
                return max(0, int((interfaces / name / "speed").read_text()))
    return 0


def _ram_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0


# ---- NVML: https://docs.nvidia.com/deploy/nvml-api/ -----------------------------------------------------------------


class _Memory(ctypes.Structure):
    """nvmlMemory_t"""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Utilization(ctypes.Structure):
    """nvmlUtilization_t: percent of the last sample period"""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


def read_gpus(library: str = NVML) -> tuple[Gpu, ...]:
    """NVIDIA GPUs by the driver's own library; none where it is not installed or does not answer."""
    try:
        nvml = ctypes.CDLL(library)
        if nvml.nvmlInit_v2() != 0:
            return ()
        try:
            return _gpus(nvml)
        finally:
            nvml.nvmlShutdown()
    except (OSError, AttributeError):  # no such library, or one without the functions of the last ten years
        return ()


def _gpus(nvml: ctypes.CDLL) -> tuple[Gpu, ...]:
    count = ctypes.c_uint()
    driver = ctypes.create_string_buffer(_TEXT_BYTES)
    if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return ()
    nvml.nvmlSystemGetDriverVersion(driver, _TEXT_BYTES)
    found = (_gpu(nvml, index, _text(driver)) for index in range(count.value))
    return tuple(gpu for gpu in found if gpu is not None)


def _gpu(nvml: ctypes.CDLL, index: int, driver: str) -> Gpu | None:
    """None for a GPU that this process may not see, or that has fallen off the bus."""
    device, memory = ctypes.c_void_p(), _Memory()
    name = ctypes.create_string_buffer(_TEXT_BYTES)
    if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) != 0:
        return None
    if nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)) != 0:
        return None
    nvml.nvmlDeviceGetName(device, name, _TEXT_BYTES)
    busy = _Utilization()
    told = nvml.nvmlDeviceGetUtilizationRates(device, ctypes.byref(busy)) == 0
    return Gpu(index, _text(name), int(memory.total), driver, int(memory.used), int(busy.gpu) if told else None)


def _text(buffer: "ctypes.Array[ctypes.c_char]") -> str:
    return buffer.value.decode("utf-8", "replace")
