"""The attacker, a process of its own: `python -m tests.p2p.hostile.attacker`.

Each line of JSON that it reads is an attack's name and target. It answers with one line when the attack begins, and
another, what it has done, when the time for it is over.
"""

import json
import sys

import trio

from tests.p2p.hostile.attacks import ATTACKS
from tests.p2p.hostile.siege import Tally
from tests.p2p.hostile.wire import Target


async def attack(name: str, target: Target) -> None:
    tally = Tally(name)
    with trio.move_on_after(target.seconds):
        await ATTACKS[name].run(target, tally)
    print(json.dumps(tally.counts), flush=True)


if __name__ == "__main__":
    for line in sys.stdin:
        order = json.loads(line)
        trio.run(attack, order.pop("attack"), Target(**order))
