"""The signed lane at a node: orders answered at once, receipts, and the vouchers that pay for them.

What the node trusts a client with is one order: it answers the next only once the last is paid, or while all that is
unpaid stays within `max_unpaid_wei`. What it has answered it never answers, signs or charges twice: an order is in the
journal before the engine has it, and its one receipt before it is signed.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from openlora.contracts import (
    MAX_LINES,
    Domain,
    JobSpec,
    Recipe,
    Session,
    SessionState,
    eip712,
)
from openlora.node import documents
from openlora.node.admission import Admission, Skip
from openlora.node.answering import Answerer, Work
from openlora.node.config import SessionsConfig
from openlora.node.errors import AdapterError, ContentError, EngineDied, RequestError, Reverted
from openlora.node.facts import ChainFacts
from openlora.node.network.rates import PeerRates, RateLimits
from openlora.node.sessions.cashier import Cashier
from openlora.node.sessions.ledger import Order, OrderState, SessionLedger
from openlora.node.sessions.messages import (
    MAX_PART_BYTES,
    MAX_PIECE_CHARACTERS,
    OutputPart,
    Pay,
    Receipted,
    Reply,
    Text,
    decode_request,
    encode_message,
    packed,
    unpacked,
)
from openlora.node.sessions.messages import Order as OrderRequest
from openlora.node.settlement import Signer
from openlora.node.tasks import task_group

log = logging.getLogger(__name__)

MAX_NUMBER: Final = (1 << 63) - 1  # of an order: what the journal can hold


@dataclass(slots=True)
class SessionLane:
    """Answers what clients ask of this lane, and runs their orders: `run` in one task, `answer` from the network."""

    ledger: SessionLedger
    cashier: Cashier
    facts: ChainFacts
    admission: Admission
    answerer: Answerer  # with streams of this lane's own
    signer: Signer  # in Sessions' domain
    config: SessionsConfig
    alone: Callable[[], bool] = lambda: True  # whether no other agent runs as this node
    chain_s: Callable[[], float] = time.time  # the chain's time, which deadlines are in
    rates: PeerRates = field(default_factory=lambda: PeerRates(RateLimits(per_s=20.0, burst=200)))
    _tasks: asyncio.TaskGroup | None = None
    _running: dict[bytes, asyncio.Task[None]] = field(default_factory=dict)

    @property
    def active(self) -> int:
        """Orders under way."""
        return len(self._running)

    @property
    def domain(self) -> Domain:
        return self.signer.domain

    async def run(self) -> None:
        """Gives orders a place to run in, until cancelled."""
        async with task_group() as self._tasks:
            await asyncio.Event().wait()

    async def answer(self, peer: str, body: bytes) -> AsyncIterator[bytes]:
        """Refuses with a RequestError whose code is stable and whose sentence says what to do."""
        self.rates.check(peer)
        request = decode_request(body)
        if isinstance(request, OrderRequest):
            async for reply in self._order(request):
                yield encode_message(reply)
        else:
            cashier = self.cashier
            reply = await (cashier.pay(request) if isinstance(request, Pay) else cashier.standing(peer, request))
            yield encode_message(reply)

    # ---- orders ----

    async def _order(self, request: OrderRequest) -> AsyncIterator[Reply]:
        spec = unpacked(JobSpec, request.spec)
        digest = eip712.spec_digest(self.domain, spec)
        await self.cashier.checks.signature(spec.client, digest, request.signature)
        order = self.ledger.order(digest)
        if order is None or order.state is OrderState.FAILED:
            order, recipe = await self._accepted(request, spec, digest)
            self._start(order, recipe)
        elif self._is_left(digest):
            recipe = await self._recipe(spec.recipe_id)
            if self._is_left(digest):  # or somebody else has asked for it meanwhile
                self._check_room()
                self._start(order, recipe)
        async for text in self._texts(digest, order.key):
            yield text
        async for reply in self._result(digest):
            yield reply

    async def _accepted(self, request: OrderRequest, spec: JobSpec, digest: bytes) -> tuple[Order, Recipe]:
        """The order, journalled. Raises RequestError."""
        number = eip712.order_number(request.session, spec.nonce)
        if number is None or not 0 < number <= MAX_NUMBER:
            raise RequestError(
                "wrong_session", "the order's nonce is not of this session; take its id and a new number"
            )
        if spec.flags:
            raise RequestError("unknown_flags", f"the spec's flags are {spec.flags:#x}; this lane knows none, pass 0")
        document = request.document or None
        if document is not None and documents.digest(document) != spec.input_digest:
            raise RequestError("bad_input", "the document is not the one that the spec names; send that one")
        session = await self._open_session(request.session, spec)
        recipe = await self._recipe(spec.recipe_id)
        await self._check_access(spec)
        self._check_lines(request.session, spec.recipe_id)
        try:
            self.admission.check_offer(spec, recipe, self.chain_s())
            await self.admission.check_content(spec, document, recipe)
        except Skip as skip:
            raise RequestError(skip.code.value, f"this node does not take the order: {skip.code.value}") from None
        self._check_room()
        order = Order(digest, request.session, number, spec, request.signature, document)
        self.ledger.accept(order, session.deposit, self.config.max_unpaid_wei)
        log.info("event=order_accepted order=%s number=%d", digest.hex()[:16], number)
        return order, recipe

    async def _open_session(self, session_id: bytes, spec: JobSpec) -> Session:
        """Raises RequestError unless it is open, confirmed, with this node, and the spec's client's."""
        session = await self.cashier.checks.confirmed(session_id)
        if session.state is not SessionState.OPEN:
            state = session.state.name.lower()
            raise RequestError("session_not_open", f"the session is {state} on chain; open one, or wait for its block")
        if session.node != self.signer.operator:
            raise RequestError("wrong_node", f"the session's deposit is for {session.node}; send the order there")
        if session.client != spec.client:
            raise RequestError("not_your_session", "the session's deposit is another client's; use one of your own")
        return session

    async def _recipe(self, recipe_id: int) -> Recipe:
        try:
            return await self.facts.recipe(recipe_id)
        except Reverted:
            raise RequestError("unknown_recipe", f"recipe {recipe_id} is not registered; register it first") from None

    async def _check_access(self, spec: JobSpec) -> None:
        if await self.facts.is_pay_per_use(spec.recipe_id):
            raise RequestError("pay_per_use", "the recipe has a fee a use, which sessions cannot pay; use the queue")
        if not await self.facts.may_use(spec.recipe_id, spec.client):
            raise RequestError("not_permitted", "an adapter's owner does not serve you with it; ask the owner")

    def _is_left(self, digest: bytes) -> bool:
        """Whether it was accepted in an earlier life of the node, and has not been asked for since."""
        order = self.ledger.order(digest)
        return order is not None and order.state is OrderState.ACCEPTED and digest not in self._running

    def _check_lines(self, session: bytes, recipe_id: int) -> None:
        payment = self.ledger.payment(session)
        recipes = {order.spec.recipe_id for order in self.ledger.outstanding(session)} | {recipe_id}
        if len(recipes | set(payment.account.totals if payment else ())) > MAX_LINES:
            raise RequestError("too_many_recipes", f"a session pays for at most {MAX_LINES} recipes; open another one")

    def _check_room(self) -> None:
        if not self.alone():
            raise RequestError("not_alone", "another agent runs as this node, whose operator must stop one; ask others")
        if self._tasks is None or len(self._running) >= self.config.max_orders:
            raise RequestError("busy", "the node answers as many orders as it can; ask again soon, or another node")

    # ---- running ----

    def _start(self, order: Order, recipe: Recipe) -> None:
        assert self._tasks is not None, "checked with the room"
        self.answerer.streams.open(order.key)
        task = self._tasks.create_task(self._run(order, recipe), name=f"order-{order.digest.hex()[:8]}")
        self._running[order.digest] = task

    async def _run(self, order: Order, recipe: Recipe) -> None:
        """→ ANSWERED with a signed receipt, or → FAILED; whoever watches may come and go."""
        try:
            async with asyncio.timeout(min(order.spec.lease_secs, order.spec.deadline - self.chain_s())):
                await self._answer(order, recipe)
        except TimeoutError:
            self._fail(order, "the answer was not finished within the order's lease")
        except (AdapterError, ContentError, RequestError, EngineDied) as error:
            self._fail(order, str(error))
        except Exception:  # the disk, or a fault of ours: strangers' orders must not end the node
            log.exception("event=order_error order=%s", order.digest.hex()[:16])
            self._fail(order, "the node is in trouble; ask again later")
        finally:
            self.answerer.streams.end(order.key)
            del self._running[order.digest]

    async def _answer(self, order: Order, recipe: Recipe) -> None:
        document = await self.admission.input(order.spec, order.input)
        async with self.answerer.residency.hold(recipe.adapters) as adapters_ready:
            await adapters_ready()
            output = await self.answerer.answer(Work(order.key, order.spec, recipe, order.seed, document))
        await self.admission.content.put_document(documents.encode(output))
        receipt = self.signer.receipt(order.spec, output, order.digest, order.digest, order.seed, int(time.time()))
        digest = eip712.receipt_digest(self.domain, receipt)
        self._sign(self.ledger.record_receipt(order.digest, digest, msgspec.json.encode(receipt)))
        log.info("event=order_answered order=%s tokens=%d", order.digest.hex()[:16], receipt.out_tokens)

    def _sign(self, order: Order) -> Order:
        """The recorded receipt with the present hot key's signature, which is always the same."""
        assert order.signed is not None, "recorded before it is signed"
        signature = self.signer.sign(order.signed.digest)
        return order if order.signed.signature == signature else self.ledger.record_signature(order.digest, signature)

    def _fail(self, order: Order, reason: str) -> None:
        log.warning("event=order_failed order=%s reason=%r", order.digest.hex()[:16], reason)
        self.ledger.fail(order.digest, reason)

    # ---- what the client is shown ----

    async def _texts(self, digest: bytes, key: int) -> AsyncIterator[Text]:
        """The answer as it comes, until the order runs no more; a new run of it begins anew."""
        streams, run = self.answerer.streams, None
        while digest in self._running:
            if (current := streams.run_of(key)) == run:
                await asyncio.wait([self._running[digest]])
                return
            if run is not None:
                yield Text(text=None)
            run = current
            async for text in streams.read(key):
                for start in range(0, len(text), MAX_PIECE_CHARACTERS):
                    yield Text(text=text[start : start + MAX_PIECE_CHARACTERS])

    async def _result(self, digest: bytes) -> AsyncIterator[Reply]:
        """The output document and the receipt. Raises RequestError("failed") with the reason."""
        order = self.ledger.order(digest)
        assert order is not None, "accepted before it ran"
        if order.signed is None:
            raise RequestError("failed", order.reason or "the order was not answered; ask again")
        order = self._sign(order)
        assert order.signed is not None, "just signed"
        assert order.signed.signature is not None, "just signed"
        receipt = order.receipt
        output = await self.admission.content.get_document(receipt.output_digest)
        for start in range(0, len(output), MAX_PART_BYTES):
            yield OutputPart(data=output[start : start + MAX_PART_BYTES])
        yield Receipted(receipt=packed(receipt), signature=order.signed.signature)
