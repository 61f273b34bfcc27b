"""`openlora adapter`: publish a LoRA adapter and be paid whenever a job uses it."""

import asyncio
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openlora.node.cli.hand import Hand, parse_address, signed
from openlora.node.cli.output import CLIENT_TOML, ClientFile, JsonFlag, Output, parse_tokens
from openlora.node.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from openlora.contracts import Access
    from openlora.node.deeds import Deed, Desk

AdapterName = Annotated[str, typer.Argument(help="Its registered name, or its CID.")]


class AccessChoice(StrEnum):
    """As the registry knows it, in words."""

    PUBLIC = "public"
    ALLOW_LIST = "allow-list"
    PAY_PER_USE = "pay-per-use"

    @property
    def on_chain(self) -> "Access":
        from openlora.contracts import Access

        return Access[self.name]


app = typer.Typer(help="Publish LoRA adapters and list what is registered.", no_args_is_help=True)


@app.command()
def publish(
    directory: Annotated[Path, typer.Argument(help="Holds adapter_config.json and adapter_model.safetensors.")],
    name: Annotated[str, typer.Option(help="The label under which people find it.")],
    model: Annotated[Path, typer.Option(help="The base model it was trained on (directory or GGUF file).")],
    datanet: Annotated[list[int] | None, typer.Option(help="Id of a datanet it was trained on. Repeatable.")] = None,
    copies: Annotated[int, typer.Option(min=0, help="Nodes to hand it to, so that it outlives this machine.")] = 3,
    access: Annotated[AccessChoice, typer.Option(help="Who may have jobs done with it.")] = AccessChoice.PUBLIC,
    use_fee: Annotated[str, typer.Option(help="With pay-per-use: tokens a job, on top of the node's fee.")] = "0",
    client: ClientFile = CLIENT_TOML,
    json: JsonFlag = False,
) -> None:
    """Check an adapter as every node will, register it, and hand it to nodes that keep it.

    Publishing an adapter of yours again hands it to nodes anew.
    """
    from openlora.node.base_model import base_model_id
    from openlora.node.content import adapter_cid
    from openlora.node.engine.models.config import DecoderConfig
    from openlora.node.network.participant import participant

    output, use_fee_wei = Output(json), checked_fee(access, use_fee)

    async def run() -> None:
        layout = DecoderConfig.from_path(model).modules()
        base_id = base_model_id(model)
        async with participant(client) as peer:
            digest = await peer.market.publish_adapter(directory, layout, base_id, datanet or (), name)
            cid = adapter_cid(digest)
            known_as = (await peer.market.catalogue()).adapter(cid).name  # another one, if it was registered before
            output.say(f"{known_as} is registered as {cid}")
            if access is not AccessChoice.PUBLIC:
                await peer.market.carry_out(peer.market.desk.set_access(digest, access.on_chain, use_fee_wei))
                output.say(f"{known_as} is {access.value}")
            kept = await peer.replicate(cid, copies, base_id)
        output.say(f"{known_as}: {kept}")
        output.result(
            {"name": known_as, "cid": cid, "digest": digest, "holders": kept.holders, "refusals": kept.refusals}
        )

    asyncio.run(run())


@app.command("list")
def list_adapters(client: ClientFile = CLIENT_TOML, json: JsonFlag = False) -> None:
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


@app.command()
@signed(CLIENT_TOML)
def access(
    hand: Hand,
    adapter: AdapterName,
    to: Annotated[AccessChoice | None, typer.Option(help="Who may have jobs done with it from now on.")] = None,
    use_fee: Annotated[str, typer.Option(help="With pay-per-use: tokens a job, on top of the node's fee.")] = "0",
    allow: Annotated[list[str] | None, typer.Option(help="Address to put on its list. Repeatable.")] = None,
    deny: Annotated[list[str] | None, typer.Option(help="Address to take off its list. Repeatable.")] = None,
    take_down: Annotated[bool, typer.Option("--take-down", help="For good: no new job may use it.")] = False,
    json: JsonFlag = False,
) -> None:
    """Say who may use an adapter of yours, from the next job on: claimed jobs run on."""
    use_fee_wei = checked_fee(to or AccessChoice.PUBLIC, use_fee)
    allowed, denied = [parse_address(text) for text in allow or ()], [parse_address(text) for text in deny or ()]
    if to is None and not (allowed or denied or take_down):
        raise ConfigError("nothing is to be changed: give --to, --allow, --deny or --take-down")

    async def draw(desk: "Desk") -> "Sequence[Deed]":
        from openlora.node.catalogue import catalogue

        digest = (await catalogue(desk)).adapter(adapter).digest
        deeds = [] if to is None else desk.set_access(digest, to.on_chain, use_fee_wei)
        deeds += desk.allow(digest, allowed, True) if allowed else []
        deeds += desk.allow(digest, denied, False) if denied else []
        return [*deeds, *(desk.take_down(digest) if take_down else ())]

    hand.carry_out(draw, Output(json), {"adapter": adapter})


def checked_fee(access: AccessChoice, text: str) -> int:
    """Token wei a job. Raises ConfigError unless it is positive just where it is charged."""
    fee_wei = parse_tokens(text, "--use-fee")
    if (fee_wei > 0) != (access is AccessChoice.PAY_PER_USE):
        raise ConfigError("--use-fee goes with pay-per-use, and pay-per-use with a fee")
    return fee_wei
