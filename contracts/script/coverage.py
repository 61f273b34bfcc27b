"""How much of src/ the tests run, line by line; ends with 1 below the floor.

`forge coverage` instruments what the lite profile compiles, without the optimiser and not through the IR, whose source
maps would lose lines. Fuzzing is short, since it finds no new ones.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from openlora.contracts.toolchain import find_tool

CONTRACTS = Path(__file__).resolve().parent.parent
FLOOR_PERCENT = 97.0
SHORT = {
    "FOUNDRY_PROFILE": "lite",
    "FOUNDRY_FUZZ_RUNS": "16",
    "FOUNDRY_INVARIANT_RUNS": "4",
    "FOUNDRY_INVARIANT_DEPTH": "50",
}


def lines_of(lcov: str) -> dict[str, dict[int, int]]:
    """Line → how often it ran, by source file, of the contracts that are deployed."""
    files: dict[str, dict[int, int]] = {}
    current: dict[int, int] = {}
    for row in lcov.splitlines():
        if row.startswith("SF:"):
            current = files.setdefault(row.removeprefix("SF:"), {})
        elif row.startswith("DA:"):
            line, hits = row.removeprefix("DA:").split(",")[:2]
            current[int(line)] = max(current.get(int(line), 0), int(hits))
    return {name: lines for name, lines in files.items() if name.startswith("src/")}


def main() -> int:
    forge = find_tool("forge")
    if forge is None:
        raise SystemExit("there is no forge: run `npm ci --ignore-scripts` in contracts/")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "lcov.info"
        command = [str(forge), "coverage", "--report", "lcov", "--report-file", str(report)]
        environment = os.environ | SHORT | {"FOUNDRY_OUT": f"{folder}/out", "FOUNDRY_CACHE_PATH": f"{folder}/cache"}
        subprocess.run(command, cwd=CONTRACTS, env=environment, check=True, stdout=subprocess.DEVNULL)
        files = lines_of(report.read_text(encoding="utf-8"))
    for name, lines in sorted(files.items()):
        missed = [line for line, hits in sorted(lines.items()) if hits == 0]
        print(
            f"{name:42} {len(lines) - len(missed):>4} of {len(lines):>4}  {'missed: ' if missed else ''}{missed or ''}"
        )
    total = sum(map(len, files.values()))
    percent = 100 * sum(hits > 0 for lines in files.values() for hits in lines.values()) / total
    print(f"{percent:.2f} % of {total} lines; the floor is {FLOOR_PERCENT} %")
    return int(percent < FLOOR_PERCENT)


if __name__ == "__main__":
    sys.exit(main())
