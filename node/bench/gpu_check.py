"""Whether our CUDA kernels can be trusted on this machine's GPU, and how fast they are there.

    python node/bench/gpu_check.py [--device cuda:0] [--out var/gpu-check]

Three parts: the ops' tests with the kernels compiled and run on the device; our engine there against transformers and
peft; decoding steps with 0 to 64 distinct adapters beside the byte roofline. `results.jsonl` and `report.md` in --out
hold what came of it and can be sent to us as they are; they name the card and versions, and nothing else of the
machine. Once it has passed, `openlora init` recommends our own engine on this kind of card.

Exit codes: 0 passed, 1 failed, 3 no CUDA device. `--device cpu` rehearses it all on a processor, interpreted, at tiny
size, and records nothing.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FAILED, NO_DEVICE = 1, 3
ROOT = Path(__file__).resolve().parents[2]
GRID_LIMIT_S, ATTENTION_LIMIT_S = 330, 60
LIMIT_S = 500  # after which no other form of the weights is begun
Line = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=ROOT / "var/gpu-check")
    arguments = parser.parse_args()
    on_gpu = arguments.device != "cpu"
    if not on_gpu:
        os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
    import torch

    if on_gpu and not torch.cuda.is_available():
        print("gpu-check: no CUDA device was found; it needs an NVIDIA GPU of compute capability 8.0 or later.")
        return NO_DEVICE
    device = torch.device(arguments.device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines = []
    with (arguments.out / "results.jsonl").open("w", encoding="utf-8") as file:
        for found in parts(device):
            print(json.dumps(found), flush=True)
            file.write(json.dumps(found) + "\n")
            lines.append(found)
    passed = all(found.get("passed", True) for found in lines)
    (arguments.out / "report.md").write_text(report(lines, passed=passed), encoding="utf-8")
    if passed and on_gpu:
        remember(lines[0])
    print(f"gpu-check: {'passed' if passed else 'FAILED'}; the report is {arguments.out / 'report.md'}")
    return 0 if passed else FAILED


def parts(device: Any) -> Iterator[Line]:
    """Each part's lines as they come; an error ends its own part alone."""
    started_s = time.monotonic()
    yield {"part": "machine", **machine(device)}
    yield from guarded("kernels", kernels, device)
    yield from guarded("parity", parity, device)
    yield from guarded("decoding", lambda device: decoding(device, started_s + LIMIT_S), device)
    yield {"part": "time", "seconds": round(time.monotonic() - started_s, 1)}


def guarded(part: str, run: Any, device: Any) -> Iterator[Line]:
    try:
        for found in run(device):
            yield {"part": part, **found}
    except Exception as error:  # whatever a device does is a result, and the report must be written
        yield {"part": part, "passed": False, "failed": f"{type(error).__name__}: {error}"[:500]}


def machine(device: Any) -> Line:
    import torch

    from openlora.node.engine.choice import compiler_versions, kernels_digest
    from openlora.node.hardware import read_gpus

    found = {"python": platform.python_version(), "kernels": kernels_digest(), **compiler_versions()}
    found |= {"at": datetime.now(UTC).isoformat(timespec="seconds")}
    if device.type != "cuda":
        return {"card": "no card, rehearsed on a processor", **found}
    properties = torch.cuda.get_device_properties(device)
    drivers = {gpu.driver for gpu in read_gpus()}
    return {
        "card": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "driver": ", ".join(sorted(drivers)),
        **found,
    }


def kernels(device: Any) -> Iterator[Line]:
    """The ops' tests; on a device all of them, and attention once more with FlashInfer where it is installed."""
    from openlora.node.engine.choice import compiler_versions

    if device.type != "cuda":
        yield tests(device, "Triton", ["tests/kernels/test_elementwise.py"], GRID_LIMIT_S, {})
        return
    workers = str(min(8, os.cpu_count() or 1))  # they compile, each for itself, and share the device
    yield tests(device, "Triton", ["tests/kernels", "--whole-grid", "-n", workers], GRID_LIMIT_S, {})
    if "flashinfer-python" in compiler_versions():
        chosen = ["tests/kernels/test_attention.py", "--whole-grid"]
        yield tests(device, "FlashInfer", chosen, ATTENTION_LIMIT_S, {"OPENLORA_KERNELS_FLASHINFER": "1"})


def tests(device: Any, name: str, chosen: Sequence[str], limit_s: int, environment: dict[str, str]) -> Line:
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder, "counts.json")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "[triton", *chosen]
        own = os.environ | environment | {"OPENLORA_KERNELS_DEVICE": str(device)}
        own.pop("TRITON_INTERPRET", None)
        try:
            ended = subprocess.run(
                [*command, "--counts", str(counts)], cwd=ROOT, env=own, capture_output=True, text=True, timeout=limit_s
            )
        except subprocess.TimeoutExpired:
            reason = f"not all tests ran within {limit_s} s; what was compiled is kept: a second run gets further"
            return {"kernels": name, "passed": False, "failed": reason}
        if not counts.exists():
            return {"kernels": name, "passed": False, "failed": (ended.stdout + ended.stderr)[-500:]}
        found = json.loads(counts.read_text())
    return {"kernels": name, "passed": ended.returncode == 0, "tests": found}


def parity(device: Any) -> Iterator[Line]:
    from bench import gpu_parity

    size = gpu_parity.DEVICE if device.type == "cuda" else gpu_parity.REHEARSAL
    yield gpu_parity.parity(device, size)


def decoding(device: Any, until_s: float) -> Iterator[Line]:
    """In bfloat16, then with weights of fewer bits while there is time."""
    from bench import gpu_decode

    shape = gpu_decode.fitting(device)
    for form in ("full", "int8", "int4") if device.type == "cuda" else ("full",):
        if form == "full" or time.monotonic() < until_s:
            yield from gpu_decode.decoding(device, shape, form)


def remember(found: Line) -> None:
    """Let `openlora init` know."""
    from openlora.node.engine.choice import CardCheck, checks_file, record_check
    from openlora.node.engine.process import user_cache

    kept = ("driver", "cuda", "torch", "triton", "flashinfer-python")
    versions = {name: str(found[name]) for name in kept if name in found}
    check = CardCheck(card=found["card"], kernels=found["kernels"], passed_at=found["at"], versions=versions)
    record_check(checks_file(user_cache(os.environ)), check)


# ---- the report -----------------------------------------------------------------------------------------------------


def report(lines: Sequence[Line], *, passed: bool) -> str:
    """Markdown."""
    by_part: dict[str, list[Line]] = {}
    for found in lines:
        by_part.setdefault(found["part"], []).append(found)
    (about,) = by_part["machine"]
    versions = [f"{key} {value}" for key, value in about.items() if key not in ("part", "card", "at", "kernels")]
    return "\n".join(
        [
            f"# OpenLoRA's CUDA kernels on {about['card']}: {'passed' if passed else 'FAILED'}",
            "",
            f"{about['at']}; {', '.join(versions)}; kernels {about['kernels'][:12]}.",
            "",
            *(kernels_text(found) for found in by_part["kernels"]),
            *(parity_text(found) for found in by_part["parity"]),
            "",
            *decoding_table(by_part["decoding"]),
            "",
            f"All of it took {by_part['time'][0]['seconds']} s.",
            "",
        ]
    )


def kernels_text(found: Line) -> str:
    name = found.get("kernels", "Kernels")
    if "failed" in found:
        return f"- {name}: FAILED: {found['failed']}"
    counts = found["tests"]
    said = f"- {name}: {counts['passed']} tests passed, {counts['failed'] + counts['error']} failed"
    return "\n".join([said, *(f"  - {test}" for test in counts["failed_tests"])])


def parity_text(found: Line) -> str:
    if "tolerance" not in found:
        return f"- Parity with transformers and peft: FAILED: {found['failed']}"
    differences = f"log-probabilities within {found['logprob_difference']:.1e}, of decoded tokens within "
    differences += f"{found['decoded_logprob_difference']:.1e}; the limit is {found['tolerance']:.0e}"
    return f"- Parity with transformers and peft: {'passed' if found['passed'] else 'FAILED'}: {differences}"


def decoding_table(lines: Sequence[Line]) -> list[str]:
    if failed := [found["failed"] for found in lines if "failed" in found]:
        return [f"Decoding: FAILED: {failed[0]}"]
    first = lines[0]
    title = f"Decoding steps of {first['model']}'s shape, batch {first['batch']}, context {first['context']}, adapters "
    title += f"of rank {first['rank']}; the byte roofline at {first['copy_gb_s']:,.0f} GB/s, as memory copies."
    rows = [
        f"| {one['weights']} | {one['adapters']} | {'yes' if one['captured'] else 'no'} | {one['step_ms']:,.2f} | "
        f"{one['roofline_ms']:,.2f} | {one['of_roofline']:.0%} | {one['output_tok_s']:,.0f} |"
        for one in lines
    ]
    head = "| weights | distinct adapters | captured | step, ms | roofline, ms | of the roofline | output tok/s |"
    return [title, "", head, "|---|--:|---|--:|--:|--:|--:|", *rows]


if __name__ == "__main__":
    sys.exit(main())
