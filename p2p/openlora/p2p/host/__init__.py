"""The real network: py-libp2p over TCP, noise and yamux, with our limits in front of it."""

from openlora.p2p.host import _tamed as _tamed
from openlora.p2p.host.guard import Traffic
from openlora.p2p.host.network import HostOptions, Libp2pNetwork, open_network

__all__ = ["HostOptions", "Libp2pNetwork", "Traffic", "open_network"]
