"""What the network process is told when it starts."""

import msgspec

from openlora.node.config import LogConfig


class NetworkOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One peer's place in the network. Addresses are multiaddrs, those of bootstrap peers end in /p2p/<peer id>."""

    chain_id: int
    registry: str  # the NodeRegistry's address, to which peers' bindings are made out
    content_dir: str  # the block store, which the agent reads too
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/4001",)
    bootstrap: tuple[str, ...] = ()
    announce: tuple[str, ...] = ()  # what others are told, instead of where we listen
    mdns: bool = True  # find peers in the local network
    nat: bool = True  # ask the router for a port
    max_content_bytes: int = 50 << 30  # nothing is fetched into a block store that holds as much
    memory_bytes: int = 768 << 20  # the process's own data; above it allocations fail
    log: LogConfig = LogConfig()
