"""A real network process under twenty attacks: each is refused by name, costs little memory, and honest peers go on.

One victim goes through all of them. `python -m tests.p2p.hostile` prints the same as a table.
"""

import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import pytest
import pytest_asyncio

from openlora.node.errors import ContentError, ContentNotFound
from tests.p2p.hostile.attacks import ATTACKS, Attack
from tests.p2p.hostile.blocks import bombs
from tests.p2p.hostile.stage import Meanwhile, Outcome, Stage, staged, try_out

MAX_GROWTH_BYTES: Final = 64 << 20
_SLOWER: Final = 12  # than in quiet: the three processes, one of them an attacker, share two cores …
_SLACK_S: Final = 3.0  # … with whatever else runs

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("hostile"), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with staged(tmp_path_factory.mktemp("hostile")) as stage:
        yield stage


async def _fetch_bombs(stage: Stage, facts: Mapping[str, Any]) -> None:
    """Each is refused in two seconds, for what it is."""
    for name, (root, _) in bombs().items():
        started = time.monotonic()
        with pytest.raises(ContentError) as refusal:
            await stage.victim.link.fetch(str(root), max_bytes=64 << 20, whole=True, hints=[facts["peer"]])
        assert not isinstance(refusal.value, ContentNotFound), name
        assert time.monotonic() - started < 2, name


MEANWHILE: Final[Mapping[str, Meanwhile]] = {"tree_bombs": _fetch_bombs}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
async def test_an_attack_costs_only_the_attacker(stage: Stage, attack: Attack) -> None:
    outcome = await try_out(stage, attack, MEANWHILE.get(attack.name))
    print(outcome.line)
    assert attack.refused <= outcome.refused.keys()
    assert outcome.grown_bytes <= MAX_GROWTH_BYTES
    _harmless(outcome)


def _harmless(outcome: Outcome) -> None:
    quiet, attacked, after = outcome.quiet, outcome.attacked, outcome.after
    for each in (attacked, after):
        assert each.fetch_s <= _SLOWER * quiet.fetch_s + _SLACK_S
        assert each.ask_s <= _SLOWER * quiet.ask_s + _SLACK_S
        assert each.newcomer_s <= 5
    assert attacked.presence_s <= 10
