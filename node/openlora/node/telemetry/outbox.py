"""What waits for the broker: the newest message of each topic, and a bounded number of them."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final

from openlora.node.telemetry.topics import Message

CAPACITY: Final = 1024  # topics


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """A message but for its session and number, which it gets when it is sent."""

    topic: str
    kind: type[Message]
    fields: dict[str, Any]
    retain: bool


@dataclass(slots=True)
class Outbox:
    """A newer message of a topic takes the older one's place. Beyond `capacity` the oldest that is not retained goes,
    and is counted; what is retained is of a few topics only."""

    capacity: int = CAPACITY
    dropped: int = 0
    _waiting: OrderedDict[str, Waiting] = field(default_factory=OrderedDict)
    _filled: asyncio.Event = field(default_factory=asyncio.Event)

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, message: Waiting) -> None:
        self._waiting[message.topic] = message
        if len(self._waiting) > self.capacity:
            passing = (topic for topic, waiting in self._waiting.items() if not waiting.retain)
            del self._waiting[next(passing, message.topic)]
            self.dropped += 1
        self._filled.set()

    async def oldest(self) -> Waiting:
        """Waits for one. It stays until it is `sent`."""
        while not self._waiting:
            self._filled.clear()
            await self._filled.wait()
        return next(iter(self._waiting.values()))

    def sent(self, message: Waiting) -> None:
        """The broker has it; a newer one of its topic still waits."""
        if self._waiting.get(message.topic) is message:
            del self._waiting[message.topic]
