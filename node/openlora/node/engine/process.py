"""The engine's blocking loop, and the main of the child process that runs it.

Commands are drained without waiting while there is work and slept on when there is none; every step's events leave in
one write. The child lives no longer than its parent: the loop ends when the parent's socket closes, and on Linux the
kernel kills a child that is deep in a computation when its parent dies.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from openlora.node.children import die_with_parent
from openlora.node.config import LogConfig
from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.messages import VERSION, Command, Event, Failed, ModelInfo, Ready, Refused, Shutdown, Step
from openlora.node.errors import ConfigError, OpenLoraError
from openlora.node.frames import BlockingFrames
from openlora.node.joining import connected
from openlora.node.logs import set_up
from openlora.node.secrecy import leave_no_core


class Steps(Protocol):
    """What the loop needs of an engine; `Engine` is one, the fake of the tests another."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def has_work(self) -> bool: ...

    def handle(self, command: Command) -> Sequence[Event]: ...

    def step(self) -> Step | None: ...

    def take_refused(self) -> Sequence[Refused]: ...


def run_loop(engine: Steps, frames: BlockingFrames[Command]) -> None:
    """Serve one parent until it says Shutdown or closes its end. Raises FrameError, and what the engine raises."""
    try:
        frames.send(Ready(version=VERSION, model=engine.info))
        while (commands := frames.receive(wait=not engine.has_work)) is not None:
            events: list[Event] = []
            for command in commands:
                if isinstance(command, Shutdown):
                    return
                events.extend(engine.handle(command))
            if engine.has_work:
                if (step := engine.step()) is not None:
                    events.append(step)
                events.extend(engine.take_refused())
            if events:
                frames.send(*events)
    except ConnectionError:  # the parent is gone, and nobody is left to serve
        return


@dataclass(frozen=True, slots=True)
class Arguments:
    """The child's command line."""

    socket: str  # see `openlora.node.joining.connected`
    model: Path
    dtype: str
    weights: str
    limits: dict[str, Any]  # fields of EngineLimits; the others have their defaults
    cache: Path  # keeps compiled kernels
    device: str  # see `use_device`
    log: LogConfig


def main(argv: Sequence[str], load: Callable[[Arguments], Steps]) -> int:
    """Connect, load, serve. A model that cannot be served is one `Failed` sentence to the parent and exit code 2."""
    die_with_parent()
    leave_no_core()
    _let_threads_sleep()
    arguments = _parse(argv, os.environ)
    set_up(arguments.log, os.environ)
    with connected(arguments.socket) as sock:
        frames = BlockingFrames[Command](sock, Command)
        try:
            use_device(arguments.device)
            engine = load(arguments)
        except OpenLoraError as error:
            frames.send(Failed(message=str(error)))
            return error.exit_code
        run_loop(engine, frames)
    return 0


def use_device(device: str) -> None:
    """Confine this process to GPUs, "cuda:1", or cores, "cpu:0-7,16"; "" is all there is. Said before torch comes in.

    Raises ConfigError for anything else, and for cores that are not all there; `require_gpus` looks for the GPUs.
    """
    kind, _, which = device.partition(":")
    try:
        match kind:
            case "":
                return
            case "cuda":
                os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, _numbers(which)))
            case "cpu":
                cores = set(_numbers(which))
                if not cores <= os.sched_getaffinity(0):  # Linux would take those that there are
                    raise ValueError
                os.sched_setaffinity(0, cores)
                os.environ["CUDA_VISIBLE_DEVICES"] = ""
            case _:
                raise ValueError
    except (ValueError, OSError):
        raise ConfigError(f"device {device!r} is none of this machine's: name cuda:N, or cores as cpu:0-7") from None


def require_gpus(device: str) -> None:
    """Raises ConfigError where torch does not see every GPU that `use_device` left it, and would take the CPU."""
    import torch

    kind, _, which = device.partition(":")
    if kind == "cuda" and torch.cuda.device_count() < len(_numbers(which)):
        raise ConfigError(
            f"device {device!r}: torch {torch.__version__} sees no such GPU; compare `nvidia-smi`, and name one that it"
            " sees, cores as cpu:0-7, or no device at all for what there is"
        )


def _numbers(ranges: str) -> list[int]:
    numbers: list[int] = []
    for part in ranges.split(","):
        first, dash, last = part.partition("-")
        numbers.extend(range(int(first), int(last if dash else first) + 1))
    return numbers


def _let_threads_sleep() -> None:
    """OpenMP's threads wait for each other asleep, not spinning; said before torch brings OpenMP in.

    On two cores with other work to do, a spinning thread holds the core that the awaited one needs: 38 output tokens/s
    became 147. An operator's own setting stands.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def _parse(argv: Sequence[str], environment: Mapping[str, str]) -> Arguments:
    parser = argparse.ArgumentParser(prog="openlora.node.engine.process")
    parser.add_argument("--socket", required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--limits", type=lambda text: msgspec.json.decode(text, type=dict[str, int | bool]), default={})
    parser.add_argument("--cache", type=Path, default=user_cache(environment))
    parser.add_argument("--device", default="")
    parser.add_argument("--log", type=lambda text: msgspec.json.decode(text, type=LogConfig), default=LogConfig())
    return Arguments(**vars(parser.parse_args(argv)))


def engine_limits(arguments: Arguments) -> EngineLimits:
    """Raises ConfigError."""
    try:
        return EngineLimits(**arguments.limits)
    except TypeError as error:
        raise ConfigError(f"engine limits: {error}") from None


def user_cache(environment: Mapping[str, str]) -> Path:
    """As the XDG base directory specification has it: relative paths are ignored."""
    named = Path(environment.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "openlora"


def _load(arguments: Arguments) -> Steps:
    from openlora.node.engine.engine import Engine  # torch: only the child pays for importing it

    require_gpus(arguments.device)
    limits = engine_limits(arguments)
    return Engine.load(
        arguments.model, dtype=arguments.dtype, weights=arguments.weights, limits=limits, cache_dir=arguments.cache
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], _load))
