"""What a process keeps to itself: keys, prompts and answers are in its memory, and so must not be in a file of it."""

import ctypes
import resource
import sys
from typing import Final

_PR_SET_DUMPABLE: Final = 4  # linux/prctl.h


def leave_no_core() -> None:
    """Called first by a main. A crash leaves no core file and hands none to a collector, which a limit alone allows
    (core(5)); nor can another process of this user read this one's memory or environment.

    It does not outlast an exec: each of our processes calls it.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux" and ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")
