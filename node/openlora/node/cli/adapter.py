"""`openlora adapter`: publish a LoRA adapter and be paid whenever a job uses it."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from openlora.node.cli.output import ClientFile, JsonFlag, Output

app = typer.Typer(help="Publish LoRA adapters and list what is registered.", no_args_is_help=True)


@app.command()
def publish(
    directory: Annotated[
        Path, typer.Argument(help="Holds adapter_config.json and adapter_model.safetensors, nothing else.")
    ],
    name: Annotated[str, typer.Option(help="The label under which people find it.")],
    model: Annotated[Path, typer.Option(help="The base model it was trained on (directory or GGUF file).")],
    datanet: Annotated[list[int] | None, typer.Option(help="Id of a datanet it was trained on. Repeatable.")] = None,
    copies: Annotated[int, typer.Option(min=0, help="Nodes to hand it to, so that it outlives this machine.")] = 3,
    client: ClientFile = Path("client.toml"),
    json: JsonFlag = False,
) -> None:
    """Check an adapter as every node will, register it, and hand it to nodes that keep it."""
    from openlora.node.base_model import base_model_id
    from openlora.node.content import adapter_cid
    from openlora.node.engine.models.config import DecoderConfig
    from openlora.node.network.participant import participant

    output = Output(json)

    async def run() -> None:
        layout = DecoderConfig.from_path(model).modules()
        base_id = base_model_id(model)
        async with participant(client) as peer:
            digest = await peer.market.publish_adapter(directory, layout, base_id, datanet or (), name)
            cid = adapter_cid(digest)
            output.say(f"{name} is registered as {cid}")
            kept = await peer.replicate(cid, copies, base_id)
        output.say(f"{name}: {kept}")
        output.result({"name": name, "cid": cid, "digest": digest, "holders": kept.holders, "refusals": kept.refusals})

    asyncio.run(run())


@app.command("list")
def list_adapters(client: ClientFile = Path("client.toml"), json: JsonFlag = False) -> None:
    """List the adapters registered on chain."""
    from openlora.node.market import open_market

    output = Output(json)

    async def run() -> None:
        async with open_market(client) as person:
            catalogue = await person.catalogue()
        bases = {base.base_id: base.name for base in catalogue.bases}
        rows = [
            (adapter.name, bases.get(adapter.base_id, "0x" + adapter.base_id.hex()), adapter.cid, adapter.owner)
            for adapter in catalogue.adapters
            if not adapter.deprecated
        ]
        output.table(("name", "base", "cid", "owner"), rows)
        output.result([dict(zip(("name", "base", "cid", "owner"), row, strict=True)) for row in rows])

    asyncio.run(run())
