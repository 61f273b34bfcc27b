"""Groups of tasks whose errors callers can catch by type."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

Result = TypeVar("Result")


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """An asyncio.TaskGroup whose first error leaves as itself, not wrapped in a group; the others are context only."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        first = errors.exceptions[0]
        raise first from first.__cause__


@asynccontextmanager
async def running(coroutine: Coroutine[Any, Any, Result], name: str) -> AsyncIterator[asyncio.Task[Result]]:
    """Runs `coroutine` beside the body and cancels it at the body's end; if it fails first, the body is cancelled."""
    async with task_group() as group:
        task = group.create_task(coroutine, name=name)
        yield task
        task.cancel()


async def with_pauses(items: AsyncGenerator[Result, None], pause_s: float) -> AsyncGenerator[Result | None, None]:
    """`items`, and a None for every `pause_s` that the next one takes. Closing this closes `items`."""
    coming: asyncio.Future[Result] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(items))
            await asyncio.wait([coming], timeout=pause_s)
            if not coming.done():
                yield None
                continue
            done, coming = coming, None
            try:
                item = done.result()
            except StopAsyncIteration:
                return
            yield item
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        await items.aclose()
