"""Who gets a place when all are taken, and what the agent hears of it."""

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from openlora.node.network.asked import MAX_ASKED, MAX_ASKED_PER_PEER, AskedOfUs
from openlora.node.network.messages import Answer, AnswerEnd, Asked, AskGone, Event, Taken
from openlora.node.network.outbox import Outbox
from openlora.node.network.window import MAX_REPLY_BYTES
from openlora.p2p.errors import StreamRefused
from openlora.p2p.network import PeerId

STAKED = PeerId("staked")


class Told(Outbox):
    """What the agent is told."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    def post(self, event: Event) -> None:
        self.events.append(event)


class Node:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.told = Told()
        self.asked = AskedOfUs(self.told, lambda: {STAKED})
        self.outcomes: dict[str, list[str]] = {}
        self._nursery = nursery

    async def ask(self, peer: str) -> None:
        self._nursery.start_soon(self._ask, peer)
        await trio.testing.wait_all_tasks_blocked()

    async def _ask(self, peer: str) -> None:
        outcomes = self.outcomes.setdefault(peer, [])
        try:
            async for _ in self.asked.answer("/openlora/1/infer", PeerId(peer), b""):
                await trio.testing.wait_all_tasks_blocked()
        except StreamRefused as refusal:
            outcomes.append(str(refusal))
        else:
            outcomes.append("done")

    def under_way(self) -> int:
        """As the agent sees it."""
        kinds = [type(event) for event in self.told.events]
        return kinds.count(Asked) - kinds.count(AskGone)


def run(scenario: Callable[[Node], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                await scenario(Node(nursery))
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_whoever_holds_most_gives_up_the_oldest() -> None:
    async def scenario(node: Node) -> None:
        for number in range(MAX_ASKED):
            await node.ask(f"asker {number // MAX_ASKED_PER_PEER}")
        await node.ask("newcomer")
        assert node.outcomes["asker 0"] == ["this node is busy; ask another, or later"]
        assert node.outcomes["newcomer"] == []
        assert node.told.events[-2:] == [AskGone(id=1), Asked(65, "newcomer", "/openlora/1/infer", b"")]
        assert node.under_way() == MAX_ASKED

    run(scenario)


def test_a_crowd_of_strangers_keeps_out_another_stranger_and_no_node() -> None:
    async def scenario(node: Node) -> None:
        for number in range(MAX_ASKED):
            await node.ask(f"stranger {number}")
        await node.ask("newcomer")
        assert node.outcomes["newcomer"] == ["this node is busy; ask another, or later"]
        await node.ask(STAKED)
        assert node.outcomes[STAKED] == []
        assert node.under_way() == MAX_ASKED

    run(scenario)


def test_a_crowd_of_strangers_does_not_push_out_a_node() -> None:
    async def scenario(node: Node) -> None:
        for _ in range(2):
            await node.ask(STAKED)
        for number in range(2 * MAX_ASKED):
            await node.ask(f"stranger {number}")
        assert node.outcomes[STAKED] == []

    run(scenario)


def test_whoever_lost_a_place_gets_nothing_more_from_it() -> None:
    async def scenario(node: Node) -> None:
        for number in range(MAX_ASKED):
            await node.ask(f"asker {number // MAX_ASKED_PER_PEER}")
        await node.ask("newcomer")
        node.asked.answered(Answer(id=1, data=bytes(MAX_REPLY_BYTES)))  # it was on its way
        node.asked.ended(AnswerEnd(id=1))
        await trio.testing.wait_all_tasks_blocked()
        assert node.outcomes["asker 0"] == ["this node is busy; ask another, or later"]
        assert not any(isinstance(event, Taken) for event in node.told.events)

    run(scenario)


@pytest.mark.parametrize("refusal", [None, "not today"])
def test_an_answer_that_has_ended_frees_its_place(refusal: str | None) -> None:
    async def scenario(node: Node) -> None:
        for number in range(MAX_ASKED):
            await node.ask(f"stranger {number}")
        node.asked.ended(AnswerEnd(id=1, refusal=refusal))
        await trio.testing.wait_all_tasks_blocked()
        assert node.outcomes["stranger 0"] == [refusal or "done"]
        await node.ask("newcomer")
        assert node.outcomes["newcomer"] == []
        assert node.asked.refused == {}

    run(scenario)
