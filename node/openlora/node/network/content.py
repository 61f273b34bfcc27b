"""Content that other nodes may have: a block store on this machine, and the network for what it lacks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from openlora.node.content import BlockContent, adapter_digest, document_cid
from openlora.node.documents import MAX_DOCUMENT_BYTES
from openlora.node.errors import ContentError, ContentNotFound
from openlora.node.network.client import NetworkClient
from openlora.p2p.content.unixfs import MAX_BLOCK_BYTES

_MAX_HINTS: Final = 16


class NetworkContent:
    """Implements `Content`. `local` and the network process share one block store.

    What is asked for is looked up there first; what is missing is fetched into it, checked block by block, and read
    from there. What is stored is told to the DHT.
    """

    def __init__(self, local: BlockContent, network: NetworkClient) -> None:
        self._local, self._network = local, network

    async def get_block(self, cid: str) -> bytes:
        try:
            return await self._local.get_block(cid)
        except ContentNotFound:
            await self._network.fetch(cid, max_bytes=MAX_BLOCK_BYTES, hints=self._holders(cid))
        return await self._local.get_block(cid)

    async def put_document(self, data: bytes) -> bytes:
        digest = await self._local.put_document(data)
        await self._network.provide([document_cid(digest)])
        return digest

    async def get_document(self, digest: bytes) -> bytes:
        try:
            return await self._local.get_document(digest)
        except ContentNotFound:
            await self._network.fetch(document_cid(digest), max_bytes=MAX_DOCUMENT_BYTES)
        return await self._local.get_document(digest)

    async def publish_directory(self, path: Path) -> str:
        cid = await self._local.publish_directory(path)
        await self._network.provide([cid])
        return cid

    async def fetch_directory(self, cid: str, destination: Path, *, max_bytes: int) -> None:
        try:
            await self._local.fetch_directory(cid, destination, max_bytes=max_bytes)
        except ContentNotFound:
            await self._network.fetch(cid, max_bytes=max_bytes, whole=True, hints=self._holders(cid))
            await self._local.fetch_directory(cid, destination, max_bytes=max_bytes)

    def _holders(self, cid: str) -> Sequence[str]:
        """Peers whose records name the adapter `cid`."""
        try:
            digest = adapter_digest(cid)
        except ContentError:  # one raw block: records name adapters only
            return ()
        records = self._network.nodes()
        return [record.peer for record in records if record.status.adapters.nearest(digest)][:_MAX_HINTS]
