"""One background task that lives exactly as long as a block of code."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

Result = TypeVar("Result")


@asynccontextmanager
async def running(coroutine: Coroutine[Any, Any, Result], name: str) -> AsyncIterator[asyncio.Task[Result]]:
    """Runs `coroutine` beside the body and cancels it at the body's end; if it fails first, the body is cancelled.

    A lone error leaves as itself, not wrapped in a group, so that callers can catch it by its type.
    """
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(coroutine, name=name)
            yield task
            task.cancel()
    except BaseExceptionGroup as errors:
        if len(errors.exceptions) == 1:
            raise errors.exceptions[0] from errors.exceptions[0].__cause__
        raise
