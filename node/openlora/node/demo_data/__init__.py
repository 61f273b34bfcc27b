"""What the demo serves: three small LoRA adapters for SmolLM2-135M-Instruct, and questions that show them off.

`node/factory/train.py` made the adapters and the records of their texts from the texts in `node/factory/data/`.
"""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

import msgspec

from openlora.node.catalogue import datanet_root

__all__ = ["DEMO_ADAPTERS", "DEMO_DATANETS", "DEMO_PROMPTS", "DemoAdapter", "DemoDatanet", "DemoText"]


@dataclass(frozen=True, slots=True)
class DemoText:
    """What one data provider contributed: so many documents, and the sha256 of their text."""

    documents: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class DemoDatanet:
    """A body of texts, each of another data provider."""

    name: str
    texts: tuple[DemoText, ...]

    @property
    def root(self) -> bytes:
        return datanet_root(text.digest for text in self.texts)


@dataclass(frozen=True, slots=True)
class DemoAdapter:
    """An adapter directory, and the name of the datanet that it was trained on."""

    name: str
    path: Path
    datanet: str


class _DatanetRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    documents: int
    sha256: str


_FOLDER: Final = Path(str(files(__name__)))  # installed unpacked, since the engine maps the weights


def _text(name: str) -> DemoText:
    record = msgspec.json.decode((_FOLDER / "datanets" / f"{name}.json").read_bytes(), type=_DatanetRecord)
    return DemoText(record.documents, bytes.fromhex(record.sha256))


DEMO_DATANETS: Final[tuple[DemoDatanet, ...]] = (
    DemoDatanet("voices", (_text("pirate"), _text("haiku"))),
    DemoDatanet("structured answers", (_text("json"),)),
)

DEMO_ADAPTERS: Final[tuple[DemoAdapter, ...]] = (
    DemoAdapter("pirate", _FOLDER / "adapters" / "pirate", "voices"),  # answers as a pirate would
    DemoAdapter("haiku", _FOLDER / "adapters" / "haiku", "voices"),  # answers in three short lines
    DemoAdapter("json", _FOLDER / "adapters" / "json", "structured answers"),  # {"topic": …, "answer": …}
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
    "What is the best way to learn a song?",
    "Why do leaves change colour?",
    "How does a bicycle stay upright?",
    "How do ships float?",
    "Why is the sea salty?",
    "How do birds find their way?",
    "What makes bread rise?",
    "How can I be on time?",
    "Why do we dream?",
    "How does a magnet know where north is?",
    "How do I keep a plant alive?",
    "Where does the wind come from?",
)
