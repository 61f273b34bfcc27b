"""Bytes of strangers that do not fit: what is raised for them, and how they are quoted."""

from typing import Final

import msgspec

# What msgspec raises; which of it, the stranger chooses.
MALFORMED: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def quote(value: object) -> str:
    """A parsed value for an error message: printable ASCII, at most 80 characters, whatever a stranger wrote.

    Lists and objects are not looked into: they may be nested as deeply as the parser allows, which repr() does not.
    """
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    shown = ascii(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
