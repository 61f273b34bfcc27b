"""One attack as a process of its own: `python -m tests.p2p.hostile.attacker NAME`.

It waits for a line of JSON, its target; says one when it begins, and another, what it has done, when its time is over.
"""

import json
import sys

import trio

from tests.p2p.hostile.attacks import ATTACKS
from tests.p2p.hostile.siege import Tally
from tests.p2p.hostile.wire import Target


async def main(name: str, target: Target) -> None:
    tally = Tally()
    with trio.move_on_after(target.seconds):
        await ATTACKS[name].run(target, tally)
    print(json.dumps(tally.counts), flush=True)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], Target(**json.loads(sys.stdin.readline())))
