"""Groups of tasks whose errors callers can catch by type."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
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
