"""The interpreter's recursion limit, which keeps deeply nested input from overflowing the C stack."""

import importlib
import sys
from typing import Final

LIMIT: Final = 1000  # CPython's own


def restore_recursion_limit() -> None:
    """Undoes what `py_ecc` (behind eth_account) does when it is first imported: a limit of 100,000 for the process.

    At that depth a JSON text of a megabyte of brackets ends the process instead of raising RecursionError.
    """
    importlib.import_module("py_ecc")
    sys.setrecursionlimit(LIMIT)
