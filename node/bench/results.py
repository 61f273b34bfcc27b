"""The lines that a comparison leaves: one JSON object a measurement."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Line = Mapping[str, Any]
COMMITTED = Path(__file__).parent / "results/beside.jsonl"
OURS, SPECULATING = "OpenLoRA", "OpenLoRA with speculation"
SMALL, LARGE = "smollm2-135m", "llama-3.2-1b-shape"
TITLES = {SMALL: "SmolLM2-135M, ranks 8 to 32", LARGE: "Llama-3.2-1B's shape, rank 16"}


def read_lines(path: Path) -> list[Line]:
    """None where there is no file."""
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def write_lines(path: Path, lines: Sequence[Line], mode: str) -> None:
    """`mode` "w" replaces the file, "a" adds to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(mode, encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def outcome(line: Line) -> str:
    return f"{line['output_tok_s']:,.0f} tok/s" if "output_tok_s" in line else str(line["failed"])
