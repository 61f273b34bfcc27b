"""An order of the signed lane on the terminal: the answer as it comes, its receipt, and what it cost."""

import time
from collections.abc import Iterable

from openlora.node.cli.output import Ink, Output, tokens
from openlora.node.content import document_cid
from openlora.node.documents import InputDocument, encode
from openlora.node.errors import ConfigError
from openlora.node.market import Offer
from openlora.node.network.participant import Participant
from openlora.node.sessions.conversation import Answered
from openlora.node.sessions.ordering import converse
from openlora.p2p.presence.record import Presence


def require_context(nodes: Iterable[Presence], base_id: bytes, max_tokens: int) -> None:
    """Raises ConfigError for an answer longer than any of these nodes can make it: its escrow would be for nothing."""
    models = (model for node in nodes for model in node.status.models)
    context = max((model.max_context for model in models if model.base_id == base_id.hex()), default=None)
    if context is not None and max_tokens >= context:
        raise ConfigError(
            f"--max-tokens {max_tokens}: the nodes that are there have a context of {context} tokens, the prompt's"
            f" among them; give {context - 1} at most"
        )


async def show_ordered(
    peer: Participant,
    node: str | None,
    base_id: bytes,
    recipe_id: int,
    document: InputDocument,
    offer: Offer,
    output: Output,
) -> None:
    """Orders, prints, and pays. Raises what the conversation raises."""
    conversation, earlier = await converse(peer, node)
    require_context([conversation.place.node], base_id, offer.max_out_tokens)
    for answered in earlier:
        output.say(f"{tokens(answered.receipt.fee)} OLRA are paid for what an earlier run ordered")
    spec, order = conversation.sign(recipe_id, document, offer, int(time.time()))
    if not order.document:  # too large to travel in the order
        await peer.market.content.put_document(encode(document))
        output.say(f"the input: {await peer.replicate(document_cid(spec.input_digest))}")
    ink = Ink()
    async for reply in conversation.ask(order):
        if isinstance(reply, Answered):
            voucher = await conversation.pay([reply], time.time())
            ink.end()
            output.say(
                f"{tokens(reply.receipt.fee)} OLRA; {tokens(voucher.cumulative_fee)} OLRA of the deposit are spent"
            )
            output.result(
                {
                    "session": conversation.place.session,
                    "node": reply.receipt.node,
                    "order": reply.receipt.work_id,
                    "recipe_id": recipe_id,
                    "text": reply.output.text,
                    "finish_reason": reply.output.finish_reason,
                    "usage": reply.output.usage,
                    "fee_wei": reply.receipt.fee,
                    "spent_wei": voucher.cumulative_fee,
                }
            )
        elif not output.as_json:
            ink.show(reply)
