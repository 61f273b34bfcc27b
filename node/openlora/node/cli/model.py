"""`openlora model`: base models, named by their content."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from openlora.node.cli.output import CLIENT_TOML, ClientFile, JsonFlag, Output
from openlora.node.errors import ConfigError, ModelError

app = typer.Typer(help="Fetch base models, check what they are, and register them.", no_args_is_help=True)


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="A name of the catalogue, e.g. smollm2-135m-instruct.")],
    to: Annotated[Path, typer.Option("--to", help="Folder that will hold the model's own folder.")] = Path("models"),
    json: JsonFlag = False,
) -> None:
    """Fetch a base model, convert it, and check it against its pinned id. Instant when it is there already."""
    from openlora.node import known_models
    from openlora.node.base_model import base_model_id

    output = Output(json)
    path = known_models.pull(name, to, progress=output.say)
    output.say(f"{path} is {name}")
    output.result({"name": name, "path": str(path), "base_id": base_model_id(path)})


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="A Hugging Face directory or a GGUF file.")],
    expect: Annotated[str | None, typer.Option(help="The id it should have (0x and 64 hex digits).")] = None,
    json: JsonFlag = False,
) -> None:
    """Print a base model's id; with --expect, exit 2 unless it is that model."""
    from openlora.node.base_model import base_model_id

    output = Output(json)
    expected = None if expect is None else parse_id(expect)
    base_id = base_model_id(path)
    if expected not in (None, base_id):
        raise ModelError(f"{path} is 0x{base_id.hex()}, not {expect}; fetch the model again")
    output.say(f"0x{base_id.hex()}  {path}")
    output.result({"path": str(path), "base_id": base_id})


@app.command()
def register(
    path: Annotated[Path, typer.Argument(help="A Hugging Face directory or a GGUF file.")],
    name: Annotated[str, typer.Option(help="The name by which jobs ask for it.")],
    client: ClientFile = CLIENT_TOML,
    json: JsonFlag = False,
) -> None:
    """Register a base model on chain, once for everybody: its jobs pay the key that does."""
    from openlora.node.base_model import base_model_id
    from openlora.node.market import open_market

    output, base_id = Output(json), base_model_id(path)

    async def run() -> None:
        async with open_market(client) as person:
            for base in (await person.catalogue()).bases:
                if base.name == name and base.base_id != base_id:
                    raise ConfigError(
                        f"{name} is the name of 0x{base.base_id.hex()}, and jobs could ask for neither by it;"
                        " choose another --name"
                    )
            await person.register_base(base_id, name)
            output.say(f"{name} is registered as 0x{base_id.hex()}, and pays {person.key.address}")
            output.result({"name": name, "base_id": base_id, "payee": person.key.address})

    asyncio.run(run())


def parse_id(text: str) -> bytes:
    """A base model's id. Raises ConfigError."""
    try:
        base_id = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        base_id = b""
    if len(base_id) != 32:
        raise ConfigError(f"--expect {text} is no base model's id: give 0x and 64 hex digits")
    return base_id
