"""`openlora job`: submit a job to the queue, watch its answer come, read the result, take it back."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import TYPE_CHECKING, Annotated

import typer

from openlora.node.cli.hand import Hand, parse_address, signed
from openlora.node.cli.output import CLIENT_TOML, ClientFile, Ink, JsonFlag, Output, parse_tokens, tokens
from openlora.node.content import document_cid
from openlora.node.documents import MAX_INLINE_BYTES, ChatMessage, InputDocument, JobSampling, encode
from openlora.node.errors import ConfigError, RequestError
from openlora.node.tasks import with_pauses

if TYPE_CHECKING:
    from openlora.node.catalogue import RegisteredAdapter
    from openlora.node.deeds import Deed, Desk
    from openlora.node.market import Term
    from openlora.node.network.participant import Participant

app = typer.Typer(help="Submit inference jobs to the on-chain queue and read their answers.", no_args_is_help=True)

MAX_JOB = 2**64 - 1
JobNumber = Annotated[int, typer.Argument(min=1, max=MAX_JOB, help="As `job submit` printed it.")]
TEMPLATE_TOKENS = 128  # what a chat template may add to a prompt, generously


@app.command()
def submit(
    prompt: Annotated[str, typer.Argument(help="The user's message.")],
    base: Annotated[str, typer.Option(help="Base model: its registered name or 0x id.")] = "smollm2-135m-instruct",
    adapter: Annotated[
        list[str] | None, typer.Option(help="NAME or CID, with :WEIGHT in an ensemble. Repeatable.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most output tokens.")] = 64,
    price: Annotated[str, typer.Option(help="Bid IN:OUT, in tokens per 1,000 prompt and output tokens.")] = "0.1:0.2",
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer. Repeatable.")] = None,
    deadline: Annotated[int, typer.Option(min=1, help="Seconds until the job expires.")] = 600,
    watch: Annotated[bool, typer.Option("--watch", help="Stay, and print the answer as it comes.")] = False,
    publish: Annotated[
        bool, typer.Option("--publish", help="Have the answer published on chain, as part of the job.")
    ] = False,
    private: Annotated[
        bool,
        typer.Option(
            "--private",
            help="Seal prompt and answer for all but you and the nodes that are asked; stay, as --watch does.",
        ),
    ] = False,
    session: Annotated[
        bool, typer.Option("--session", help="Order from the node of an open session, at once; see `openlora session`.")
    ] = False,
    node: Annotated[
        str | None,
        typer.Option(
            help="Operator's address. With --session: if there are several; with --private: who alone is asked."
        ),
    ] = None,
    client: ClientFile = CLIENT_TOML,
    json: JsonFlag = False,
) -> None:
    """Escrow the most a job can cost and put it into the queue; or order it from a session's node, at once."""
    from openlora.node.cli.ordered import require_context, show_ordered
    from openlora.node.market import Offer, open_market
    from openlora.node.network.participant import participant
    from openlora.node.private.sealing import SEALED_MORE_BYTES

    named = None if node is None else parse_address(node)
    if not prompt.strip():
        raise ConfigError("the prompt is empty; say something")
    if named is not None and not session and not private:
        raise ConfigError("--node goes with --session or --private: any other job of the queue may go to any node")
    for flag, given in (("--private", private), ("--publish", publish)):
        if given and session:
            raise ConfigError(f"{flag} does not go with --session: an order of a session never reaches the chain")
    output = Output(json)
    in_price_wei, out_price_wei = parse_price(price)
    sampling = JobSampling(temperature=temperature, stop=tuple(stop or ()))
    document = InputDocument(v=1, messages=(ChatMessage("user", prompt),), sampling=sampling)
    offer = Offer(
        max_in_tokens=len(encode(document)) + TEMPLATE_TOKENS,  # no tokenizer makes more tokens than bytes
        max_out_tokens=max_tokens,
        in_price_wei_per_k=in_price_wei,
        out_price_wei_per_k=out_price_wei,
        deadline_s=deadline,
        publish=publish,
        private=private,
        only_node=None if named is None else named.lower(),
    )

    is_inline = len(encode(document)) + private * SEALED_MORE_BYTES <= MAX_INLINE_BYTES

    async def order() -> None:
        async with participant(client) as peer:
            catalogue = await peer.market.catalogue()
            terms = parse_terms(adapter or (), catalogue.adapter)
            base_id = catalogue.base(base).base_id
            recipe_id = await peer.market.recipe(base_id, terms)
            await show_ordered(peer, named, base_id, recipe_id, document, offer, output)

    async def run() -> None:
        async with AsyncExitStack() as stack:
            peer = None
            if watch or private or not is_inline:
                peer = await stack.enter_async_context(participant(client))
            market = peer.market if peer else await stack.enter_async_context(open_market(client))
            catalogue = await market.catalogue()
            await market.desk.cover(offer.escrow_wei)  # else a recipe would be registered for nothing
            terms = parse_terms(adapter or (), catalogue.adapter)
            base_id = catalogue.base(base).base_id
            if peer:
                require_context(peer.network.nodes(), base_id, max_tokens)
            recipe_id = await market.recipe(base_id, terms)
            if peer and private:
                from openlora.node.private.inviting import meet

                await meet(market, peer.network, base_id, offer)
            job = await market.submit(recipe_id, document, offer)
            output.say(f"job {job.job_id}: {tokens(job.escrow_wei)} OLRA in escrow")
            if job.use_fee_wei:
                output.say(f"and {tokens(job.use_fee_wei)} OLRA for its adapters, which charge by the job")
            sums = {"escrow_wei": job.escrow_wei, "use_fee_wei": job.use_fee_wei}
            output.result({"job_id": job.job_id, "recipe_id": recipe_id, **sums})
            if peer and not is_inline:
                output.say(f"the input: {await peer.replicate(document_cid(job.spec.input_digest))}")
            if peer and (watch or private):
                await show_answer(peer, job.job_id, output)

    asyncio.run(order() if session else run())


@app.command()
def watch(job_id: JobNumber, client: ClientFile = CLIENT_TOML, json: JsonFlag = False) -> None:
    """Print a job's answer as it is generated, whichever node holds the job."""
    from openlora.node.network.participant import participant

    async def run() -> None:
        async with participant(client) as peer:
            await show_answer(peer, job_id, Output(json))

    asyncio.run(run())


@app.command()
def result(job_id: JobNumber, client: ClientFile = CLIENT_TOML, json: JsonFlag = False) -> None:
    """Print a committed job's answer, checked against the digest on chain."""
    from openlora.node.job_report import job_report
    from openlora.node.network.participant import participant

    output = Output(json)

    async def run() -> None:
        async with participant(client) as peer:
            answer = await peer.market.output(job_id)
            if answer is None:
                state = (await job_report(peer.market.desk, job_id)).state
                more = "; watch it, or ask again later" if state in ("open", "claimed") else ""
                raise RequestError("not_committed", f"job {job_id} is {state} and has no committed answer{more}")
        output.say(answer.text)
        output.result(
            {"job_id": job_id, "text": answer.text, "finish_reason": answer.finish_reason, "usage": answer.usage}
        )

    asyncio.run(run())


@app.command()
def status(
    job_id: Annotated[
        int | None, typer.Argument(min=1, max=MAX_JOB, help="As `job submit` printed it; all of this key's if none.")
    ] = None,
    client: ClientFile = CLIENT_TOML,
    json: JsonFlag = False,
) -> None:
    """Show what the chain says of a job, or of all that this key has submitted."""
    from openlora.node.job_report import job_report, job_reports
    from openlora.node.market import open_market

    output = Output(json)

    async def show() -> None:
        async with open_market(client) as market:
            if job_id is None:
                reports = list(await job_reports(market.desk))
            else:
                reports = [await job_report(market.desk, job_id)]
        rows = [
            (
                report.job_id,
                report.state,
                "" if report.until_s is None else f"{max(0, report.until_s - report.now_s)} s",
                report.node or "",
                tokens(report.escrow_wei),
                tokens(report.receipt.fee) if report.receipt else "",
            )
            for report in reports
        ]
        output.table(("job #", "state", "time left", "node", "escrow OLRA", "fee OLRA"), rows)
        documents = [
            {
                "job_id": report.job_id,
                "state": report.state,
                "until_s": report.until_s,
                "client": report.spec.client,
                "recipe_id": report.spec.recipe_id,
                "node": report.node,
                "escrow_wei": report.escrow_wei,
                "fee_wei": report.receipt.fee if report.receipt else None,
            }
            for report in reports
        ]
        output.result(documents if job_id is None else documents[0])

    asyncio.run(show())


@app.command()
@signed(CLIENT_TOML)
def cancel(hand: Hand, job_id: JobNumber, json: JsonFlag = False) -> None:
    """Take back a job that no node holds: its whole escrow returns to its client. After its deadline anybody may."""

    async def draw(desk: "Desk") -> "Sequence[Deed]":
        from openlora.node.market import spec_of

        return await desk.take_back(job_id, await spec_of(desk, job_id))

    hand.carry_out(draw, Output(json), {"job_id": job_id})


@app.command()
@signed(CLIENT_TOML)
def demand(hand: Hand, job_id: JobNumber, json: JsonFlag = False) -> None:
    """Demand an answer that the node withholds: it publishes it on chain and gets your bond, or loses its own."""

    async def draw(desk: "Desk") -> "Sequence[Deed]":
        from openlora.node.market import committed

        return await desk.demand_output(job_id, *await committed(desk, job_id))

    hand.carry_out(draw, Output(json), {"job_id": job_id})


async def show_answer(peer: "Participant", job_id: int, output: Output, patience_s: float = 20.0) -> None:
    """Prints the job's answer as it comes; says so once it has waited `patience_s` for a node."""
    from openlora.node.network.watching import WAITING, follow_answer

    ink, state, text, told = Ink(), "", "", False
    async with aclosing(with_pauses(follow_answer(peer.market, peer.network, job_id), patience_s)) as steps:
        async for step in steps:
            if step is None:
                if state == WAITING and not told:
                    output.say("no node has claimed it yet; `openlora network` shows who is there, and what they ask")
                    told = True
                continue
            state, text = step
            if output.as_json:
                output.result({"job_id": job_id, "state": state, "text": text})
            else:
                ink.show(text)
    ink.end()
    output.say(f"job {job_id} is {state}")


def parse_price(text: str) -> tuple[int, int]:
    """ "0.1:0.2" in tokens → wei, for 1,000 prompt and 1,000 output tokens. Raises ConfigError."""
    in_tokens, colon, out_tokens = text.partition(":")
    if not colon:
        raise ConfigError(f"--price {text} is not IN:OUT, two numbers of tokens such as 0.1:0.2")
    return parse_tokens(in_tokens, "--price"), parse_tokens(out_tokens, "--price")


def parse_terms(texts: Sequence[str], find: "Callable[[str], RegisteredAdapter]") -> "list[Term]":
    """A recipe's adapters, each named once. Raises ConfigError, ChainError."""
    terms = [parse_term(text, find) for text in texts]
    if len({term.digest for term in terms}) < len(terms):
        raise ConfigError("--adapter names one adapter twice; give it once, with the sum of the weights")
    return terms


def parse_term(text: str, find: "Callable[[str], RegisteredAdapter]") -> "Term":
    """ "pirate", "pirate:0.7" or a CID with or without weight. Raises ConfigError, ChainError."""
    from openlora.node.facts import WEIGHT_UNIT
    from openlora.node.market import Term

    name, colon, weight_text = text.partition(":")
    try:
        weight = float(weight_text) if colon else 1.0
    except ValueError:
        raise ConfigError(f"--adapter {text}: {weight_text!r} is no weight; write NAME:0.7") from None
    if not (abs(weight) <= 10 and round(weight * WEIGHT_UNIT)):
        raise ConfigError(f"--adapter {text}: a weight lies between -10 and 10, and is 0.0001 at least")
    return Term(find(name).digest, weight)
