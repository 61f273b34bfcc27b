"""JSON from strangers: one object, no duplicate keys, no NaN, every fault an AdapterError that names the file."""

import json
from typing import Any, NoReturn

from openlora.node.errors import AdapterError
from openlora.node.malformed import quote


def parse_object(data: bytes, file: str) -> dict[str, Any]:
    """The one JSON object in `data` (UTF-8). `file` names the source in the AdapterError raised for anything else.

    The caller bounds the size of `data`; nesting is bounded by the interpreter's recursion limit.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise AdapterError(f"{file}: the key {quote(key)} occurs twice")
            found[key] = value
        return found

    def no_constant(name: str) -> NoReturn:
        raise AdapterError(f"{file}: {name} is not a JSON number")

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=no_constant)
    except UnicodeDecodeError as error:
        raise AdapterError(f"{file}: not UTF-8 text") from error
    except RecursionError as error:
        raise AdapterError(f"{file}: nested too deeply") from error
    except ValueError as error:  # malformed, or an integer of thousands of digits
        raise AdapterError(f"{file}: not valid JSON") from error
    if not isinstance(value, dict):
        raise AdapterError(f"{file}: must hold one JSON object")
    return value
