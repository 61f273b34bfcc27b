"""What most attacks have in common: get in, do one's worst until one is thrown out, come back."""

import json
from collections import Counter
from collections.abc import Awaitable, Callable

import trio

from openlora.p2p.identity import Identity
from tests.p2p.hostile.wire import Cut, Serve, Target, Wire, someone

Body = Callable[[Wire], Awaitable[None]]


class Tally:
    """What an attacker has done, and what the stage must know to play along."""

    def __init__(self, attack: str) -> None:
        self.attack = attack
        self.counts: Counter[str] = Counter()

    def __getitem__(self, what: str) -> int:
        return self.counts[what]

    def __setitem__(self, what: str, count: int) -> None:
        self.counts[what] = count

    def identity(self, name: str, life: int = 0) -> Identity:
        """Of this attack alone: whoever was banned in another is somebody else."""
        return someone(f"{self.attack} {name} {life}")

    def tell(self, **facts: object) -> None:
        """Says, once, that the attack has begun."""
        print(json.dumps(facts), flush=True)


async def siege(
    target: Target,
    tally: Tally,
    name: str,
    body: Body,
    *,
    source: str = "127.0.1.1",
    renew: bool = False,
    deaf: bool = False,
    accepts: dict[str, Serve] | None = None,
) -> None:
    """For ever. `renew`: under another identity each time, as one who is banned would."""
    life = 0
    while True:
        identity = tally.identity(name, life if renew else 0)
        life += 1
        await _once(target, tally, identity, body, source, deaf, accepts)
        await trio.sleep(0.05)


async def _once(
    target: Target,
    tally: Tally,
    identity: Identity,
    body: Body,
    source: str,
    deaf: bool,
    accepts: dict[str, Serve] | None,
) -> None:
    wire: Wire | None = None
    async with trio.open_nursery() as nursery:
        try:
            wire = await Wire.dial(nursery, target, identity, source=source, deaf=deaf, accepts=accepts)
            tally["connections"] += 1
            await body(wire)
        except Cut:
            tally["cut"] += 1
        finally:
            if wire is not None:
                with trio.CancelScope(shield=True):
                    await wire.close()
        nursery.cancel_scope.cancel()


async def all_of(*sieges: Awaitable[None]) -> None:
    """Several at once."""

    async def run(one: Awaitable[None]) -> None:
        await one

    async with trio.open_nursery() as nursery:
        for one in sieges:
            nursery.start_soon(run, one)
