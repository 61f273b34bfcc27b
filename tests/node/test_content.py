"""Content as the agent sees it: documents and folders by digest and CID."""

from hashlib import sha256
from pathlib import Path

import pytest
from aleph_cid import hash_folder

from openlora.node.content import BlockContent, adapter_cid, adapter_digest, document_cid
from openlora.node.demo_data import DEMO_ADAPTERS
from openlora.node.errors import ContentError, ContentNotFound


@pytest.fixture
def content(tmp_path: Path) -> BlockContent:
    return BlockContent(tmp_path / "blocks")


def folder(path: Path) -> Path:
    path.mkdir()
    (path / "small").write_bytes(b"x")
    (path / "large").write_bytes(bytes(300_000))
    return path


def content_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


async def test_a_document_is_named_by_its_sha256(content: BlockContent) -> None:
    digest = await content.put_document(b"{}")
    assert digest == sha256(b"{}").digest()
    assert await content.get_document(digest) == b"{}"
    assert await content.get_block(document_cid(digest)) == b"{}"


async def test_a_document_of_1_mib_and_a_byte_more(content: BlockContent) -> None:
    largest = bytes(1 << 20)
    assert await content.get_document(await content.put_document(largest)) == largest
    with pytest.raises(ContentError, match="at most 1048576 bytes"):
        await content.put_document(largest + b"\0")


async def test_what_nobody_has(content: BlockContent, tmp_path: Path) -> None:
    with pytest.raises(ContentNotFound):
        await content.get_document(bytes(32))
    with pytest.raises(ContentNotFound):
        await content.get_block(document_cid(bytes(32)))
    with pytest.raises(ContentNotFound):
        await content.fetch_directory(adapter_cid(bytes(32)), tmp_path / "out", max_bytes=1000)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cid", ["", "Qm123", "../../etc/passwd"])
async def test_text_that_is_no_cid(content: BlockContent, tmp_path: Path, cid: str) -> None:
    with pytest.raises(ContentError, match="CIDv1"):
        await content.get_block(cid)
    with pytest.raises(ContentError, match="CIDv1"):
        await content.fetch_directory(cid, tmp_path / "out", max_bytes=1000)
    with pytest.raises(ContentError, match="CIDv1"):
        adapter_digest(cid)


async def test_a_folder_there_and_back(content: BlockContent, tmp_path: Path) -> None:
    cid = await content.publish_directory(folder(tmp_path / "in"))
    assert cid == hash_folder(tmp_path / "in")
    await content.fetch_directory(cid, tmp_path / "deep" / "out", max_bytes=400_000)
    assert content_of(tmp_path / "deep" / "out") == content_of(tmp_path / "in")


async def test_a_folder_appears_whole_or_not_at_all(content: BlockContent, tmp_path: Path) -> None:
    cid = await content.publish_directory(folder(tmp_path / "in"))
    with pytest.raises(ContentError, match="larger than allowed"):
        await content.fetch_directory(cid, tmp_path / "out" / "here", max_bytes=300_000)
    assert list((tmp_path / "out").iterdir()) == []


async def test_a_destination_that_exists(content: BlockContent, tmp_path: Path) -> None:
    cid = await content.publish_directory(folder(tmp_path / "in"))
    with pytest.raises(ContentError, match="exists already"):
        await content.fetch_directory(cid, tmp_path / "in", max_bytes=400_000)


async def test_a_folder_that_cannot_be_read(content: BlockContent, tmp_path: Path) -> None:
    with pytest.raises(ContentError, match="nowhere"):
        await content.publish_directory(tmp_path / "nowhere")


async def test_the_size_of_a_tree_is_what_its_budget_must_allow(content: BlockContent, tmp_path: Path) -> None:
    cid = await content.publish_directory(folder(tmp_path / "in"))
    size = await content.size(cid)
    await content.fetch_directory(cid, tmp_path / "out", max_bytes=size)
    with pytest.raises(ContentError, match="larger than allowed"):
        await content.fetch_directory(cid, tmp_path / "more", max_bytes=size - 1)
    assert await content.size(document_cid(await content.put_document(b"{}"))) == 2
    with pytest.raises(ContentNotFound):
        await content.size(adapter_cid(bytes(32)))


async def test_two_stores_on_one_folder(content: BlockContent, tmp_path: Path) -> None:
    digest = await content.put_document(b"shared")
    assert await BlockContent(tmp_path / "blocks").get_document(digest) == b"shared"


def test_an_adapters_digest_and_cid() -> None:
    digest = bytes(range(32))
    assert adapter_digest(adapter_cid(digest)) == digest
    assert adapter_cid(digest).startswith("bafybei")
    with pytest.raises(ContentError, match="one raw block"):
        adapter_digest(document_cid(digest))


@pytest.mark.slow
async def test_real_adapters_have_the_cids_that_ipfs_gives_them(content: BlockContent) -> None:
    for adapter in DEMO_ADAPTERS:
        assert await content.publish_directory(adapter.path) == hash_folder(adapter.path)
