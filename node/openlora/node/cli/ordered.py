"""An order of the signed lane on the terminal: the answer as it comes, its receipt, and what it cost."""

import time

from openlora.node.cli.output import Ink, Output, tokens
from openlora.node.content import document_cid
from openlora.node.documents import InputDocument, encode
from openlora.node.market import Offer
from openlora.node.network.participant import Participant
from openlora.node.sessions.conversation import Answered
from openlora.node.sessions.ordering import converse


async def show_ordered(
    peer: Participant, node: str | None, recipe_id: int, document: InputDocument, offer: Offer, output: Output
) -> None:
    """Orders, prints, and pays. Raises what the conversation raises."""
    conversation, earlier = await converse(peer, node)
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
