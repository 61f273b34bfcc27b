"""Where the Foundry tools are: a checkout's npm packages, else PATH."""

import shutil
from pathlib import Path


def find_tool(name: str) -> Path | None:
    """The executable `forge`, `anvil` or `cast`; None where it is not installed (`npm ci --ignore-scripts` does it)."""
    contracts = Path(__file__).resolve().parents[2]
    local = contracts / "node_modules" / "@foundry-rs" / f"{name}-linux-amd64" / "bin" / name
    if local.is_file():
        return local
    found = shutil.which(name)
    return None if found is None else Path(found)
