"""The real network: py-libp2p over TCP, noise and yamux, with our limits in front of it."""

from openlora.p2p.host import _tamed as _tamed
