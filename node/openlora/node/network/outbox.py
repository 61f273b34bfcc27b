"""Events on their way from the network process to the agent, in order and bounded."""

from collections import deque
from typing import Final

import trio

from openlora.node.network.messages import Command, Event
from openlora.node.network.trio_frames import TrioFrames

_MAX_WAITING: Final = 256


class Outbox:
    """One writer, `run`; whoever sends a stream of events waits for it, so that an agent which falls behind slows its
    sources instead of filling memory."""

    def __init__(self) -> None:
        self._waiting: deque[Event] = deque()
        self._fed = trio.Event()
        self._room = trio.Event()

    def post(self, event: Event) -> None:
        """Queues without waiting, which is possible in any `finally`: for what comes at most once for each thing that
        is under way."""
        self._waiting.append(event)
        self._fed.set()

    async def send(self, event: Event) -> None:
        """Queues once there is room."""
        while len(self._waiting) >= _MAX_WAITING:
            await self._room.wait()
        self.post(event)

    async def run(self, frames: TrioFrames[Command]) -> None:
        """Writes until it is cancelled. Raises trio.BrokenResourceError when the agent is gone."""
        while True:
            while self._waiting:
                await frames.send(self._waiting.popleft())
                if len(self._waiting) < _MAX_WAITING:
                    self._room.set()
                    self._room = trio.Event()
            self._fed = trio.Event()
            await self._fed.wait()
