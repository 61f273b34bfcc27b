"""Requests of peers, and the agent's count of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import msgspec
import pytest

from openlora.node.errors import FrameMalformed
from openlora.node.network.answers import MAX_ASKED, Answers
from openlora.node.network.messages import Asked

PROTOCOL = "/openlora/1/infer"


class Line:
    """The agent's end of the line, of which nobody reads the other."""

    def post(self, message: msgspec.Struct) -> None: ...

    async def send(self, message: msgspec.Struct) -> None: ...


async def _never(peer: str, request: bytes) -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


def _asked(number: int) -> Asked:
    return Asked(id=number, peer="somebody", protocol=PROTOCOL, body=b"")


async def test_a_place_is_free_the_moment_its_peer_has_left() -> None:
    with suppress(asyncio.CancelledError):
        async with asyncio.TaskGroup() as tasks:
            answers = Answers(Line(), {PROTOCOL: _never}, tasks)  # type: ignore[arg-type]
            for number in range(MAX_ASKED):
                answers.start(_asked(number))
            with pytest.raises(FrameMalformed):
                answers.start(_asked(MAX_ASKED))
            answers.gone(0)
            answers.start(_asked(MAX_ASKED))  # in the same breath, as both may come in one piece
            await asyncio.sleep(0)
            answers.cancel()
