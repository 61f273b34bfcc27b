"""Imports py-libp2p without what its import does to a program: deprecation warnings of what it drags in, and its own
logging configuration. Importing anything of `openlora.p2p.host` brings this first."""

import logging
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # websockets.legacy and others, which we do not use
    import libp2p

_logger = logging.getLogger(libp2p.__name__)
_logger.propagate = True  # it clears the handlers and cuts the application's off
_logger.setLevel(logging.CRITICAL)  # what matters is raised to us; it logs strangers' doings as errors, with tracebacks
