"""What the calls cost is what the snapshot says."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "contracts" / "script" / "gas.py"


@pytest.mark.slow
def test_gas_is_as_the_snapshot_says() -> None:
    result = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{result.stdout}{result.stderr}\nif that is meant: contracts/script/gas.py --write"
