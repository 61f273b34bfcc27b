"""Content through a Kubo's RPC, against a server that answers as Kubo does, or lies."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from aleph_cid import hash_folder

from openlora.node.content import Content, adapter_cid, document_cid
from openlora.node.errors import ConfigError, ContentError, ContentNotFound
from openlora.node.kubo import KuboContent
from tests.node.fake_kubo import FakeKubo, fake_kubo

# As kubo.py does, whose filter pytest sets aside.
pytestmark = pytest.mark.filterwarnings("ignore:The 'strict' parameter is no longer needed:FutureWarning")


@pytest.fixture
def kubo() -> Iterator[FakeKubo]:
    with fake_kubo() as server:
        yield server


@pytest.fixture
def content(kubo: FakeKubo) -> Content:
    return KuboContent(kubo.rpc, find_timeout_s=1.5)


def folder(path: Path) -> Path:
    (path / "inner").mkdir(parents=True)
    (path / "small").write_bytes(b"x")
    (path / "inner" / "large").write_bytes(bytes(range(256)) * 3_000)
    return path


def content_of(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


async def test_a_document_there_and_back_is_one_pinned_raw_block(kubo: FakeKubo, content: Content) -> None:
    digest = await content.put_document(b"{}")
    cid = document_cid(digest)
    assert kubo.blocks == {cid: b"{}"}
    assert kubo.pins == [cid]
    assert await content.get_document(digest) == await content.get_block(cid) == b"{}"


async def test_a_document_of_1_mib_and_a_byte_more(kubo: FakeKubo, content: Content) -> None:
    largest = bytes(1 << 20)
    assert await content.get_document(await content.put_document(largest)) == largest
    calls = len(kubo.calls)
    with pytest.raises(ContentError, match="at most 1048576 bytes"):
        await content.put_document(largest + b"\0")
    assert len(kubo.calls) == calls


async def test_a_folder_there_and_back(kubo: FakeKubo, content: Content, tmp_path: Path) -> None:
    cid = await content.publish_directory(folder(tmp_path / "in"))
    assert cid == hash_folder(tmp_path / "in")
    assert kubo.pins == [cid]
    await content.fetch_directory(cid, tmp_path / "out", max_bytes=1_000_000)
    assert content_of(tmp_path / "out") == content_of(tmp_path / "in")


async def test_the_root_is_pinned_after_everything_below_it_is_there(
    kubo: FakeKubo, content: Content, tmp_path: Path
) -> None:
    await content.publish_directory(folder(tmp_path / "in"))
    assert [command for command, _ in kubo.calls] == ["block/put"] * (len(kubo.calls) - 1) + ["pin/add"]


async def test_what_kubo_does_not_find(kubo: FakeKubo, content: Content, tmp_path: Path) -> None:
    with pytest.raises(ContentNotFound, match="context deadline exceeded"):
        await content.get_document(bytes(32))
    with pytest.raises(ContentNotFound):
        await content.fetch_directory(adapter_cid(bytes(32)), tmp_path / "out", max_bytes=1000)
    assert not (tmp_path / "out").exists()
    assert kubo.calls[0][1]["timeout"] == "1.5s"


async def test_a_block_that_is_not_its_cids(kubo: FakeKubo, content: Content, tmp_path: Path) -> None:
    digest = await content.put_document(b"{}")
    cid = await content.publish_directory(folder(tmp_path / "in"))
    kubo.blocks = {name: block + b" " for name, block in kubo.blocks.items()}
    with pytest.raises(ContentError, match="does not match"):
        await content.get_document(digest)
    with pytest.raises(ContentError, match="does not match"):
        await content.fetch_directory(cid, tmp_path / "out", max_bytes=1_000_000)
    assert not (tmp_path / "out").exists()


async def test_a_block_over_2_mib_is_not_read_to_its_end(kubo: FakeKubo, content: Content) -> None:
    kubo.answer = (200, bytes(8 << 20))
    with pytest.raises(ContentError, match="more than 2097152 bytes"):
        await content.get_document(bytes(32))


async def test_a_folder_larger_than_allowed(content: Content, tmp_path: Path) -> None:
    cid = await content.publish_directory(folder(tmp_path / "in"))
    with pytest.raises(ContentError, match="larger than allowed"):
        await content.fetch_directory(cid, tmp_path / "out", max_bytes=500_000)
    assert not (tmp_path / "out").exists()


async def test_a_kubo_that_names_a_block_otherwise(kubo: FakeKubo, content: Content) -> None:
    kubo.name_as = "QmOther"
    with pytest.raises(ContentError, match="under another name: 'QmOther'"):
        await content.put_document(b"{}")
    assert kubo.pins == []


async def test_a_kubo_that_refuses_to_store(kubo: FakeKubo, content: Content) -> None:
    kubo.answer = (500, b'{"Message":"no space left on device","Code":0,"Type":"error"}')
    with pytest.raises(ContentError, match=r"did not store .* no space left on device"):
        await content.put_document(b"{}")


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ((403, b"403 - Forbidden"), "does not answer as a Kubo RPC does"),
        ((404, b"404 page not found"), "does not answer as a Kubo RPC does"),
        ((200, b"<html>"), "does not answer as a Kubo RPC does"),
        ((200, b""), "does not answer as a Kubo RPC does"),
        ((200, b"[]"), "does not answer as a Kubo RPC does"),
        ((200, b"null"), "does not answer as a Kubo RPC does"),
        ((200, b'{"Key":"a"}{"Key":"b"}'), "does not answer as a Kubo RPC does"),
        ((200, b"[" * 100_000), "does not answer as a Kubo RPC does"),
    ],
)
async def test_something_that_is_no_kubo(kubo: FakeKubo, content: Content, answer, sentence: str) -> None:
    kubo.answer = answer
    with pytest.raises(ContentError, match=sentence):
        await content.put_document(b"{}")


async def test_a_kubo_that_hangs(kubo: FakeKubo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openlora.node.kubo._GRACE_S", 0.1)
    kubo.hang = threading.Event()
    with pytest.raises(ContentError, match="does not answer in time"):
        await KuboContent(kubo.rpc, find_timeout_s=0.1).get_document(bytes(32))


async def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = KuboContent(f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}")
        with pytest.raises(ContentError, match=r"no Kubo RPC listens on /ip4/127\.0\.0\.1/tcp/") as refusal:
            await nobody.get_document(bytes(32))
        assert not isinstance(refusal.value, ContentNotFound)
        with pytest.raises(ContentError, match="no Kubo RPC listens"):
            await nobody.publish_directory(folder(tmp_path / "in"))


@pytest.mark.parametrize("rpc", ["", "localhost:5001", "/ip4/127.0.0.1/udp/5001", "http://127.0.0.1:5001"])
def test_what_is_no_address(rpc: str) -> None:
    with pytest.raises(ConfigError, match="no address of a Kubo RPC"):
        KuboContent(rpc)


async def test_text_that_is_no_cid(kubo: FakeKubo, content: Content) -> None:
    with pytest.raises(ContentError, match="CIDv1"):
        await content.get_block("../../id")
    assert kubo.calls == []
