"""What the registry's events tell: names, owners and recipes, kept in the journal so that nobody asks the chain again.

The names are strangers' words: labels, never identities.
"""

from typing import TypeVar

import msgspec

from openlora.contracts import AdapterRegistered, BaseRegistered, DatanetCreated, RecipeRegistered
from openlora.node.job import BlockRef
from openlora.node.journal import Journal

MAX_NAME_CHARS = 64


class Named(msgspec.Struct, frozen=True):
    """A base model, an adapter or a datanet; `owner` is its payee, or who created it."""

    name: str
    owner: str


class Composition(msgspec.Struct, frozen=True):
    """A recipe: its adapters' digests and weights, in 1/10,000."""

    base_id: str
    adapters: tuple[str, ...]
    weights: tuple[int, ...]


Document = TypeVar("Document", Named, Composition)


class Registered:
    """Registrations by kind and id: 0x and hex digits of bases and adapters, numbers of datanets and recipes."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def apply(self, event: object, block: BlockRef) -> None:
        """Records one event of `block`, in the follower's transaction; passes over what registers nothing."""
        match event:
            case BaseRegistered():
                self._record("base", _hex(event.base_id), _named(event.name, event.payee), block)
            case AdapterRegistered():
                self._record("adapter", _hex(event.digest), _named(event.name, event.owner), block)
            case DatanetCreated():
                self._record("datanet", str(event.datanet_id), _named(event.name, event.owner), block)
            case RecipeRegistered():
                adapters = tuple(map(_hex, event.adapters))
                composition = Composition(_hex(event.base_id), adapters, tuple(event.weights))
                self._record("recipe", str(event.recipe_id), composition, block)

    def base(self, base_id: str) -> Named | None:
        return self._find("base", base_id, Named)

    def adapter(self, digest: str) -> Named | None:
        return self._find("adapter", digest, Named)

    def datanet(self, datanet_id: int) -> Named | None:
        return self._find("datanet", str(datanet_id), Named)

    def recipe(self, recipe_id: int) -> Composition | None:
        return self._find("recipe", str(recipe_id), Composition)

    def _record(self, kind: str, name: str, document: Named | Composition, block: BlockRef) -> None:
        with self._journal.transaction() as db:
            row = (kind, name, msgspec.json.encode(document), block.number)
            db.execute("INSERT OR REPLACE INTO registered VALUES (?, ?, ?, ?)", row)

    def _find(self, kind: str, name: str, document: type[Document]) -> Document | None:
        sql = "SELECT document FROM registered WHERE kind = ? AND id = ?"
        for (text,) in self._journal.rows(sql, kind, name):
            return msgspec.json.decode(text, type=document)
        return None


def _named(name: str, owner: str) -> Named:
    return Named(name[:MAX_NAME_CHARS], owner)


def _hex(data: bytes) -> str:
    return "0x" + data.hex()
