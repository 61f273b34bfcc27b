"""Which engine suits the machine that a node is set up on, and why.

Our CUDA kernels are trusted on a card once `make gpu-check` has passed there. It leaves a record for each card, which
holds for the kernels and the compilers that were checked, and for no others.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import msgspec

import openlora.kernels
from openlora.node.config import Backend
from openlora.node.hardware import Hardware

_COMPILERS = ("torch", "triton", "flashinfer-python")
_MAX_RECORD_BYTES = 1 << 20


class CardCheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`make gpu-check` passed on this kind of card."""

    card: str  # as NVML names it
    kernels: str  # `kernels_digest` of what was checked
    passed_at: str  # ISO 8601, UTC
    versions: Mapping[str, str]  # of openlora, torch, triton, CUDA, the driver, …


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend, and why it suits: one or two sentences for the operator."""

    backend: Backend
    reason: str


def choose_backend(hardware: Hardware, checks: Iterable[CardCheck]) -> Choice:
    """Our own engine on a CPU and on cards that are all among the `checks`; vLLM on any other card."""
    if not hardware.gpus:
        return Choice(Backend.OPENLORA, "No NVIDIA GPU was found: our own engine computes on the processor.")
    cards = {gpu.name for gpu in hardware.gpus}
    if unchecked := sorted(cards - {check.card for check in checks}):
        return Choice(
            Backend.VLLM,
            f"Our CUDA kernels have not passed their check on {', '.join(unchecked)}: vLLM serves there, from the "
            "environment that [engine.vllm] python names. `make gpu-check` takes ten minutes; once it has passed, our "
            "own engine can serve.",
        )
    return Choice(Backend.OPENLORA, f"Our CUDA kernels have passed their check on {', '.join(sorted(cards))}.")


# ---- records --------------------------------------------------------------------------------------------------------


def checks_file(cache_dir: Path) -> Path:
    return cache_dir / "gpu-checks.json"


def passed_checks(file: Path, kernels: str) -> tuple[CardCheck, ...]:
    """The records that hold for the kernels of this digest; none where the file is missing or not readable, since the
    check can be made again."""
    return tuple(check for check in _read(file) if check.kernels == kernels)


def record_check(file: Path, check: CardCheck) -> None:
    """Add a card's record in the place of an older one."""
    kept = [other for other in _read(file) if other.card != check.card]
    file.parent.mkdir(parents=True, exist_ok=True)
    written = file.with_suffix(".new")
    written.write_bytes(msgspec.json.format(msgspec.json.encode([*kept, check])))
    written.replace(file)


def _read(file: Path) -> Sequence[CardCheck]:
    try:
        with file.open("rb") as opened:
            return msgspec.json.decode(opened.read(_MAX_RECORD_BYTES), type=list[CardCheck])
    except (OSError, msgspec.DecodeError):
        return []


def kernels_digest() -> str:
    """Of the installed CUDA kernels' sources and of what compiles them."""
    folder = Path(next(iter(openlora.kernels.__path__)))
    digest = hashlib.sha256()
    for source in sorted([*folder.glob("*.py"), *folder.glob("triton/*.py")]):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    for name, version in compiler_versions().items():
        digest.update(f"{name}={version}\0".encode())
    return digest.hexdigest()


def compiler_versions() -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in _COMPILERS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
