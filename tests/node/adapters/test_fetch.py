"""Fetch, verify, install: over a real block store and the real child."""

import asyncio
from pathlib import Path

import pytest

from openlora.node.adapters.config import CONFIG_FILE
from openlora.node.adapters.fetch import AdapterFetcher, publish_adapter
from openlora.node.adapters.folder import WEIGHTS_FILE
from openlora.node.adapters.format import read_adapter
from openlora.node.adapters.store import AdapterStore
from openlora.node.content import BlockContent, adapter_digest
from openlora.node.errors import AdapterError, ContentError, ContentNotFound
from tests.node.adapters.adapter_files import LAYOUT, RANK, config, write_adapter


class CountedContent(BlockContent):
    """The real thing, and how often a folder was asked of it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.fetches = 0
        self.asked = asyncio.Event()

    async def fetch_directory(self, cid: str, destination: Path, *, max_bytes: int) -> None:
        self.fetches += 1
        self.asked.set()
        await super().fetch_directory(cid, destination, max_bytes=max_bytes)


@pytest.fixture
def content(tmp_path: Path) -> CountedContent:
    return CountedContent(tmp_path / "blocks")


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "adapters", 1 << 20)


@pytest.fixture
def fetcher(content: CountedContent, store: AdapterStore) -> AdapterFetcher:
    return AdapterFetcher(store, content, LAYOUT, max_adapter_bytes=1 << 20)


async def test_published_here_served_there(
    fetcher: AdapterFetcher, content: CountedContent, store: AdapterStore, tmp_path: Path
) -> None:
    digest = await publish_adapter(write_adapter(tmp_path / "mine"), content, LAYOUT)
    folder = await fetcher.ensure(digest)
    assert folder == store.get(digest)
    assert read_adapter(folder, LAYOUT).rank == RANK
    assert all(path.stat().st_mode & 0o222 == 0 for path in folder.iterdir())
    assert await fetcher.ensure(digest) == folder
    assert content.fetches == 1
    assert [path.name for path in store.scratch(digest).parent.iterdir()] == []


async def test_concurrent_calls_share_one_fetch(
    fetcher: AdapterFetcher, content: CountedContent, tmp_path: Path
) -> None:
    digest = await publish_adapter(write_adapter(tmp_path / "mine"), content, LAYOUT)
    folders = await asyncio.gather(*(fetcher.ensure(digest) for _ in range(20)))
    assert len(set(folders)) == 1
    assert content.fetches == 1


async def test_a_cancelled_caller_takes_nobody_with_it(
    fetcher: AdapterFetcher, content: CountedContent, tmp_path: Path
) -> None:
    digest = await publish_adapter(write_adapter(tmp_path / "mine"), content, LAYOUT)
    first, second = (asyncio.create_task(fetcher.ensure(digest)) for _ in range(2))
    await content.asked.wait()
    first.cancel()
    assert (await second).is_dir()
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_refusal_is_remembered(
    fetcher: AdapterFetcher, content: CountedContent, store: AdapterStore, tmp_path: Path
) -> None:
    cid = await content.publish_directory(write_adapter(tmp_path / "bad", config(use_dora=True)))
    for _ in range(3):
        with pytest.raises(AdapterError, match=r"lora_magnitude_vector.* is missing"):
            await fetcher.ensure(adapter_digest(cid))
    assert content.fetches == 1
    assert store.digests() == ()
    assert [path.name for path in store.scratch(bytes(32)).parent.iterdir()] == []


async def test_missing_content_is_asked_for_again(
    fetcher: AdapterFetcher, content: CountedContent, tmp_path: Path
) -> None:
    elsewhere = BlockContent(tmp_path / "elsewhere")
    digest = await publish_adapter(write_adapter(tmp_path / "mine"), elsewhere, LAYOUT)
    with pytest.raises(ContentNotFound):
        await fetcher.ensure(digest)
    await publish_adapter(tmp_path / "mine", content, LAYOUT)
    assert (await fetcher.ensure(digest)).is_dir()


async def test_an_adapter_beyond_the_limit(content: CountedContent, store: AdapterStore, tmp_path: Path) -> None:
    digest = await publish_adapter(write_adapter(tmp_path / "mine"), content, LAYOUT)
    with pytest.raises(ContentError, match="larger than allowed"):
        await AdapterFetcher(store, content, LAYOUT, max_adapter_bytes=1000).ensure(digest)


async def test_nested_folders_are_removed_again(
    fetcher: AdapterFetcher, content: CountedContent, store: AdapterStore, tmp_path: Path
) -> None:
    folder = write_adapter(tmp_path / "bad")
    (folder / "sub" / "sub").mkdir(parents=True)
    (folder / "sub" / "sub" / "file").touch()
    cid = await content.publish_directory(folder)
    with pytest.raises(AdapterError, match="'sub' is no part of an adapter"):
        await fetcher.ensure(adapter_digest(cid))
    assert [path.name for path in store.scratch(bytes(32)).parent.iterdir()] == []


async def test_only_the_two_files_are_published(content: CountedContent, tmp_path: Path) -> None:
    plain = await publish_adapter(write_adapter(tmp_path / "plain"), content, LAYOUT)
    (write_adapter(tmp_path / "trained") / "README.md").write_text("PEFT leaves one")
    assert await publish_adapter(tmp_path / "trained", content, LAYOUT) == plain


async def test_what_a_node_would_refuse_is_not_published(content: CountedContent, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="lora_magnitude_vector"):
        await publish_adapter(write_adapter(tmp_path / "bad", config(use_dora=True)), content, LAYOUT)
    with pytest.raises(AdapterError, match="cannot be read: No such file"):
        await publish_adapter(tmp_path / "nowhere", content, LAYOUT)
    old = write_adapter(tmp_path / "old")
    (old / WEIGHTS_FILE).rename(old / "adapter_model.bin")
    with pytest.raises(AdapterError, match="is a pickle, which is never read"):
        await publish_adapter(old, content, LAYOUT)
    with pytest.raises(AdapterError, match=r"is missing from the adapter; .* is a pickle"):
        read_adapter(old, LAYOUT)
    assert {CONFIG_FILE, WEIGHTS_FILE} == {path.name for path in (tmp_path / "bad").iterdir()}
