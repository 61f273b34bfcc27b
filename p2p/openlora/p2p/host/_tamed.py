"""Imports py-libp2p without what its import does to a program: what it drags in, a third of its time and 11 MB, with
deprecation warnings; and its own configuration of logging. Importing anything of `openlora.p2p.host` brings this first.
"""

import logging
import warnings

from openlora.p2p.host._stand_ins import stand_ins

# Certificates by ACME with two HTTP clients, QUIC, WebSocket: transports and security that are never offered here.
_UNUSED = ("libp2p.security.tls", "libp2p.transport.quic", "libp2p.transport.websocket", "dns.quic")

with warnings.catch_warnings(), stand_ins(_UNUSED):
    warnings.simplefilter("ignore")  # websockets.legacy and others, which we do not use
    import libp2p
    from libp2p.network.connection import swarm_connection

# What matters is raised to us. What it logs are strangers' doings, as errors and with tracebacks, and some of its
# modules set levels of their own, so only here is a place to stop it all.
_logger = logging.getLogger(libp2p.__name__)
_logger.propagate = False
_logger.addHandler(logging.NullHandler())
# This module calls logging.debug() itself, which configures the root logger of a program that has not done so yet.
setattr(swarm_connection, "logging", _logger)  # noqa: B010 - it is a module there
