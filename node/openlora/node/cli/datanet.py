"""`openlora datanet`: register texts, so that whoever wrote them is paid a share of what is trained on them."""

import asyncio
from decimal import Decimal, InvalidOperation
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from openlora.node.cli.hand import parse_address
from openlora.node.cli.output import CLIENT_TOML, ClientFile, JsonFlag, Output
from openlora.node.errors import ConfigError
from openlora.node.malformed import MALFORMED

if TYPE_CHECKING:
    from openlora.contracts import Share

MAX_LINE_BYTES = 1 << 20


class Pair(msgspec.Struct):
    """One line of a text, as `node/factory/train.py` reads it."""

    question: str
    answer: str


app = typer.Typer(help="Register the texts that adapters are trained on, and list them.", no_args_is_help=True)


@app.command()
def create(
    texts: Annotated[
        list[Path], typer.Argument(metavar="TEXT…", help="The files; their order is part of what is registered.")
    ],
    name: Annotated[str, typer.Option(help="The label under which people find it.")],
    share: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS:PERCENT", help="Who is paid how much; all of it goes to your key by default. Repeatable."
        ),
    ] = None,
    client: ClientFile = CLIENT_TOML,
    json: JsonFlag = False,
) -> None:
    """Register texts by their digests, and who shares the 10 % that jobs with adapters trained on them pay.

    Each line of a text is one {"question", "answer"}. The texts stay where they are. What is registered never changes.
    """
    from openlora.node.catalogue import datanet_root
    from openlora.node.market import open_market

    output = Output(json)
    root = datanet_root(map(digest_of, texts))
    shares = [parse_share(text) for text in share or ()]
    if shares and sum(each.bps for each in shares) != 10_000:
        raise ConfigError("the percentages of --share must add up to 100")

    async def run() -> None:
        async with open_market(client) as person:
            datanet_id = await person.create_datanet(root, shares or [parse_share(f"{person.key.address}:100")], name)
        output.say(f"{name} is datanet {datanet_id}; name it when you publish: --datanet {datanet_id}")
        output.result({"datanet_id": datanet_id, "name": name, "root": root})

    asyncio.run(run())


@app.command("list")
def list_datanets(client: ClientFile = CLIENT_TOML, json: JsonFlag = False) -> None:
    """List the datanets registered on chain."""
    from openlora.node.market import open_market

    output = Output(json)

    async def run() -> None:
        async with open_market(client) as person:
            datanets = (await person.catalogue()).datanets
        rows = [(datanet.datanet_id, datanet.name, datanet.owner, f"0x{datanet.root.hex()}") for datanet in datanets]
        output.table(("#", "name", "owner", "root"), [tuple(map(str, row)) for row in rows])
        output.result([dict(zip(("datanet_id", "name", "owner", "root"), row, strict=True)) for row in rows])

    asyncio.run(run())


def digest_of(text: Path) -> bytes:
    """sha256 of a text that the factory can train on, a line at a time: texts may be larger than memory.

    Raises ConfigError, which names the line, for one that it cannot.
    """
    digest, number = sha256(), 0
    with text.open("rb") as file:
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            try:
                msgspec.json.decode(line, type=Pair)
            except MALFORMED as error:
                raise ConfigError(
                    f'line {number} of {text} is not one {{"question": "…", "answer": "…"}}, which is what adapters are'
                    f" trained on: {error}; correct it"
                ) from None
            digest.update(line)
    if not number:
        raise ConfigError(f"{text} is empty; name a file of texts to register")
    return digest.digest()


def parse_share(text: str) -> "Share":
    """ADDRESS:PERCENT. Raises ConfigError."""
    from openlora.contracts import Share

    address, _, percent = text.partition(":")
    try:
        bps = Decimal(percent) * 100
        whole = int(bps)
    except (InvalidOperation, ValueError, OverflowError):
        raise ConfigError(f"--share {text} is not ADDRESS:PERCENT") from None
    if whole != bps or not 0 < whole <= 10_000:
        raise ConfigError(f"--share {text}: give a percentage above 0, at most 100, with at most two decimals")
    return Share(payee=parse_address(address), bps=whole)
