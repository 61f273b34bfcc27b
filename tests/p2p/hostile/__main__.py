"""All attacks, or those named: `python -m tests.p2p.hostile [NAME …]` prints a line for each."""

import asyncio
import sys
import tempfile
from pathlib import Path

from tests.p2p.hostile.attacks import ATTACKS
from tests.p2p.hostile.stage import staged, try_out
from tests.p2p.hostile.test_hostile import MEANWHILE


async def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        async with staged(Path(folder)) as stage:
            for name in names or ATTACKS:
                outcome = await try_out(stage, ATTACKS[name], MEANWHILE.get(name))
                print(outcome.line, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
