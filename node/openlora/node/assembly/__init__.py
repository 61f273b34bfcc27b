"""How a node is put together. Each module opens one side of it; `app` opens them in order and runs their loops.

ground      configuration, keys, journal and chain, on which everything stands
lanes       jobs, from the queue and sent directly: claimed, answered, settled, and asked about later
neighbours  what other nodes are told, and what is kept for them
faces       what people see: sockets, the page, a broker
"""

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

Loops = Mapping[str, Callable[[], Coroutine[Any, Any, None]]]
"""What runs as long as the node, by name. The first that fails ends the node."""
