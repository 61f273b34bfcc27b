"""One protocol, two lanes: what comes on "/openlora/1/infer" goes to whom it concerns."""

import msgspec

from openlora.node.malformed import MALFORMED
from openlora.node.network.answers import Handler
from openlora.node.sessions.messages import TAGS


class _Tagged(msgspec.Struct):
    type: str = ""


def by_lane(queue_lane: Handler, signed_lane: Handler) -> Handler:
    """A handler that hands requests of the signed lane to `signed_lane`, and all else to `queue_lane`."""
    decoder = msgspec.msgpack.Decoder(_Tagged)

    def lane_of(body: bytes) -> Handler:
        try:
            return signed_lane if decoder.decode(body).type in TAGS else queue_lane
        except MALFORMED:
            return queue_lane  # which refuses it

    return lambda peer, body: lane_of(body)(peer, body)
