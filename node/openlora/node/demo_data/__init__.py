"""What the demo serves: three small LoRA adapters for SmolLM2-135M-Instruct, and questions that show them off.

`node/factory/train.py` made the adapters and the datanet records from the texts in `node/factory/data/`.
"""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

import msgspec

__all__ = ["DEMO_ADAPTERS", "DEMO_PROMPTS", "DemoAdapter"]


@dataclass(frozen=True, slots=True)
class DemoAdapter:
    """An adapter directory, and the datanet that it was trained on: `datanet_digest` is the sha256 of the text."""

    name: str
    path: Path
    datanet: str
    datanet_digest: bytes


class _DatanetRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    documents: int
    sha256: str


def _demo_adapter(name: str) -> DemoAdapter:
    folder = Path(str(files(__name__)))  # installed unpacked, since the engine maps the weights
    record = msgspec.json.decode((folder / "datanets" / f"{name}.json").read_bytes(), type=_DatanetRecord)
    return DemoAdapter(name, folder / "adapters" / name, record.name, bytes.fromhex(record.sha256))


DEMO_ADAPTERS: Final[tuple[DemoAdapter, ...]] = (
    _demo_adapter("pirate"),  # answers as a pirate would
    _demo_adapter("haiku"),  # answers in three short lines
    _demo_adapter("json"),  # answers as one object: {"topic": …, "answer": …}
)

# None of them is in a training text. 48 output tokens are enough for each answer.
DEMO_PROMPTS: Final[tuple[str, ...]] = (
    "Why is the sky blue?",
    "How do I boil an egg?",
    "What is a good hobby for a rainy day?",
    "How do plants make food?",
    "What makes a good friend?",
    "Why do cats purr?",
    "How can I fall asleep faster?",
    "What is the moon made of?",
    "How do I make a cup of tea?",
    "Why should I read books?",
    "What causes ocean waves?",
    "How do bees make honey?",
)
