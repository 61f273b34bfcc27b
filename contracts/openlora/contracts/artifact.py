"""The compiled contracts that ship with the package, as contracts/script/export.py wrote them."""

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

NAMES = (
    "Vault",
    "NodeRegistry",
    "AdapterRegistry",
    "JobQueue",
    "Sessions",
    "Outputs",
    "Disputes",
    "Governance",
    "DevToken",
)


@dataclass(frozen=True, slots=True)
class Artifact:
    """`abi` as solc emits it; `bytecode` creates the contract once constructor arguments are appended."""

    name: str
    abi: list[dict[str, Any]]
    bytecode: bytes


def load_artifact(name: str) -> Artifact:
    """The artefact of one of `NAMES`; raises KeyError for any other."""
    if name not in NAMES:
        raise KeyError(f"no contract named {name!r}; there are {', '.join(NAMES)}")
    text = resources.files("openlora.contracts").joinpath("artifacts", f"{name}.json").read_text(encoding="utf-8")
    document = json.loads(text)
    return Artifact(name=name, abi=document["abi"], bytecode=bytes.fromhex(document["bytecode"].removeprefix("0x")))
