"""Writes contracts/openlora/contracts/artifacts/<Name>.json from Forge's out/ (run `forge build` first).

Each holds `abi`, the creation `bytecode`, and `notices`: the NatSpec sentence of each function, which bind.py turns
into docstrings. The default profile's output is a function of the sources and the pinned compiler alone.
"""

import json
import sys
from pathlib import Path

from openlora.contracts.artifact import NAMES

CONTRACTS = Path(__file__).resolve().parent.parent
ARTIFACTS = CONTRACTS / "openlora" / "contracts" / "artifacts"


def artifact(out: Path, name: str) -> str:
    """The artefact of one contract as committed text."""
    built = json.loads((out / f"{name}.sol" / f"{name}.json").read_text())
    if built["bytecode"]["linkReferences"]:
        raise SystemExit(f"{name} needs linking: its libraries must be internal")
    methods = built["metadata"]["output"]["userdoc"].get("methods", {})
    document = {
        "abi": built["abi"],
        "bytecode": built["bytecode"]["object"],
        "notices": {signature: doc["notice"] for signature, doc in sorted(methods.items()) if "notice" in doc},
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def main(out: Path) -> None:
    ARTIFACTS.mkdir(exist_ok=True)
    for name in NAMES:
        (ARTIFACTS / f"{name}.json").write_text(artifact(out, name), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else CONTRACTS / "out")
