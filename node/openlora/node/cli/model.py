"""`openlora model`: base models, named by their content."""

from pathlib import Path
from typing import Annotated

import typer

from openlora.node.cli.output import JsonFlag, Output
from openlora.node.errors import ModelError

app = typer.Typer(help="Fetch base models and check what they are.", no_args_is_help=True)


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="A name of the catalogue, e.g. smollm2-135m-instruct.")],
    to: Annotated[Path, typer.Option("--to", help="Folder that will hold the model's own folder.")] = Path("models"),
    json: JsonFlag = False,
) -> None:
    """Fetch a base model, convert it, and check it against its pinned id. Instant when it is there already."""
    from openlora.node import base_model

    output = Output(json)
    path = base_model.pull(name, to, progress=output.say)
    output.say(f"{path} is {name}")
    output.result({"name": name, "path": str(path), "base_id": base_model.base_model_id(path)})


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="A Hugging Face directory or a GGUF file.")],
    expect: Annotated[str | None, typer.Option(help="The id it should have (0x and 64 hex digits).")] = None,
    json: JsonFlag = False,
) -> None:
    """Print a base model's id; with --expect, exit 2 unless it is that model."""
    from openlora.node.base_model import base_model_id

    output = Output(json)
    base_id = base_model_id(path)
    if expect is not None and bytes.fromhex(expect.removeprefix("0x")) != base_id:
        raise ModelError(f"{path} is 0x{base_id.hex()}, not {expect}; fetch the model again")
    output.say(f"0x{base_id.hex()}  {path}")
    output.result({"path": str(path), "base_id": base_id})
