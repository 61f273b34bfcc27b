"""Requests of peers that the agent answers, on their way through the network process."""

import itertools
from collections import Counter, deque
from collections.abc import AsyncGenerator
from typing import Final

import trio

from openlora.node.errors import FrameMalformed
from openlora.node.network.messages import Answer, AnswerEnd, Asked, AskGone, Taken
from openlora.node.network.outbox import Outbox
from openlora.node.network.window import TakeWindow
from openlora.p2p.errors import StreamRefused
from openlora.p2p.network import PeerId

MAX_ASKED: Final = 64  # at once …
MAX_ASKED_PER_PEER: Final = 4  # … and of one peer


class AskedOfUs:
    """Hands each request to the agent and its replies back; refuses, rather than queues, what is too much at once."""

    def __init__(self, outbox: Outbox) -> None:
        self.refused: Counter[str] = Counter()
        self._outbox = outbox
        self._numbers = itertools.count(1)
        self._answers: dict[int, _Answers] = {}
        self._of_peer: Counter[PeerId] = Counter()

    async def answer(self, protocol: str, peer: PeerId, request: bytes) -> AsyncGenerator[bytes, None]:
        """The agent's replies. Raises StreamRefused with the agent's sentence or ours."""
        self._admit(peer)
        number = next(self._numbers)
        self._answers[number] = answers = _Answers()
        self._of_peer[peer] += 1
        handed_over = False
        try:
            await self._outbox.send(Asked(id=number, peer=peer, protocol=protocol, body=request))
            handed_over = True
            while (data := await answers.next()) is not None:
                yield data
                if taken := answers.window.took(data):
                    self._outbox.post(Taken(id=number, bytes=taken))
        finally:
            del self._answers[number]
            self._of_peer -= Counter((peer,))
            if handed_over and not answers.ended:
                self._outbox.post(AskGone(id=number))

    def answered(self, answer: Answer) -> None:
        """Raises FrameMalformed when the agent sends more than was agreed."""
        if (answers := self._answers.get(answer.id)) is not None:  # else the peer has just left
            answers.put(answer.data)

    def ended(self, end: AnswerEnd) -> None:
        if (answers := self._answers.get(end.id)) is not None:
            answers.end(end.refusal)

    def _admit(self, peer: PeerId) -> None:
        if self._of_peer[peer] >= MAX_ASKED_PER_PEER:
            self.refused["asked_too_much_by_peer"] += 1
            raise StreamRefused(f"{MAX_ASKED_PER_PEER} of your requests are under way; wait for one to end")
        if len(self._answers) >= MAX_ASKED:
            self.refused["asked_too_much"] += 1
            raise StreamRefused("this node is busy; ask another, or later")


class _Answers:
    """Replies of the agent that the peer has not taken yet."""

    def __init__(self) -> None:
        self.window = TakeWindow()
        self.ended = False
        self._refusal: str | None = None
        self._waiting: deque[bytes] = deque()
        self._changed = trio.Event()

    def put(self, data: bytes) -> None:
        if not self.window.came(data):
            raise FrameMalformed("the agent sent more of an answer than was agreed")
        self._waiting.append(data)
        self._changed.set()

    def end(self, refusal: str | None) -> None:
        self.ended, self._refusal = True, refusal
        self._changed.set()

    async def next(self) -> bytes | None:
        """The next reply; None after the last. Raises StreamRefused."""
        while not self._waiting and not self.ended:
            self._changed = trio.Event()
            await self._changed.wait()
        if self._waiting:
            return self._waiting.popleft()
        if self._refusal is not None:
            raise StreamRefused(self._refusal)
        return None
