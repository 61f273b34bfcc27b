"""`python -m openlora.node.network` is the network process."""

import gc
import sys

gc.disable()  # of the 100,000 objects that the imports make none is garbage: looking for it takes a tenth of the start
from openlora.node.network.process import main  # noqa: E402 - the collector must be off before

gc.freeze()
gc.enable()

sys.exit(main(sys.argv[1:]))
