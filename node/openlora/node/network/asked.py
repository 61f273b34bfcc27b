"""Requests of peers that the agent answers, on their way through the network process."""

import itertools
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Collection
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
_BUSY: Final = "this node is busy; ask another, or later"


class AskedOfUs:
    """Hands each request to the agent and its replies back; refuses, rather than queues, what is too much at once.

    When all places are taken, the peer that holds most gives up its oldest for one that holds fewer. A peer that is not
    `staked` counts as if it held one more, so that no number of strangers together can keep a node out."""

    def __init__(self, outbox: Outbox, staked: Callable[[], Collection[PeerId]]) -> None:
        self.refused: Counter[str] = Counter()
        self._outbox = outbox
        self._staked = staked
        self._numbers = itertools.count(1)
        self._under_way: dict[int, _Answers] = {}  # the oldest first
        self._of_peer: Counter[PeerId] = Counter()

    async def answer(self, protocol: str, peer: PeerId, request: bytes) -> AsyncGenerator[bytes, None]:
        """The agent's replies. Raises StreamRefused with the agent's sentence or ours."""
        self._admit(peer)
        answers = _Answers(next(self._numbers), peer)
        self._under_way[answers.number] = answers
        self._of_peer[peer] += 1
        try:
            await self._outbox.send(Asked(id=answers.number, peer=peer, protocol=protocol, body=request))
            answers.handed_over = True
            while (data := await answers.next()) is not None:
                yield data
                if (taken := answers.window.took(data)) and answers.number in self._under_way:
                    self._outbox.post(Taken(id=answers.number, bytes=taken))
        finally:
            self._leave(answers)

    def answered(self, answer: Answer) -> None:
        """Raises FrameMalformed when the agent sends more than was agreed."""
        if (answers := self._under_way.get(answer.id)) is not None:  # else the peer has just left
            answers.put(answer.data)

    def ended(self, end: AnswerEnd) -> None:
        if (answers := self._under_way.get(end.id)) is not None:
            answers.end(end.refusal)

    def _admit(self, peer: PeerId) -> None:
        if self._of_peer[peer] >= MAX_ASKED_PER_PEER:
            self.refused["asked_too_much_by_peer"] += 1
            raise StreamRefused(f"{MAX_ASKED_PER_PEER} of your requests are under way; wait for one to end")
        if len(self._under_way) < MAX_ASKED:
            return
        self.refused["asked_too_much"] += 1
        if (displaced := self._displaced_by(peer)) is None:
            raise StreamRefused(_BUSY)
        displaced.displace()
        self._leave(displaced)

    def _displaced_by(self, newcomer: PeerId) -> "_Answers | None":
        staked = self._staked()
        weights = {peer: count + (peer not in staked) for peer, count in self._of_peer.items()}
        crowded = max(weights, key=weights.__getitem__)
        if weights[crowded] <= self._of_peer[newcomer] + 1 + (newcomer not in staked):
            return None
        oldest = (answers for answers in self._under_way.values() if answers.peer == crowded and answers.handed_over)
        return next(oldest, None)  # none: the agent is behind, and has not even heard of them

    def _leave(self, answers: "_Answers") -> None:
        """Frees the place, and tells an agent that is still at it. Does nothing for one that has left before."""
        if self._under_way.pop(answers.number, None) is None:
            return
        self._of_peer -= Counter((answers.peer,))
        if answers.handed_over and not answers.ended:
            self._outbox.post(AskGone(id=answers.number))


class _Answers:
    """Replies of the agent that the peer has not taken yet."""

    def __init__(self, number: int, peer: PeerId) -> None:
        self.number: Final = number
        self.peer: Final = peer
        self.window = TakeWindow()
        self.handed_over = False  # to the agent
        self.ended = False  # by the agent
        self._displaced = False
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

    def displace(self) -> None:
        self._displaced, self._refusal = True, _BUSY
        self._waiting.clear()
        self._changed.set()

    async def next(self) -> bytes | None:
        """The next reply; None after the last. Raises StreamRefused."""
        while not (self._waiting or self.ended or self._displaced):
            self._changed = trio.Event()
            await self._changed.wait()
        if self._waiting:
            return self._waiting.popleft()
        if self._refusal is not None:
            raise StreamRefused(self._refusal)
        return None
