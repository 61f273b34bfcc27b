"""Generators with pauses."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from openlora.node.tasks import with_pauses


class Items:
    """Yields what it is given, and knows when it was closed."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[str | Exception] = asyncio.Queue()
        self.closed = False

    async def __call__(self) -> AsyncGenerator[str, None]:
        try:
            while (item := await self.queue.get()) != "end":
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.closed = True


async def test_every_item_comes_once_however_long_it_takes() -> None:
    items = Items()
    paced = with_pauses(items(), 0.01)
    assert [await anext(paced) for _ in range(3)] == [None, None, None]
    for item in ("one", "two", "end"):
        items.queue.put_nowait(item)
    assert [item async for item in paced if item is not None] == ["one", "two"]
    assert items.closed


async def test_closing_it_in_a_pause_closes_the_items() -> None:
    items = Items()
    paced = with_pauses(items(), 0.01)
    assert await anext(paced) is None
    await paced.aclose()
    assert items.closed


async def test_cancelling_it_closes_the_items() -> None:
    items = Items()
    waiting = asyncio.ensure_future(anext(with_pauses(items(), 60)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert items.closed


async def test_an_error_leaves_as_itself() -> None:
    items = Items()
    items.queue.put_nowait(OSError("gone"))
    with pytest.raises(OSError, match="gone"):
        await anext(with_pauses(items(), 1))
    assert items.closed
