"""An answer as it comes, for whoever pays for it, from whichever node holds the job.

`watch` is one node's word. `follow_answer` goes by the chain: it watches the claim's holder, the next one when the
claim moves, and ends with what was committed.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import msgspec
from eth_account.signers.local import LocalAccount

from openlora.contracts import Domain, Job, JobFlag, JobSpec, JobState
from openlora.node.documents import MAX_DOCUMENT_BYTES
from openlora.node.errors import ContentError, NetworkError, RequestError
from openlora.node.malformed import MALFORMED
from openlora.node.market import Market
from openlora.node.network.client import NetworkClient
from openlora.node.network.showing import INFER, signed_watch
from openlora.node.private.inviting import Invitations
from openlora.node.progress import Progress
from openlora.node.tasks import with_pauses
from openlora.p2p.presence.record import Presence

log = logging.getLogger(__name__)

SILENCE_S: Final = 60.0  # a node that says nothing for so long is asked anew
POLL_S: Final = 1.0  # how often the chain is asked who holds the job
INVITED_S: Final = 30.0  # what a node has to claim a private job to which it is invited
DRAIN_S: Final = 10.0  # what a node is given to say the rest of an answer that it has committed
OUTPUT_TIMEOUT_S: Final = 15.0
WAITING: Final = "waiting"
_ANSWERED: Final = (JobState.COMMITTED, JobState.HELD, JobState.FINALIZED)
_WITHOUT: Final = (JobState.CANCELLED, JobState.EXPIRED, JobState.SLASHED, JobState.ANNULLED)
_reply_decoder: Final = msgspec.msgpack.Decoder(Progress)

Step = tuple[str, str]  # (state, answer so far)


@dataclass(frozen=True, slots=True)
class Claim:
    """Who holds a job, in lower case. A later claim of the same node is another."""

    operator: str
    block: int

    @classmethod
    def of(cls, job: Job) -> "Claim | None":
        """The claim that the chain sees now, a committed one included; None when there is none."""
        held = job.state is JobState.CLAIMED or job.state in _ANSWERED
        return cls(job.node.lower(), job.claim_block) if held else None


async def holder(market: Market, job_id: int) -> Claim | None:
    """Who holds the job now or has answered it; None for one that anybody may claim or that ended without an answer."""
    return Claim.of(await market.job(job_id))


async def watch(
    network: NetworkClient,
    node: Presence,
    domain: Domain,
    job_id: int,
    key: LocalAccount,
    wrapped_key: bytes | None = None,
) -> AsyncGenerator[Step, None]:
    """(state, answer so far) whenever either changes, from now until this node is done with the job.

    An answer that a restarted engine began anew begins anew here. `wrapped_key` opens a private job at the node, which
    has it once the first step is here. Raises PeerRefused with the node's words, and NetworkError when it is gone or
    does not keep to the protocol.
    """
    request = msgspec.msgpack.encode(signed_watch(domain, job_id, network.peer_id, key, wrapped_key))
    text = ""
    replies = network.ask(node.peer, INFER, request, addresses=node.addresses, timeout_s=SILENCE_S)
    async with aclosing(replies):
        async for data in replies:
            try:
                step = _reply_decoder.decode(data)
            except MALFORMED:
                raise NetworkError("the node answers in another language") from None
            text = "" if step.text is None else text + step.text
            if len(text) > MAX_DOCUMENT_BYTES:
                raise NetworkError("the node sends more than an answer can hold")
            yield step.state.value, text


async def follow_answer(market: Market, network: NetworkClient, job_id: int) -> AsyncGenerator[Step, None]:
    """(state, answer so far) of a job of the market key's own, until it has ended on chain, whoever comes to hold it.

    A node that dies, stalls or refuses is asked again until its claim ends; then the next holder is watched, and the
    answer begins anew. Nodes are invited to a private job, one at a time, while nobody holds it. States are the nodes'
    own, and "waiting" while nobody holds the job; the last is the chain's: committed, held, finalized, or one of those
    that refund the client. The last text is, where it can still be had, the one whose digest is on chain. Raises
    RequestError (not_your_job, no_key), ChainError.
    """
    spec = await market.spec(job_id)
    if spec.client != market.key.address:
        raise RequestError("not_your_job", f"job {job_id} is {spec.client}'s, who alone may watch it")
    invitations = None
    if spec.flags & JobFlag.PRIVATE:
        recipe = await market.chain.call(market.registry.recipe(spec.recipe_id))
        kept = market.kept_key(spec.input_digest)
        invitations = Invitations(market, network, job_id, spec, recipe.base_id, kept)
    follow = _Follow(market, network, job_id, spec, invitations)
    shown = None
    async with aclosing(follow.run()) as steps:
        async for step in steps:
            if step != shown:
                shown = step
                yield step


class _Follow:
    def __init__(
        self,
        market: Market,
        network: NetworkClient,
        job_id: int,
        spec: JobSpec,
        invitations: Invitations | None,  # of a private job
    ) -> None:
        self._market, self._network, self._job_id, self._spec = market, network, job_id, spec
        self._invitations = invitations
        self._domain = Domain(market.chain.chain_id, market.queue.address)
        self._claim: Claim | None = None
        self._text = ""  # of the present claim
        self._next_invitation_s = 0.0

    async def run(self) -> AsyncGenerator[Step, None]:
        while True:
            job = await self._market.job(self._job_id)
            if job.state in _ANSWERED:
                yield job.state.name.lower(), await self._committed_text()
                return
            if job.state in _WITHOUT:
                yield job.state.name.lower(), ""
                return
            claim = Claim.of(job)
            if claim != self._claim:
                self._claim, self._text, self._next_invitation_s = claim, "", 0.0
            if claim is not None:
                async with aclosing(self._watch(claim)) as steps:
                    async for step in steps:
                        yield step
            elif await self._is_overdue():
                yield "expired", ""
                return
            else:
                yield WAITING, ""
                await self._invite()
                await asyncio.sleep(POLL_S)

    async def _watch(self, claim: Claim) -> AsyncGenerator[Step, None]:
        """What the claim's holder shows, until it stops or the claim ends; never asked twice in quick succession."""
        state = "claimed"
        if not self._text:
            yield state, ""
        node = next((node for node in self._network.nodes() if node.operator == claim.operator), None)
        if node is not None:
            wrapped = None if self._invitations is None else await self._invitations.wrapped_for(claim.operator)
            steps = watch(self._network, node, self._domain, self._job_id, self._market.key, wrapped)
            try:
                async with aclosing(self._while_held(steps, claim)) as held:
                    async for state, self._text in held:
                        yield state, self._text
            except NetworkError as error:
                log.info("event=watch_lost job_id=%d peer=%s reason=%r", self._job_id, node.peer, str(error))
        await asyncio.sleep(POLL_S / 5 if state == "committed" else POLL_S)  # what the chain should say, too, by now

    async def _invite(self) -> None:
        """Brings a private job's key to the next node, once the last has had its time to claim."""
        if self._invitations is None or time.monotonic() < self._next_invitation_s:
            return
        if (invited := await self._invitations.next()) is None:
            return
        node, wrapped = invited
        try:
            steps = watch(self._network, node, self._domain, self._job_id, self._market.key, wrapped)
            async with aclosing(steps):
                if await anext(steps, None) is not None:
                    self._next_invitation_s = time.monotonic() + INVITED_S
        except NetworkError as error:
            log.info("event=invitation_lost job_id=%d peer=%s reason=%r", self._job_id, node.peer, str(error))

    async def _while_held(self, steps: AsyncGenerator[Step, None], claim: Claim) -> AsyncGenerator[Step, None]:
        """`steps`, cut off soon after the chain says that the job is no longer this claim's, or is answered."""
        checked_s, drained_s = time.monotonic(), float("inf")
        async with aclosing(with_pauses(steps, POLL_S)) as paced:
            async for step in paced:
                if step is not None:
                    yield step
                now_s = time.monotonic()
                if now_s - checked_s < POLL_S:
                    continue
                checked_s = now_s
                job = await self._market.job(self._job_id)
                if job.state in _ANSWERED:
                    drained_s = min(drained_s, now_s + DRAIN_S)
                if Claim.of(job) != claim or now_s >= drained_s:
                    return

    async def _committed_text(self) -> str:
        """The answer that was committed; what was streamed of it, should nobody have it any more."""
        try:
            async with asyncio.timeout(OUTPUT_TIMEOUT_S):
                output = await self._market.output(self._job_id)
        except (TimeoutError, ContentError, RequestError, NetworkError) as error:
            log.warning("event=output_unavailable job_id=%d reason=%r", self._job_id, str(error))
            output = None
        return self._text if output is None else output.text

    async def _is_overdue(self) -> bool:
        """Whether nobody may claim the job any more, though nobody has said so on chain."""
        if time.time() <= self._spec.deadline:
            return False
        return (await self._market.chain.block("latest")).timestamp > self._spec.deadline
