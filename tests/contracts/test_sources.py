"""The committed artefacts are what the sources compile to."""

import os
import runpy
import subprocess
from pathlib import Path

import pytest

from openlora.contracts.artifact import NAMES
from openlora.contracts.toolchain import find_tool

CONTRACTS = Path(__file__).parents[2] / "contracts"


@pytest.mark.slow
def test_the_committed_artefacts_are_what_the_sources_compile_to(tmp_path: Path) -> None:
    forge = find_tool("forge")
    assert forge is not None, "run `npm ci --ignore-scripts` in contracts/"
    folders = ["--out", str(tmp_path / "out"), "--cache-path", str(tmp_path / "cache")]
    command = [str(forge), "build", "--skip", "test", *folders]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FOUNDRY_")}
    result = subprocess.run(command, cwd=CONTRACTS, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    export = runpy.run_path(str(CONTRACTS / "script" / "export.py"))
    for name in NAMES:
        committed = (CONTRACTS / "openlora/contracts/artifacts" / f"{name}.json").read_text(encoding="utf-8")
        assert export["artifact"](tmp_path / "out", name) == committed, f"{name}: run contracts/script/export.py"


FUNDING = ("github.com/sponsors", "paulmillr.com/funding")  # the addresses that packages give of themselves


def test_the_lock_file_names_no_registry() -> None:
    lines = (CONTRACTS / "package-lock.json").read_text().splitlines()
    assert [line for line in lines if "resolved" in line] == []
    assert all(any(page in line for page in FUNDING) for line in lines if "://" in line)
