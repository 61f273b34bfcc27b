"""What a command prints: for people by default, one JSON document a line with --json."""

import json
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from openlora.node.errors import ConfigError
from openlora.node.wei import TOKEN_WEI, tokens

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON instead of text; wei are strings.")]
NodeFile = Annotated[Path, typer.Option("--config", help="The node's configuration.")]
CLIENT_TOML = Path("client.toml")  # what commands take it to be called
ClientFile = Annotated[Path, typer.Option("--client", help="The configuration of the key to act for.")]

__all__ = ["CLIENT_TOML", "ClientFile", "Ink", "JsonFlag", "NodeFile", "Output", "parse_tokens", "printable", "tokens"]

MAX_WEI = 10**9 * TOKEN_WEI

NUMBERS = ("OLRA", "tokens", "tokens/s", "ms", "#")  # how the headings of columns of numbers end


class Output:
    """Text goes to the terminal as it comes; with JSON only `result` prints, to stdout, one line."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.console = Console(quiet=as_json, highlight=False, markup=False, soft_wrap=True)

    def say(self, text: str) -> None:
        self.console.print(printable(text))

    def line(self, *parts: tuple[str, str], indent: int = 0) -> None:
        """Pieces of text, each in its style; a terminal wraps them within their indent, a file has one line."""
        text = Text.assemble(*((printable(text), style) for text, style in parts))
        if self.console.is_terminal:
            self.console.print(Padding(text, (0, 0, 0, indent)), soft_wrap=False)
        else:
            self.console.print(Text(" " * indent) + text)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> None:
        table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
        for column in columns:
            table.add_column(column, justify="right" if column.endswith(NUMBERS) else "left")
        for row in rows:
            table.add_row(*(printable(str(cell)) for cell in row))
        unbounded = self.console.options.update(max_width=10_000)
        width = Measurement.get(self.console, unbounded, table).maximum  # identities are copied: none is ever cut
        Console(width=width, quiet=self.as_json, highlight=False, markup=False).print(table, soft_wrap=True)

    def result(self, document: Mapping[str, Any] | Sequence[Any] | msgspec.Struct) -> None:
        if self.as_json:
            plain = msgspec.to_builtins(document, builtin_types=(bytes,), enc_hook=str)
            print(json.dumps(_exact(plain), default=_hex), flush=True)


class Ink:
    """An answer on the terminal as it grows."""

    def __init__(self) -> None:
        self._printed = ""

    def show(self, text: str) -> None:
        """The answer so far."""
        if not text.startswith(self._printed):  # it began anew, perhaps with another node
            sys.stdout.write("\n")
            self._printed = ""
        sys.stdout.write(printable(text[len(self._printed) :]))
        sys.stdout.flush()
        self._printed = text

    def end(self) -> None:
        if self._printed:
            sys.stdout.write("\n")
            sys.stdout.flush()


def printable(text: str) -> str:
    """Names and answers are strangers' text: what could steer a terminal is shown as a replacement character."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)


def parse_tokens(text: str, flag: str) -> int:
    """A decimal number of tokens as wei. Raises ConfigError naming the flag."""
    try:
        wei = Decimal(text) * TOKEN_WEI
        whole = int(wei)
    except (InvalidOperation, ValueError, OverflowError):
        raise ConfigError(f"{flag} {text} is no number of tokens; write 0.1, say") from None
    if whole != wei or not 0 <= whole < MAX_WEI:
        raise ConfigError(f"{flag} {text}: give at most 18 decimals, and between 0 and 10^9 tokens")
    return whole


def _exact(value: Any, name: str = "") -> Any:
    """Amounts named `…_wei`, or below such a name, as text: readers of JSON round numbers from 2^53 on."""
    if isinstance(value, dict):
        return {key: _exact(item, name if name.endswith("_wei") else key) for key, item in value.items()}
    if isinstance(value, list):
        return [_exact(item, name) for item in value]
    return str(value) if type(value) is int and name.endswith("_wei") else value


def _hex(data: bytes) -> str:
    return "0x" + data.hex()
