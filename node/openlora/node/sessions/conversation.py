"""The signed lane at a client: orders to the node that holds its deposit, and vouchers for what it answered.

Nothing need be kept on this side: the node shows what it holds, and all of that was signed here. A node that shows an
older voucher than the last cheats itself alone.
"""

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final

from eth_account.signers.local import LocalAccount

from openlora.contracts import (
    Account,
    Charge,
    Domain,
    InvalidSignature,
    JobSpec,
    LineTotal,
    Receipt,
    ReceiptTree,
    Voucher,
    eip712,
)
from openlora.node import documents
from openlora.node.documents import MAX_DOCUMENT_BYTES, InputDocument, OutputDocument
from openlora.node.errors import NetworkError, PeerRefused, RequestError
from openlora.node.malformed import MALFORMED
from openlora.node.market import Offer
from openlora.node.network.client import NetworkClient
from openlora.node.network.showing import INFER
from openlora.node.sessions.messages import (
    MAX_INLINE_BYTES,
    MAX_ORDERS_PAID,
    HowStands,
    Order,
    OutputPart,
    Pay,
    Receipted,
    Reply,
    Request,
    Standing,
    Text,
    Thanks,
    decode_reply,
    encode_message,
    packed,
    standing_digest,
    unpacked,
    unpacked_lines,
)
from openlora.p2p.presence.record import Presence
from openlora.typed_data import sign_digest, signer_of

log = logging.getLogger(__name__)

SILENCE_S: Final = 60.0  # a node that says nothing for so long has left
VOUCHER_LIFE_S: Final = 30 * 86_400


@dataclass(frozen=True, slots=True)
class Answered:
    """What an order came to: checked against what was ordered, and signed by the node."""

    digest: bytes
    spec: JobSpec
    receipt: Receipt
    signature: bytes
    output: OutputDocument

    @property
    def charge(self) -> Charge:
        return Charge(self.spec.recipe_id, self.receipt.fee, self.digest)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a session is: the node and the contract."""

    node: Presence
    domain: Domain  # Sessions'
    session: bytes


@dataclass(slots=True)
class Conversation:
    """One client's talk with one node about one session. `start` comes first.

    Every method raises PeerRefused with the node's own words, NetworkError when it is gone or does not keep to the
    protocol, and RequestError when what it claims was not agreed.
    """

    network: NetworkClient
    key: LocalAccount
    place: Place
    account: Account = field(default_factory=Account)
    last_number: int = 0

    async def start(self, now_s: float) -> list[Answered]:
        """Learns how the session stands; what was answered in an earlier conversation and not paid is paid now."""
        reply = await self._one(self._how_stands())
        if not isinstance(reply, Standing):
            raise NetworkError("the node answers another question")
        self.account = self._checked_account(reply)
        self.last_number = reply.last_number
        earlier = []
        for owed in reply.owed[:MAX_ORDERS_PAID]:
            try:
                earlier.append(await self._again(owed.spec, owed.signature))
            except PeerRefused as refusal:  # it failed there, and costs nothing
                log.info("event=order_dropped session=%s reason=%r", self.place.session.hex()[:16], str(refusal))
        if earlier:
            await self.pay(earlier, now_s)
        return earlier

    def sign(self, recipe_id: int, document: InputDocument, offer: Offer, now_s: int) -> tuple[JobSpec, Order]:
        """The session's next order. The input travels in it up to 12 KiB, else by its digest."""
        data = documents.encode(document)
        documents.decode_input(data)
        self.last_number += 1
        nonce = eip712.order_nonce(self.place.session, self.last_number)
        spec = offer.spec(self.key.address, recipe_id, data, now_s, nonce)
        signature = sign_digest(bytes(self.key.key), eip712.spec_digest(self.place.domain, spec))
        inline = data if len(data) <= MAX_INLINE_BYTES else b""
        return spec, Order(session=self.place.session, spec=packed(spec), signature=signature, document=inline)

    async def ask(self, order: Order) -> AsyncGenerator[str | Answered, None]:
        """The answer so far, whenever it grows, then what it came to. Asking again shows the same again."""
        spec = unpacked(JobSpec, order.spec)
        text, output = "", bytearray()
        async with aclosing(self._replies(order)) as replies:
            async for reply in replies:
                match reply:
                    case Text():
                        text = "" if reply.text is None else text + reply.text
                        yield text
                    case OutputPart():
                        output += reply.data
                    case Receipted():
                        yield self._checked(spec, reply, bytes(output))
                        return
                    case _:
                        raise NetworkError("the node answers another question")
                if len(text) > MAX_DOCUMENT_BYTES or len(output) > MAX_DOCUMENT_BYTES:
                    raise NetworkError("the node sends more than an answer can hold")
        raise NetworkError("the node ended without a receipt; ask for the order again")

    async def answer(self, order: Order) -> Answered:
        """What the order came to, without the way there."""
        async with aclosing(self.ask(order)) as replies:
            async for reply in replies:
                if isinstance(reply, Answered):
                    return reply
        raise AssertionError("it ends with what it came to, or raises")

    async def pay(self, answered: list[Answered], now_s: float) -> Voucher:
        """Signs and sends the voucher for these too. Returns once it is in the node's journal."""
        account = self.account.charged(answer.charge for answer in answered)
        voucher = eip712.voucher_for(self.place.session, account.lines(), int(now_s) + VOUCHER_LIFE_S)
        signature = sign_digest(bytes(self.key.key), eip712.voucher_digest(self.place.domain, voucher))
        orders = tuple(answer.receipt.work_id for answer in answered)
        reply = await self._one(Pay(voucher=packed(voucher), signature=signature, orders=orders))
        if not isinstance(reply, Thanks):
            raise NetworkError("the node answers another question")
        self.account = account
        return voucher

    # ---- what is checked ----

    def _checked(self, spec: JobSpec, reply: Receipted, output: bytes) -> Answered:
        """The receipt is the node's, for exactly this order and output, and charges what their counts cost."""
        receipt = unpacked(Receipt, reply.receipt)
        order_digest = eip712.spec_digest(self.place.domain, spec)
        agreed = (
            receipt.work_id == receipt.spec_hash == order_digest
            and receipt.node.lower() == self.place.node.operator
            and (receipt.recipe_id, receipt.input_digest) == (spec.recipe_id, spec.input_digest)
            and receipt.seed == eip712.order_seed(order_digest)
            and receipt.in_tokens <= spec.max_in_tokens
            and receipt.out_tokens <= spec.max_out_tokens
            and receipt.fee == eip712.fee_wei(spec, receipt.in_tokens, receipt.out_tokens)
            and receipt.output_digest == documents.digest(output)
        )
        if not agreed:
            raise RequestError("bad_receipt", "the node's receipt is not for what was ordered; nothing is paid for it")
        digest = eip712.receipt_digest(self.place.domain, receipt)
        try:
            signer = signer_of(digest, reply.signature)
        except InvalidSignature:
            signer = ""
        if signer != self.place.node.hot_key:
            raise RequestError("bad_receipt", "the node's hot key has not signed the receipt; nothing is paid for it")
        document = documents.decode_output(output)
        if receipt.out_tokens != document.usage.completion_tokens:
            raise RequestError("bad_receipt", "the receipt counts other tokens than the answer has; nothing is paid")
        return Answered(digest, spec, receipt, reply.signature, document)

    def _checked_account(self, standing: Standing) -> Account:
        """What this key's own last voucher paid for."""
        if not standing.voucher:
            return Account()
        voucher, lines = unpacked(Voucher, standing.voucher), unpacked_lines(standing.lines)
        trees = {tree.recipe_id: ReceiptTree(tree.count, tree.peaks) for tree in standing.trees}
        fees = {line.recipe_id: line.cumulative_fee for line in lines}
        if not all(tree.is_well_formed() for tree in trees.values()) or trees.keys() != fees.keys():
            raise RequestError("bad_standing", "the node does not show what the last voucher paid for")
        account = Account({recipe: LineTotal(fees[recipe], tree) for recipe, tree in trees.items()})
        due = eip712.voucher_for(self.place.session, account.lines(), voucher.deadline)
        if due != voucher or not self._is_ours(eip712.voucher_digest(self.place.domain, voucher), standing.signature):
            raise RequestError("bad_standing", "the voucher that the node shows is not one that this key has signed")
        return account

    async def _again(self, spec_bytes: bytes, signature: bytes) -> Answered:
        """What an earlier order, shown by the node, came to."""
        spec = unpacked(JobSpec, spec_bytes)
        of_session = eip712.order_number(self.place.session, spec.nonce) is not None
        if not of_session or not self._is_ours(eip712.spec_digest(self.place.domain, spec), signature):
            raise RequestError("bad_standing", "the order that the node shows is not one that this key has signed")
        return await self.answer(Order(session=self.place.session, spec=spec_bytes, signature=signature))

    def _is_ours(self, digest: bytes, signature: bytes) -> bool:
        try:
            return signer_of(digest, signature) == self.key.address.lower()
        except InvalidSignature:
            return False

    # ---- the wire ----

    def _how_stands(self) -> HowStands:
        digest = standing_digest(self.place.domain, self.place.session, self.network.peer_id)
        return HowStands(session=self.place.session, signature=sign_digest(bytes(self.key.key), digest))

    async def _one(self, request: Request) -> Reply:
        async with aclosing(self._replies(request)) as replies:
            async for reply in replies:
                return reply
        raise NetworkError("the node ended without an answer")

    async def _replies(self, request: Request) -> AsyncGenerator[Reply, None]:
        node, body = self.place.node, encode_message(request)
        async with aclosing(
            self.network.ask(node.peer, INFER, body, addresses=node.addresses, timeout_s=SILENCE_S)
        ) as replies:
            async for data in replies:
                try:
                    yield decode_reply(data)
                except MALFORMED:
                    raise NetworkError("the node answers in another language") from None
