"""The demonstration's nodes: `openlora run`, each in a process of its own, to be killed and started again."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from openlora.node import agent_client
from openlora.node.children import die_with_parent, stop
from openlora.node.devnet import DevNode
from openlora.node.errors import AgentUnreachable, OpenLoraError

START_TIMEOUT_S: Final = 300.0  # vLLM takes minutes on a busy machine; a process that ends is not waited for
STOP_TIMEOUT_S: Final = 15.0
POLL_S: Final = 0.25


class DemoFailed(OpenLoraError):
    """A node that did not start, a job that did not end as it should, or books that do not balance."""

    exit_code = 1


@dataclass(slots=True)
class NodeProcess:
    """One node's life, or lives. Its log is `node.log` in its folder."""

    place: DevNode
    _process: asyncio.subprocess.Process | None = field(default=None)

    @property
    def name(self) -> str:
        return self.place.name

    async def start(self) -> Mapping[str, Any]:
        """Returns the node's state once it answers. Raises DemoFailed."""
        log_path = self.place.folder / "node.log"
        with log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "openlora.node", "run", "--config", str(self.place.config)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s and self._process.returncode is None:
            try:
                return await self.ask("/v1/state")
            except AgentUnreachable:
                await asyncio.sleep(POLL_S)
        lines = log_path.read_text(errors="replace").strip().splitlines()
        raise DemoFailed(f"{self.name} did not start; {log_path} says why: {lines[-1] if lines else '(empty)'}")

    async def ask(self, path: str) -> Mapping[str, Any]:
        """A document of the running agent's. Raises AgentUnreachable."""
        return await asyncio.to_thread(agent_client.get, self.place.socket, path)

    async def kill(self) -> None:
        """SIGKILL: the node has no chance to say or write anything."""
        assert self._process is not None, "only what was started is killed"
        self._process.kill()
        await self._process.wait()

    async def stop(self) -> None:
        if self._process is not None:
            if self._process.returncode is None:
                self._process.terminate()
            await stop(self._process, STOP_TIMEOUT_S)


@asynccontextmanager
async def node_processes(places: Sequence[DevNode]) -> AsyncIterator[Sequence[NodeProcess]]:
    """Processes to start; none of them outlives the block."""
    async with AsyncExitStack() as stack:
        nodes = [NodeProcess(place) for place in places]
        for node in nodes:
            stack.push_async_callback(node.stop)
        yield nodes
