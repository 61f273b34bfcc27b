"""Capturing a step of fixed buffers, so that it can be repeated without launching its kernels one by one."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Step = Callable[[], Tensor]


class Graphs(Protocol):
    """Turns a step into one that is repeated as a whole."""

    def capture(self, step: Step) -> Step:
        """What repeats the step on what its buffers hold then, with its result always in the same place. The step is
        run on what they hold now, once or more. Raises RuntimeError where the device cannot."""
        ...


class CudaGraphs:
    """The driver's graphs. All share one pool of memory: a result holds until the next step of any of them."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, step: Step) -> Step:
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            step()  # compiles kernels and takes workspaces, neither of which a graph may
        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = step()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay


class Repetition:
    """The same promise where there are no graphs: the same call on the same buffers."""

    def capture(self, step: Step) -> Step:
        result = step()

        def replay() -> Tensor:
            return result.copy_(step())

        return replay
