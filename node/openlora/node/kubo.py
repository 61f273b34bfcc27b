"""Content through a Kubo that the operator runs: it keeps the blocks, and announces and serves them to public IPFS.

Kubo is trusted to keep what it was given, never with what it returns: the traversal is ours and every block is checked
against its CID. Folders are cut into blocks here as well, so that no CID depends on a Kubo's version or settings.
RPC: https://docs.ipfs.tech/reference/kubo/rpc/
"""

import asyncio
import io
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import ipfshttpclient
from ipfshttpclient import exceptions

from openlora.node.content import check_document, content_errors, document_block, export_folder
from openlora.node.errors import ConfigError, ContentError
from openlora.p2p.content.cid import Cid, Codec
from openlora.p2p.content.unixfs import MAX_BLOCK_BYTES, add_directory
from openlora.p2p.errors import BlockMissing, MalformedBlock, OverBudget

T = TypeVar("T")
FIND_TIMEOUT_S: Final = 30.0  # Kubo looks for a block among its peers and in the DHT
STORE_TIMEOUT_S: Final = 60.0
_GRACE_S: Final = 5.0  # Kubo keeps its own timeouts; one that is this late has hung
_THREADS: Final = 4
_MALFORMED: Final = (TypeError, RecursionError, AssertionError)  # ipfshttpclient asserts that there is one JSON text
_CODEC_NAMES: Final = {Codec.RAW: "raw", Codec.DAG_PB: "dag-pb"}

# ipfshttpclient hands urllib3 an option of Python 2's with every request.
warnings.filterwarnings("ignore", "The 'strict' parameter is no longer needed", FutureWarning)


class KuboContent:
    """The `Content` of the Kubo whose RPC listens on the multiaddr `rpc`, such as /ip4/127.0.0.1/tcp/5001.

    What is stored is pinned: Kubo's garbage collection leaves it. Calls never take longer than the timeout for each
    block. Nothing is sent before the first call, so a Kubo that is not there shows as a ContentError then.
    """

    def __init__(self, rpc: str, *, find_timeout_s: float = FIND_TIMEOUT_S) -> None:
        """Raises ConfigError for an address that no RPC can have."""
        self._rpc = rpc
        self._find_timeout_s = find_timeout_s
        try:
            # Not `connect`, which asks for the version first and warns of every Kubo since 0.9.
            self._kubo = ipfshttpclient.Client(rpc, username=None, password=None)
        except exceptions.AddressError:
            raise ConfigError(f"{rpc} is no address of a Kubo RPC; write one like /ip4/127.0.0.1/tcp/5001") from None
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="kubo")

    async def get_block(self, cid: str) -> bytes:
        return await self._run(lambda: self._get(Cid.parse(cid)))

    async def put_document(self, data: bytes) -> bytes:
        cid = document_block(data)

        def store() -> None:
            self._put(cid, data)
            self._pin(cid)

        await self._run(store)
        return cid.digest

    async def get_document(self, digest: bytes) -> bytes:
        return check_document(await self._run(lambda: self._get(Cid(Codec.RAW, digest))))

    async def publish_directory(self, path: Path) -> str:
        def store() -> str:
            root = add_directory(path, self._put)
            self._pin(root)
            return str(root)

        return await self._run(store)

    async def fetch_directory(self, cid: str, destination: Path, *, max_bytes: int) -> None:
        await self._run(lambda: export_folder(Cid.parse(cid), destination, max_bytes, self._get))

    async def _run(self, work: Callable[[], T]) -> T:
        with content_errors():
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    # ---- calls, which block ----

    def _get(self, cid: Cid) -> bytes:
        try:
            with self._answering():
                block = self._read(cid)
        except exceptions.ErrorResponse as error:  # our CIDs are well-formed: what can fail is the search
            raise BlockMissing(f"Kubo did not find {cid}: {error}") from error
        if not cid.matches(block):
            raise MalformedBlock(f"Kubo sent a block that does not match its CID {cid}")
        return block

    def _read(self, cid: Cid) -> bytes:
        deadline_s = time.monotonic() + self._find_timeout_s + _GRACE_S
        block = bytearray()
        with self._kubo.block.get(str(cid), stream=True, **_timeout(self._find_timeout_s)) as parts:
            for part in parts:
                block += part
                if len(block) > MAX_BLOCK_BYTES:
                    raise OverBudget(f"Kubo sends more than {MAX_BLOCK_BYTES} bytes as the block {cid}")
                if time.monotonic() > deadline_s:
                    raise BlockMissing(f"Kubo took more than {self._find_timeout_s:g} s over the block {cid}")
        return bytes(block)

    def _put(self, cid: Cid, block: bytes) -> None:
        call = _timeout(STORE_TIMEOUT_S, {"cid-codec": _CODEC_NAMES[cid.codec], "mhtype": "sha2-256"})
        with self._storing(cid), self._answering():
            stored = self._kubo.block.put(io.BytesIO(block), **call).as_json()
            if not isinstance(stored, dict):
                raise TypeError("what it says of a stored block is no object")
        if stored.get("Key") != str(cid):
            raise ContentError(f"Kubo stored {cid} under another name: {str(stored.get('Key'))[:80]!a}")

    def _pin(self, root: Cid) -> None:
        with self._storing(root), self._answering():
            self._kubo.pin.add(str(root), **_timeout(STORE_TIMEOUT_S))

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """A Kubo that is not there, hangs, or is something else, in a sentence. Its own refusals pass through."""
        try:
            yield
        except exceptions.ErrorResponse:
            raise
        except exceptions.TimeoutError:
            raise ContentError(f"the Kubo RPC at {self._rpc} does not answer in time") from None
        except exceptions.ConnectionError:
            raise ContentError(f"no Kubo RPC listens on {self._rpc}; start Kubo, or change its address") from None
        except (exceptions.CommunicationError, exceptions.DecodingError, OSError, *_MALFORMED) as error:
            raise ContentError(f"what listens on {self._rpc} does not answer as a Kubo RPC does: {error}") from None

    @contextmanager
    def _storing(self, cid: Cid) -> Iterator[None]:
        try:
            yield
        except exceptions.ErrorResponse as error:
            raise ContentError(f"Kubo did not store {cid}: {error}") from error


def _timeout(seconds: float, options: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A call's time limit, kept by Kubo, and by us should Kubo not."""
    return {"opts": {"timeout": f"{seconds:g}s", **(options or {})}, "timeout": seconds + _GRACE_S}
