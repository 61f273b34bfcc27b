"""Jobs: from the queue and sent directly, claimed, answered, settled, and asked about later."""

from dataclasses import dataclass, replace
from typing import Final

from openlora.contracts import Outputs, Sessions
from openlora.node.adapters.fetch import AdapterFetcher
from openlora.node.adapters.residency import AdapterResidency
from openlora.node.adapters.store import AdapterStore
from openlora.node.admission import Admission
from openlora.node.answering import Answerer
from openlora.node.assembly import Loops
from openlora.node.assembly.ground import Base, Ground
from openlora.node.chain.follower import Occurrence
from openlora.node.config import NodeConfig
from openlora.node.content import BlockContent, Content
from openlora.node.dispatch import Dispatcher
from openlora.node.engine.backends import engine_profile
from openlora.node.engine.client import InferenceEngine
from openlora.node.finalizer import Finalizer
from openlora.node.kubo import KuboContent
from openlora.node.live_claims import LiveClaims
from openlora.node.network.client import NetworkClient
from openlora.node.network.content import NetworkContent
from openlora.node.network.rivals import is_crowded, rivals
from openlora.node.network.showing import INFER, Showing
from openlora.node.network.twin import TwinWatch
from openlora.node.private.brought import BroughtKeys
from openlora.node.private.sealing import encryption_key
from openlora.node.questions import Questions
from openlora.node.queue_events import QueueEvents
from openlora.node.sessions import SignedLane, signed_lane
from openlora.node.sessions.routing import by_lane
from openlora.node.settlement import Settlement, Signer
from openlora.node.streams import JobStreams
from openlora.node.terms import Terms
from openlora.node.turns import Contender, Turns
from openlora.node.worker import Worker
from openlora.typed_data import Domain

MAX_ADAPTER_BYTES: Final = 512 << 20  # of one adapter's blocks


@dataclass(frozen=True, slots=True)
class Lanes:
    """
    dispatch   journal → jobs under way, within `max_live_jobs`
    settle     committed jobs whose window has passed → paid
    questions  outputs that the chain asks for → published in time
    sessions   orders that clients send directly → answered, and their vouchers → paid
    twin       presence → a word in the log where another agent runs as this node
    """

    terms: Terms
    store: AdapterStore
    residency: AdapterResidency
    signer: Signer
    streams: JobStreams
    claims: LiveClaims
    events: QueueEvents
    dispatcher: Dispatcher
    finalizer: Finalizer
    questions: Questions
    sessions: SignedLane
    twin: TwinWatch

    def loops(self) -> Loops:
        return {
            "dispatch": self.dispatcher.run,
            "settle": self.finalizer.run,
            "questions": self.questions.run,
            "sessions": self.sessions.run,
            "twin": self.twin.run,
        }

    def apply(self, occurrence: Occurrence) -> None:
        """An event of the chain, inside the follower's transaction."""
        self.events.apply(occurrence.event, occurrence.block)
        self.claims.apply(occurrence.event)
        self.sessions.settler.apply(occurrence.event)
        self.questions.apply(occurrence.event)


def lanes(ground: Ground, base: Base, network: NetworkClient, engine: InferenceEngine) -> Lanes:
    """Answers clients over `network` from now on; claims nothing before its loops run."""
    config, journal, sender, queue = ground.config, ground.journal, ground.sender, ground.queue
    domain = Domain(config.chain.chain_id, queue.address)
    store = AdapterStore(config.state_dir / "adapters" / base.id.hex(), config.storage.max_adapter_bytes)
    content, claims, streams = _content(config, network), LiveClaims(), JobStreams()
    fetcher = AdapterFetcher(store, content, base.modules, max_adapter_bytes=MAX_ADAPTER_BYTES)
    adapter_bytes = config.engine.adapter_bytes * max(1, len(config.engine.devices))
    residency = AdapterResidency(fetcher, store, engine, adapter_bytes)
    terms = Terms(config.market, config.storage.min_free_bytes)
    admission = Admission(
        base_id=base.id,
        model=engine.info,
        text=base.text,
        content=content,
        fetcher=fetcher,
        terms=terms,
        storage_dir=config.state_dir,
    )
    answerer = Answerer(admission, residency, engine, streams)
    signer = Signer(domain, ground.operator, ground.hot_key, engine_profile(engine.info))
    outputs = Outputs(ground.deployment.outputs)
    questions = Questions(outputs, ground.chain, journal, sender, content, ground.operator)
    private = encryption_key(bytes(ground.hot_key.key))
    keys = BroughtKeys(private, domain, ground.operator, lambda job_id: dispatcher.look_again(job_id))
    twin = TwinWatch(network, ground.operator)
    worker = Worker(
        queue=queue,
        journal=journal,
        facts=ground.facts,
        admission=admission,
        turns=_turns(ground, network, claims, store, terms),
        sender=sender,
        answerer=answerer,
        settlement=Settlement(queue, signer, journal, sender),
        keys=keys,
        confirmations=config.chain.confirmations,
        urgent=lambda: questions.pending,
    )
    dispatcher = Dispatcher(worker, journal, lambda: terms.market.max_live_jobs, claims.ends_at_s, ground.clock.chain_s)
    sessions = signed_lane(
        contract=Sessions(ground.deployment.sessions),
        chain=ground.chain,
        journal=journal,
        sender=sender,
        facts=ground.facts,
        answerer=replace(answerer, streams=JobStreams()),
        signer=signer,
        confirmations=config.chain.confirmations,
        config=config.sessions,
        alone=lambda: twin.alone,
        chain_s=ground.clock.chain_s,
    )
    network.handle(INFER, by_lane(Showing(journal, streams, domain, keys).answer, sessions.lane.answer))
    return Lanes(
        terms=terms,
        store=store,
        residency=residency,
        signer=signer,
        streams=streams,
        claims=claims,
        events=QueueEvents(journal, ground.operator),
        dispatcher=dispatcher,
        finalizer=Finalizer(worker.settlement, ground.chain, ground.facts, config.chain.poll_s),
        questions=questions,
        sessions=sessions,
        twin=twin,
    )


def _content(config: NodeConfig, network: NetworkClient) -> Content:
    if config.storage.kubo_rpc:
        return KuboContent(config.storage.kubo_rpc)
    return NetworkContent(BlockContent(config.storage.content_dir), network)


def _turns(ground: Ground, network: NetworkClient, claims: LiveClaims, store: AdapterStore, terms: Terms) -> Turns:
    operator = ground.operator

    def self_() -> Contender:
        return Contender(operator, store.digests(), is_crowded(claims.of(operator), terms.market.max_live_jobs))

    return Turns(
        lambda: terms.market.turn_s, self_, lambda job, recipe: rivals(network.nodes(), claims, operator, job, recipe)
    )
