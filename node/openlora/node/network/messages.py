"""What agent and network process say to each other.

The agent numbers what it asks for, the network process what strangers ask of the agent; an answer carries the number
of what it answers. Bulk bytes never travel here: blocks go into the block store that both read. Replies are streamed
under the window of `network.window`. `VERSION` changes whenever a message does; the child announces it in `Ready`.
"""

from typing import Final, Literal

import msgspec

from openlora.p2p.presence.record import Presence, Status

VERSION: Final = 1

APPLICATION_PROTOCOLS: Final = ("/openlora/1/infer", "/openlora/1/control")  # answered by the agent
MAX_REQUEST_BYTES: Final = 16 << 10  # of one request to an application protocol


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """Root of all messages; the class name is the tag."""


class Taken(Message, frozen=True):
    """Both ways: so many bytes of the replies under `id` have been used up, and as many more may come."""

    id: int
    bytes: int


# ---- agent → network ------------------------------------------------------------------------------------------------


class Announce(Message, frozen=True):
    """From now on this is what others hear of us, again and again until the next one. The network process adds what it
    alone knows: peer, addresses, times, sequence number, and its signature."""

    operator: str  # addresses in lower case
    hot_key: str
    binding: bytes  # the hot key's signature over operator and peer id
    status: Status


class Trust(Message, frozen=True):
    """From now on the nodes whose presence counts: hot key → operator, addresses in lower case."""

    operators: dict[str, str]


class Fetch(Message, frozen=True):
    """Bring a block, or with `whole` all blocks under it, into the block store. Answered by `Fetched` or `FetchFailed`.

    `max_bytes` bounds the bytes of all blocks. `hints`: peers that probably have it, asked first.
    """

    id: int
    cid: str
    max_bytes: int
    whole: bool
    hints: tuple[str, ...] = ()


class Provide(Message, frozen=True):
    """Tell the DHT that we have these, now and again until the process ends."""

    cids: tuple[str, ...]


class Ask(Message, frozen=True):
    """Send one request to a peer. Answered by any number of `Reply` and one `ReplyEnd`.

    `addresses`: where to dial the peer, if it is not connected. `timeout_s` bounds each wait for the peer.
    """

    id: int
    peer: str
    addresses: tuple[str, ...]
    protocol: str
    body: bytes
    timeout_s: float


class Cancel(Message, frozen=True):
    """Stop a Fetch, an Ask or a Connect; nothing more comes under its number. An unknown one is no error."""

    id: int


class Answer(Message, frozen=True):
    """One reply to what was `Asked`."""

    id: int
    data: bytes


class AnswerEnd(Message, frozen=True):
    """No more replies; with `refusal`, a sentence for the peer, because the agent will not or cannot."""

    id: int
    refusal: str | None = None


class Connect(Message, frozen=True):
    """Dial the addresses, all of one peer. Answered by `Connected` or `ConnectFailed`."""

    id: int
    addresses: tuple[str, ...]


class GetStats(Message, frozen=True):
    """Answered by `Stats`."""

    id: int


class Shutdown(Message, frozen=True):
    """End the process."""


Command = Announce | Trust | Fetch | Provide | Ask | Cancel | Answer | AnswerEnd | Taken | Connect | GetStats | Shutdown


# ---- network → agent ------------------------------------------------------------------------------------------------


class Ready(Message, frozen=True):
    """First message of a child: it listens. `addresses` end in /p2p/<peer id>."""

    version: int
    peer_id: str
    addresses: tuple[str, ...]


class Failed(Message, frozen=True):
    """First message of a child in place of `Ready`; it ends with exit code 2."""

    message: str


class Fetched(Message, frozen=True):
    """All is in the block store: distinct blocks of the tree and their bytes, wherever they came from."""

    id: int
    blocks: int
    bytes: int


class FetchFailed(Message, frozen=True):
    """`missing`: no peer has it. `refused`: it is not what it should be. `budget`: more than `max_bytes`.
    `full`: the block store has no room. `failed`: something of ours broke."""

    id: int
    code: Literal["missing", "refused", "budget", "full", "failed"]
    message: str


class Seen(Message, frozen=True):
    """A record of a trusted node, newer than any before."""

    record: Presence


class Gone(Message, frozen=True):
    """A node whose last record has expired, or that is trusted no more."""

    operator: str


class Asked(Message, frozen=True):
    """A peer's request on an application protocol. To be answered by `Answer`s and one `AnswerEnd`."""

    id: int
    peer: str
    protocol: str
    body: bytes


class AskGone(Message, frozen=True):
    """The peer waits no longer: no answer is needed."""

    id: int


class Reply(Message, frozen=True):
    """One reply of the peer that was asked."""

    id: int
    data: bytes


class ReplyEnd(Message, frozen=True):
    """No more replies. `refused`: by the peer, in its own words. `failed`: it was not reached, fell silent or left."""

    id: int
    outcome: Literal["done", "refused", "failed"]
    message: str = ""


class Connected(Message, frozen=True):
    id: int
    peer: str


class ConnectFailed(Message, frozen=True):
    id: int
    message: str


class Stats(Message, frozen=True):
    """Figures since the process began."""

    id: int
    peers: int  # connected now
    bytes_in: int  # on the wire, all overhead included
    bytes_out: int
    blocks_fetched: int
    block_bytes_fetched: int
    blocks_served: int
    block_bytes_served: int
    refused: dict[str, int]  # by code: what of strangers was not used


Event = (
    Ready
    | Failed
    | Fetched
    | FetchFailed
    | Seen
    | Gone
    | Asked
    | AskGone
    | Reply
    | ReplyEnd
    | Taken
    | Connected
    | ConnectFailed
    | Stats
)
