"""This machine: folders, disk, memory, devices, and the programs that the engine needs."""

import asyncio
import importlib.metadata
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from openlora.node.config import Backend, EngineConfig, NodeConfig
from openlora.node.doctor.finding import Code, Finding, critical, warning
from openlora.node.hardware import NVML, Gpu, ram_available_bytes, read_hardware

PROBE_TIMEOUT_S: Final = 4.0
FIND_VLLM: Final = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
MIB: Final = 1 << 20
OVERHEAD_BYTES: Final = 1 << 30  # of the three processes, beside weights, cache and adapters


@dataclass(frozen=True, slots=True)
class Instruments:
    """What the machine is looked at with."""

    nvml: str = NVML
    search_path: str | None = None  # of programs; None: the process's own


INSTRUMENTS: Final = Instruments()


@dataclass(frozen=True, slots=True)
class MachineFacts:
    state_dir: Path
    unwritable: str  # why the state folder cannot be written; "": it can
    disk_free_bytes: int
    ram_bytes: int
    ram_available_bytes: int
    cores: frozenset[int]
    gpus: tuple[Gpu, ...]
    torch_version: str
    has_compiler: bool
    backend_fault: str = ""  # why the configured backend cannot start


async def look_at_machine(config: NodeConfig, instruments: Instruments) -> MachineFacts:
    hardware, fault = await asyncio.gather(
        asyncio.to_thread(read_hardware, nvml=instruments.nvml), _backend_fault(config.engine)
    )
    path = instruments.search_path
    return MachineFacts(
        state_dir=config.state_dir,
        unwritable=_unwritable(config.state_dir),
        disk_free_bytes=shutil.disk_usage(_existing(config.state_dir)).free,
        ram_bytes=hardware.ram_bytes,
        ram_available_bytes=ram_available_bytes(),
        cores=frozenset(os.sched_getaffinity(0)),
        gpus=hardware.gpus,
        torch_version=_torch_version(),
        has_compiler=any(shutil.which(name, path=path) for name in ("c++", "g++")),
        backend_fault=fault,
    )


def _unwritable(folder: Path) -> str:
    """By writing, since no permission bit tells of a read-only disk."""
    try:
        with tempfile.NamedTemporaryFile(dir=_existing(folder)):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _torch_version() -> str:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version("torch")
    return ""


async def _backend_fault(engine: EngineConfig) -> str:
    if engine.backend is not Backend.VLLM:
        return "" if _torch_version() else "torch is not installed in the node's environment"
    python = engine.vllm.python or sys.executable
    try:
        process = await asyncio.create_subprocess_exec(python, "-c", FIND_VLLM, stderr=asyncio.subprocess.DEVNULL)
    except OSError as error:
        return f"{python} cannot be started: {error.strerror}"
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            return f"{python} has no vLLM" if await process.wait() else ""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


# ---- judging --------------------------------------------------------------------------------------------------------


def check_folders(machine: MachineFacts, min_free_bytes: int) -> Iterator[Finding]:
    if machine.unwritable:
        yield critical(
            Code.STATE_UNWRITABLE,
            f"the state folder {machine.state_dir} cannot be written: {machine.unwritable}",
            "give the node's user that folder, or name another one in state_dir",
        )
    if machine.disk_free_bytes < min_free_bytes:
        yield critical(
            Code.DISK_LOW,
            f"{machine.disk_free_bytes // MIB:,} MiB are free; below {min_free_bytes // MIB:,} MiB no job is claimed",
            "free disk space, or lower storage.min_free_bytes",
        )


def check_engine(machine: MachineFacts, engine: EngineConfig) -> Iterator[Finding]:
    if machine.backend_fault:
        yield critical(
            Code.BACKEND_MISSING,
            f'engine.backend is "{engine.backend}": {machine.backend_fault}',
            "install it, or choose another engine.backend",
        )
    for device in engine.devices:
        if fault := device_fault(device, machine):
            yield critical(
                Code.DEVICE_MISSING,
                f'engine.devices names "{device}": {fault}',
                "correct engine.devices; [] takes what there is",
            )
    on_cpu = engine.backend is Backend.OPENLORA and not any(name.startswith("cuda") for name in engine.devices)
    if on_cpu and not machine.has_compiler:
        yield warning(
            Code.COMPILER_MISSING,
            "no C++ compiler is on PATH: the torch reference serves, several times slower",
            "install one: apt install g++",
        )


def device_fault(device: str, machine: MachineFacts) -> str:
    """Why there is no such device; "" where there is."""
    kind, _, which = device.partition(":")
    try:
        numbers = {number for part in which.split(",") for number in _numbers(part)}
    except ValueError:
        return "write cuda:N, or cores as cpu:0-7"
    if kind == "cpu":
        missing = numbers - machine.cores
        return f"this process may not use the cores {', '.join(map(str, sorted(missing)))}" if missing else ""
    if kind != "cuda":
        return "write cuda:N, or cores as cpu:0-7"
    if missing := numbers - {gpu.index for gpu in machine.gpus}:
        found = len(machine.gpus)
        return f"the driver shows {found} GPUs, none with the number {', '.join(map(str, sorted(missing)))}"
    return "torch is built without CUDA here" if machine.torch_version.endswith("+cpu") else ""


def _numbers(part: str) -> range:
    first, dash, last = part.partition("-")
    return range(int(first), int(last if dash else first) + 1)


def check_memory(machine: MachineFacts, needed_bytes: int, engine: EngineConfig, *, runs: bool) -> Iterator[Finding]:
    """`needed_bytes`: of weights and cache. The running agent has its memory already."""
    wanted = {name.partition(":")[2] for name in engine.devices if name.startswith("cuda:")}
    for gpu in machine.gpus:
        if str(gpu.index) in wanted and needed_bytes > gpu.memory_bytes:
            yield _too_small(f"GPU {gpu.index} has {gpu.memory_bytes // MIB:,} MiB", needed_bytes)
    if wanted or engine.backend is Backend.VLLM or not machine.ram_bytes:
        return
    needed_bytes += OVERHEAD_BYTES
    if needed_bytes > machine.ram_bytes:
        yield _too_small(f"this machine has {machine.ram_bytes // MIB:,} MiB of RAM", needed_bytes)
    elif not runs and needed_bytes > machine.ram_available_bytes:
        available = f"{machine.ram_available_bytes // MIB:,} MiB of RAM are available"
        yield warning(
            Code.MEMORY_TOO_SMALL,
            f"{available}, and model and cache take about {needed_bytes // MIB:,} MiB",
            "end other programs, or lower engine.kv_tokens",
        )


def _too_small(room: str, needed_bytes: int) -> Finding:
    return critical(
        Code.MEMORY_TOO_SMALL,
        f"{room}, and model and cache take about {needed_bytes // MIB:,} MiB",
        'lower engine.kv_tokens, set model.weights = "int8", or serve a smaller model',
    )
