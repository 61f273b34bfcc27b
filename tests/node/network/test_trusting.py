"""Whose presence counts follows the chain, and survives its absence."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from openlora.node.errors import ChainError
from openlora.node.network.trusting import keep_trusted
from openlora.node.tasks import running


@dataclass
class Directory:
    """What each `refresh` finds, one after another, then nothing new."""

    answers: list[dict[str, str] | Exception]
    staked: dict[str, str] = field(default_factory=dict)

    async def refresh(self) -> bool:
        if not self.answers:
            return False
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        changed, self.staked = answer != self.staked, answer
        return changed


@dataclass
class Network:
    told: list[dict[str, str]] = field(default_factory=list)

    async def trust(self, operators: dict[str, str]) -> None:
        self.told.append(operators)


async def test_each_change_is_told_and_a_chain_that_is_away_changes_nothing():
    one, two = {"0xa": "0xb"}, {"0xa": "0xb", "0xc": "0xd"}
    directory: Any = Directory([one, ChainError("no RPC answers"), one, two])
    network: Any = Network()
    async with running(keep_trusted(network, directory, refresh_s=0.005), "trust"):
        async with asyncio.timeout(5):
            while directory.answers or len(network.told) < 2:  # noqa: ASYNC110 - the code under test moves on
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.03)
    assert network.told == [one, two]
