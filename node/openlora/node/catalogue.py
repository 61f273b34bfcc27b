"""What is registered on chain, by name: base models, datanets, adapters. Read from the registry's logs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from openlora.contracts import AdapterDeprecated, AdapterRegistered, BaseRegistered, DatanetCreated
from openlora.node.chain.history import events
from openlora.node.content import adapter_cid, adapter_digest
from openlora.node.deeds import Desk
from openlora.node.errors import ChainError


@dataclass(frozen=True, slots=True)
class RegisteredBase:
    base_id: bytes
    name: str
    payee: str


@dataclass(frozen=True, slots=True)
class RegisteredDatanet:
    datanet_id: int
    root: bytes
    owner: str
    name: str


@dataclass(frozen=True, slots=True)
class RegisteredAdapter:
    digest: bytes
    base_id: bytes
    owner: str
    name: str
    deprecated: bool = False

    @property
    def cid(self) -> str:
        return adapter_cid(self.digest)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """One reading of the registry. Names are labels, not identities: two entries may share one."""

    bases: Sequence[RegisteredBase]
    adapters: Sequence[RegisteredAdapter]
    datanets: Sequence[RegisteredDatanet] = ()

    @classmethod
    def of(cls, events: Iterable[object]) -> "Catalogue":
        """Reads the registry's events, oldest first; others are passed over."""
        bases: list[RegisteredBase] = []
        adapters: dict[bytes, RegisteredAdapter] = {}
        datanets: list[RegisteredDatanet] = []
        for event in events:
            match event:
                case BaseRegistered():
                    bases.append(RegisteredBase(event.base_id, event.name, event.payee))
                case DatanetCreated():
                    datanets.append(RegisteredDatanet(event.datanet_id, event.root, event.owner, event.name))
                case AdapterRegistered():
                    adapters[event.digest] = RegisteredAdapter(event.digest, event.base_id, event.owner, event.name)
                case AdapterDeprecated():
                    adapters[event.digest] = replace(adapters[event.digest], deprecated=True)
        return cls(tuple(bases), tuple(adapters.values()), tuple(datanets))

    def base(self, text: str) -> RegisteredBase:
        """The base named `text`: a registered name or 0x and 64 hex digits. Raises ChainError."""
        found = [base for base in self.bases if text in (base.name, "0x" + base.base_id.hex())]
        if len(found) == 1:
            return found[0]
        known = ", ".join(sorted(base.name for base in self.bases)) or "none"
        if not found:
            raise ChainError(f"no base model {text!r} is registered here; registered are: {known}")
        raise ChainError(f"{len(found)} base models are named {text!r}; give the 0x id of the one you mean")

    def adapter(self, text: str) -> RegisteredAdapter:
        """The adapter named `text`: a registered name or a CID. Raises ChainError."""
        if text.startswith("baf"):
            found = [adapter for adapter in self.adapters if adapter.digest == adapter_digest(text)]
        else:
            found = [adapter for adapter in self.adapters if adapter.name == text and not adapter.deprecated]
        if len(found) == 1:
            return found[0]
        if not found:
            raise ChainError(f"no adapter {text!r} is registered here; `openlora adapter list` shows what is")
        raise ChainError(f"{len(found)} adapters are named {text!r}; give the CID of the one you mean")


def datanet_root(digests: Iterable[bytes]) -> bytes:
    """What names a datanet's texts on chain: the sha256 of their sha256 digests, in their order."""
    return sha256(b"".join(digests)).digest()


async def catalogue(desk: Desk) -> Catalogue:
    """All that is registered on chain. Raises ChainError."""
    return Catalogue.of(await events(desk.chain, desk.registry.address, desk.deployment.block))
