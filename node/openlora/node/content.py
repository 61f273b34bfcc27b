"""Content by CID, as the agent and the command line see it.

`Content` is the seam. `BlockContent` is the store on this machine; `network.content.NetworkContent` asks other nodes
for what that store lacks, and `kubo.KuboContent` leaves both to a Kubo.

What is on chain is a sha2-256 digest: a document's is that of its one raw block, an adapter's that of the dag-pb root
of its folder, and the CID follows from the digest and the kind.
"""

import asyncio
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol, TypeVar

from openlora.node.documents import MAX_DOCUMENT_BYTES
from openlora.node.errors import ContentError, ContentNotFound
from openlora.p2p.content.blockstore import BlockStore
from openlora.p2p.content.cid import Cid, Codec
from openlora.p2p.content.export import Budget, export_directory, run_export
from openlora.p2p.content.unixfs import MAX_DEPTH, FileNode, add_directory, parse_node
from openlora.p2p.errors import BlockMissing, ContentRefused, OverBudget

T = TypeVar("T")
_THREADS: Final = 4


def document_cid(digest: bytes) -> str:
    """The CID of the document with this sha2-256 digest."""
    return str(Cid(Codec.RAW, digest))


def adapter_cid(digest: bytes) -> str:
    """The CID of the adapter whose folder's root block has this sha2-256 digest."""
    return str(Cid(Codec.DAG_PB, digest))


def adapter_digest(cid: str) -> bytes:
    """The digest that names an adapter on chain. Raises ContentError for text that is not the CID of a folder."""
    with content_errors():
        parsed = Cid.parse(cid)
    if parsed.codec != Codec.DAG_PB:
        raise ContentError(f"{cid} is one raw block; an adapter's CID is that of its folder (bafybei…)")
    return parsed.digest


class Content(Protocol):
    """Content by CID, wherever it comes from.

    Whatever a method returns or writes has been checked against its name, block by block. Every method that names
    content raises ContentNotFound if no reachable store has a block of it, and ContentError if it is not what it should
    be or the store cannot be used. What a method has stored survives a crash after its return.
    """

    async def get_block(self, cid: str) -> bytes:
        """One block of at most 2 MiB: a document, or the root of a folder."""
        ...

    async def put_document(self, data: bytes) -> bytes:
        """Store a document of at most 1 MiB as one raw block; returns its digest."""
        ...

    async def get_document(self, digest: bytes) -> bytes:
        """The document of at most 1 MiB whose sha2-256 is `digest`."""
        ...

    async def publish_directory(self, path: Path) -> str:
        """Store the folder at `path`; returns its CID, the one that `ipfs add -r --cid-version=1` gives it."""
        ...

    async def fetch_directory(self, cid: str, destination: Path, *, max_bytes: int) -> None:
        """Write the folder `cid` to `destination`, which must not exist and appears whole or not at all.

        `max_bytes` bounds the bytes of all blocks, a block that occurs twice counting twice.
        """
        ...


class BlockContent:
    """The block store at `root`, which several processes may share. Asks nobody else."""

    def __init__(self, root: Path) -> None:
        self._blocks = BlockStore(root)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="content")

    async def get_block(self, cid: str) -> bytes:
        return await self._run(lambda: self._blocks.get(Cid.parse(cid)))

    async def put_document(self, data: bytes) -> bytes:
        cid = document_block(data)
        await self._run(lambda: self._blocks.put(cid, data))
        return cid.digest

    async def get_document(self, digest: bytes) -> bytes:
        return check_document(await self._run(lambda: self._blocks.get(Cid(Codec.RAW, digest))))

    async def publish_directory(self, path: Path) -> str:
        return await self._run(lambda: str(add_directory(path, self._blocks.put)))

    async def fetch_directory(self, cid: str, destination: Path, *, max_bytes: int) -> None:
        await self._run(lambda: export_folder(Cid.parse(cid), destination, max_bytes, self._blocks.get))

    async def size(self, cid: str) -> int:
        """Bytes of all blocks under `cid`, a block that occurs twice counting twice: what a budget must allow.

        Reads and checks them all; raises ContentNotFound unless all are here.
        """
        return await self._run(lambda: tree_bytes(Cid.parse(cid), self._blocks.get))

    async def _run(self, work: Callable[[], T]) -> T:
        with content_errors():
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)


# ---- what every implementation needs --------------------------------------------------------------------------------


def export_folder(root: Cid, destination: Path, max_bytes: int, get: Callable[[Cid], bytes]) -> None:
    """Write the folder `root` to `destination`, whole or not at all, from a source of blocks that need not be trusted.

    Blocks on `get` and on the disk. `get` raises BlockMissing for what it has not. Raises ContentRefused, BlockMissing,
    and ContentError if `destination` exists.
    """
    if destination.exists():
        raise ContentError(f"{destination} exists already; name a folder that does not")
    unfinished = destination.with_name(f".{destination.name}.{secrets.token_hex(8)}")
    unfinished.mkdir(parents=True)
    try:
        run_export(export_directory(root, unfinished, Budget(max_bytes)), get)
        unfinished.rename(destination)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def tree_bytes(root: Cid, get: Callable[[Cid], bytes]) -> int:
    """Bytes of all blocks under `root`, counted each time they are named but read once. Raises what `get` raises, and
    ContentRefused for what is no tree of ours."""
    totals: dict[Cid, int] = {}

    def total(cid: Cid, depth: int) -> int:
        if depth > MAX_DEPTH:
            raise OverBudget(f"the content is nested more than {MAX_DEPTH} deep")
        if cid not in totals:
            block = get(cid)
            children = () if cid.codec == Codec.RAW else _children(block)
            totals[cid] = len(block) + sum(total(child, depth + 1) for child in children)
        return totals[cid]

    return total(root, 1)


def _children(block: bytes) -> Sequence[Cid]:
    node = parse_node(block)
    return [cid for cid, _ in node.parts] if isinstance(node, FileNode) else [link.cid for link in node.entries]


def document_block(data: bytes) -> Cid:
    """The block that a document is. Raises ContentError above 1 MiB."""
    return Cid.of(Codec.RAW, check_document(data))


def check_document(data: bytes) -> bytes:
    """`data`, if it is at most 1 MiB; else ContentError."""
    if len(data) > MAX_DOCUMENT_BYTES:
        raise ContentError(f"a document has at most {MAX_DOCUMENT_BYTES} bytes, not {len(data)}")
    return data


@contextmanager
def content_errors() -> Iterator[None]:
    """The errors of the content library and of the disk, as this module's."""
    try:
        yield
    except BlockMissing as error:
        raise ContentNotFound(str(error)) from error
    except ContentRefused as error:
        raise ContentError(str(error)) from error
    except OSError as error:
        raise ContentError(f"content cannot be read or stored: {error}") from error
