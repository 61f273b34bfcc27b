"""`openlora session`: a deposit for one node, against which it answers orders at once."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from openlora.node.cli.hand import Hand, parse_address, signed
from openlora.node.cli.output import CLIENT_TOML, ClientFile, JsonFlag, Output, parse_tokens, tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from openlora.node.deeds import Deed, Desk

app = typer.Typer(
    help="Deposit for one node, order from it without a transaction, and settle later.", no_args_is_help=True
)

SessionId = Annotated[str, typer.Argument(help="The session's id, or how it begins.")]


@app.command("open")
@signed(CLIENT_TOML)
def open_session(
    hand: Hand,
    node: Annotated[str, typer.Option(help="Operator's address, as `openlora network` shows it.")],
    deposit: Annotated[str, typer.Option(help="Tokens; what is not spent comes back.")],
    json: JsonFlag = False,
) -> None:
    """Deposit tokens for a node."""
    operator, deposit_wei, output = parse_address(node), parse_tokens(deposit, "--deposit"), Output(json)
    said: dict[str, str | int] = {"node": operator, "deposit_wei": deposit_wei}

    async def draw(desk: "Desk") -> "Sequence[Deed]":
        session_id, deeds = await desk.open_session(operator, deposit_wei)
        said["session"] = f"0x{session_id.hex()}"
        return deeds

    hand.carry_out(draw, output, said)
    if not hand.unsigned:
        output.say(f"session {said['session']}")


@app.command()
@signed(CLIENT_TOML)
def topup(
    hand: Hand,
    session: SessionId,
    amount: Annotated[str, typer.Argument(help="Tokens to add.")],
    json: JsonFlag = False,
) -> None:
    """Add to a session's deposit."""
    amount_wei = parse_tokens(amount, "AMOUNT")

    async def draw(desk: "Desk") -> "Sequence[Deed]":
        from openlora.node.sessions.deposits import Deposits

        return await desk.top_up_session((await Deposits(desk).named(session)).id, amount_wei)

    hand.carry_out(draw, Output(json), {"amount_wei": amount_wei})


@app.command()
@signed(CLIENT_TOML)
def close(hand: Hand, session: SessionId, json: JsonFlag = False) -> None:
    """Ask for the rest of a deposit back; once the node has had its time to settle, the same command brings it."""

    async def draw(desk: "Desk") -> "Sequence[Deed]":
        from openlora.node.sessions.deposits import Deposits

        deposits = Deposits(desk)
        return await deposits.closing(await deposits.named(session))

    hand.carry_out(draw, Output(json))


@app.command()
def status(client: ClientFile = CLIENT_TOML, json: JsonFlag = False) -> None:
    """List this key's sessions as the chain sees them."""
    from openlora.node.market import open_market
    from openlora.node.sessions.deposits import Deposits

    output = Output(json)

    async def show() -> None:
        async with open_market(client) as market:
            deposits = await Deposits(market.desk).mine()
        rows = [
            (
                "0x" + deposit.id.hex(),
                deposit.session.node,
                deposit.session.state.name.lower(),
                tokens(deposit.session.deposit),
                tokens(deposit.session.settled),
            )
            for deposit in deposits
        ]
        output.table(("session", "node", "state", "deposit OLRA", "settled OLRA"), rows)
        output.result(
            [
                {
                    "session": deposit.id,
                    "node": deposit.session.node,
                    "state": deposit.session.state.name.lower(),
                    "deposit_wei": deposit.session.deposit,
                    "settled_wei": deposit.session.settled,
                    "close_at_s": deposit.session.close_at,
                }
                for deposit in deposits
            ]
        )

    asyncio.run(show())
