"""`openlora job`: submit a job to the queue, watch its answer come, read the result."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from openlora.node.cli.output import JsonFlag, Output, tokens
from openlora.node.errors import ConfigError

app = typer.Typer(help="Submit inference jobs to the on-chain queue and read their answers.", no_args_is_help=True)

ClientFile = Annotated[Path, typer.Option("--client", help="The submitter's configuration.")]
CLIENT_TOML = Path("client.toml")


@app.command()
def submit(
    prompt: Annotated[str, typer.Argument(help="The user's message.")],
    base: Annotated[str, typer.Option(help="Base model: its registered name or 0x id.")],
    adapter: Annotated[
        list[str] | None, typer.Option(help="NAME or CID, with :WEIGHT for an ensemble. Repeatable.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most output tokens.")] = 64,
    price: Annotated[str, typer.Option(help="Bid in tokens per 1,000 tokens, in:out.")] = "0.1:0.2",
    temperature: Annotated[float, typer.Option(min=0)] = 0.0,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer. Repeatable.")] = None,
    deadline: Annotated[int, typer.Option(help="Seconds until the job expires.")] = 600,
    watch: Annotated[bool, typer.Option(help="Stay and print the answer as it comes.")] = False,
    client: ClientFile = CLIENT_TOML,
    json: JsonFlag = False,
) -> None:
    """Escrow the fee and submit a job."""
    from openlora.node import market

    output = Output(json)

    async def run() -> None:
        async with market.connect(client) as person:
            base_id, name = await person.find_base(base)
            terms = [await person.find_adapter(text) for text in adapter or ()]
            in_price, out_price = market.parse_price(price)
            document = market.chat_input(prompt, temperature=temperature, stop=tuple(stop or ()))
            offer = market.Offer(
                max_in_tokens=market.most_prompt_tokens(document),
                max_out_tokens=max_tokens,
                in_price_wei_per_k=in_price,
                out_price_wei_per_k=out_price,
                deadline_s=deadline,
            )
            job = await person.submit(await person.recipe(base_id, terms), document, offer)
            output.say(f"job {job.job_id} on {name}: {tokens(job.escrow_wei)} OLRA in escrow")
            output.result({"job_id": job.job_id, "escrow_wei": job.escrow_wei, "recipe_id": job.spec.recipe_id})
            if watch:
                await _watch(person, job.job_id, output)

    asyncio.run(run())
