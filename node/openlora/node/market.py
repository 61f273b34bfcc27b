"""One person's side of the market: a key, the contracts, and the content that goes with them.

Everything a submitter, adapter developer, data provider or payee does on chain, one method a deed. Transactions are
sent one at a time and awaited; a node's hot key never passes through here (its nonce belongs to `chain.sender`).
"""

import secrets
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from eth_account.signers.local import LocalAccount
from eth_typing import ChecksumAddress

from openlora.contracts import (
    Adapter,
    Call,
    DatanetCreated,
    Deployment,
    Job,
    JobCommitted,
    JobFlag,
    JobSpec,
    JobSubmitted,
    OutputPublished,
    Paid,
    Receipt,
    RecipeRegistered,
    Settlement,
    Share,
    eip712,
)
from openlora.node import documents
from openlora.node.adapters.fetch import publish_adapter
from openlora.node.adapters.modules import Layout
from openlora.node.catalogue import Catalogue, catalogue
from openlora.node.chain.client import ChainClient
from openlora.node.chain.history import events, events_of, topic
from openlora.node.chain.transact import transact
from openlora.node.chain.types import TxReceipt
from openlora.node.config import ClientConfig, load
from openlora.node.content import BlockContent, Content
from openlora.node.deeds import Deed, Desk, stopped
from openlora.node.deployment import load_deployment
from openlora.node.documents import InputDocument, OutputDocument
from openlora.node.errors import AdapterError, ChainError, RequestError, Reverted
from openlora.node.facts import WEIGHT_UNIT
from openlora.node.keys import load_key
from openlora.node.private.kept import KeptKey, KeptKeys
from openlora.node.private.sealing import Sealed, new_key, public_key, seal, unseal

E = TypeVar("E")
OfJob = TypeVar("OfJob", JobSubmitted, JobCommitted, OutputPublished)


@dataclass(frozen=True, slots=True)
class Term:
    """One adapter of a recipe, by the sha2-256 digest of its folder's root."""

    digest: bytes
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Offer:
    """What a submitter bids and allows: prices in token wei per 1,000 tokens, times in seconds."""

    max_in_tokens: int
    max_out_tokens: int
    in_price_wei_per_k: int
    out_price_wei_per_k: int
    deadline_s: int = 600  # from now, on the chain's clock
    lease_s: int = 120
    publish: bool = False  # on chain, as part of the job: how a contract reads its result
    private: bool = False  # sealed for all but the client and the nodes that it invites, …
    only_node: str | None = None  # … or the one whose operator is named, in lower case

    def __post_init__(self) -> None:
        """Raises RequestError for one that no node takes."""
        if self.publish and documents.output_bytes(self.max_out_tokens) > documents.MAX_PUBLISHED_BYTES:
            raise RequestError(
                "output_too_large", f"{self.max_out_tokens} tokens are too many to publish; ask for less"
            )

    @property
    def escrow_wei(self) -> int:
        """What it can cost at most, leaving use fees aside."""
        return -(
            -(self.max_in_tokens * self.in_price_wei_per_k + self.max_out_tokens * self.out_price_wei_per_k) // 1000
        )

    def spec(
        self, client: ChecksumAddress, recipe_id: int, document: bytes, now_s: int, nonce: int, flags: int = 0
    ) -> JobSpec:
        """What the client signs or submits; `now_s` is the time from which the deadline counts."""
        return JobSpec(
            client=client,
            recipe_id=recipe_id,
            input_digest=documents.digest(document),
            max_in_tokens=self.max_in_tokens,
            max_out_tokens=self.max_out_tokens,
            in_price_per_k=self.in_price_wei_per_k,
            out_price_per_k=self.out_price_wei_per_k,
            deadline=now_s + self.deadline_s,
            lease_secs=self.lease_s,
            flags=flags,
            nonce=nonce,
        )


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    job_id: int
    spec: JobSpec
    escrow_wei: int
    use_fee_wei: int = 0  # beside the escrow: what pay-per-use adapters charge a job


class Market:
    """Binds one key to one deployment. Every method raises ChainError, or Reverted with the contract's reason."""

    def __init__(
        self,
        chain: ChainClient,
        deployment: Deployment,
        key: LocalAccount,
        content: Content,
        kept_keys: KeptKeys | None = None,
    ) -> None:
        """`kept_keys` is where private jobs' keys are kept; without it there are none."""
        self.chain = chain
        self.deployment = deployment
        self.key = key
        self.content = content
        self._kept_keys = kept_keys
        self.desk = Desk(chain, deployment, key.address)
        self.token, self.vault, self.nodes = self.desk.token, self.desk.vault, self.desk.nodes
        self.registry = self.desk.registry
        self.queue = self.desk.queue

    async def transact(self, call: Call[Any]) -> TxReceipt:
        return await transact(self.chain, self.key, call)

    # ---- money ----

    async def carry_out(self, deeds: Sequence[Deed]) -> list[TxReceipt]:
        """Sends each once the one before it is mined."""
        receipts: list[TxReceipt] = []
        for deed in deeds:
            try:
                receipts.append(await self.transact(deed.call))
            except ChainError as error:
                raise stopped(error, deeds[: len(receipts)]) from error.__cause__
        return receipts

    async def deposit(self, amount_wei: int) -> None:
        """Moves tokens of the key's own into its Vault balance."""
        await self.carry_out(self.desk.deposit(amount_wei))

    async def earned(self) -> Mapping[str, int]:
        """Token wei that jobs and sessions have paid this key, by role."""
        by_role: Counter[str] = Counter()
        for lane in (self.queue.address, self.desk.sessions.address):
            topics = (Paid.TOPIC, topic(self.key.address))
            for event in await events(self.chain, lane, self.deployment.block, topics=topics):
                if isinstance(event, Paid):
                    by_role[event.role.name.lower()] += event.amount
        return dict(by_role)

    # ---- nodes ----

    async def register_node(self, hot_key: LocalAccount, stake_wei: int) -> None:
        """Makes this key an operator whose hot key is `hot_key`, with at least `stake_wei` of its tokens at stake.

        Takes up where an earlier call was interrupted; tokens come from the key's Vault balance first.
        """
        consent = await self.desk.consent(hot_key)
        await self.carry_out(await self.desk.register(consent, public_key(bytes(hot_key.key)), stake_wei))

    # ---- models, data, adapters ----

    async def register_base(self, base_id: bytes, name: str) -> None:
        """Registers a base model whose payee is this key."""
        await self.transact(self.registry.register_base(base_id, self.key.address, name))

    async def create_datanet(self, root: bytes, shares: Sequence[Share], name: str) -> int:
        """Registers a body of documents by its root, and how its contributors share. Returns the datanet's id."""
        receipt = await self.transact(self.registry.create_datanet(root, shares, name))
        return _one(receipt, DatanetCreated).datanet_id

    async def publish_adapter(
        self, directory: Path, layout: Layout, base_id: bytes, datanets: Sequence[int], name: str
    ) -> bytes:
        """Checks an adapter as every node will, stores it, and registers it as this key's. Returns its digest.

        Content first: whoever reads the registration can fetch what it names. What this key has registered before
        stays as it is, by another name too. Raises AdapterError, also for a base or datanets that it then did not name.
        """
        digest = await publish_adapter(directory, self.content, layout)
        try:
            known = await self.chain.call(self.registry.adapter(digest))
        except Reverted as refusal:
            if refusal.name != "UnknownAdapter":
                raise
            known = None
        if known is not None and known.owner == self.key.address:
            _check_stays(known, base_id, datanets)
        else:
            await self.transact(self.registry.register_adapter(digest, base_id, datanets, name))
        return digest

    async def catalogue(self) -> Catalogue:
        """All that is registered on chain."""
        return await catalogue(self.desk)

    async def recipe(self, base_id: bytes, terms: Sequence[Term]) -> int:
        """The id of the recipe with these terms, registered now unless it was before."""
        ordered = sorted(terms, key=lambda term: term.digest)
        adapters = [term.digest for term in ordered]
        weights = [round(term.weight * WEIGHT_UNIT) for term in ordered]
        known = await self.chain.call(self.registry.recipe_id_of(base_id, adapters, weights))
        if known:
            return known
        receipt = await self.transact(self.registry.register_recipe(base_id, adapters, weights))
        return _one(receipt, RecipeRegistered).recipe_id

    # ---- jobs ----

    async def submit(self, recipe_id: int, document: InputDocument, offer: Offer) -> SubmittedJob:
        """Escrows the most the job can cost and puts it into the queue, its input inline where it fits.

        What the Vault balance lacks is deposited first, unless the job would be refused all the same. An input over
        4 KiB travels through the content store. Raises RequestError for one that nodes would refuse, ConfigError when
        there are too few tokens.
        """
        data = documents.encode(document)
        documents.decode_input(data)
        if offer.private:
            data = self._sealed(data, offer.only_node)
        inline = data if len(data) <= documents.MAX_INLINE_BYTES else b""
        if not inline:
            await self.content.put_document(data)
        flags = (JobFlag.PUBLISH if offer.publish else 0) | (JobFlag.PRIVATE if offer.private else 0)
        now_s = (await self.chain.block("latest")).timestamp
        spec = offer.spec(self.key.address, recipe_id, data, now_s, secrets.randbits(256), flags)
        escrow_wei, use_fee_wei, wanted_flags = await self.chain.call(self.queue.quote(spec))
        spec = replace(spec, flags=spec.flags | wanted_flags)
        submit = Deed(self.queue.submit(spec, inline), "submit the job")
        *_, receipt = await self.carry_out(await self.desk.covered(escrow_wei + use_fee_wei, submit))
        return SubmittedJob(_one(receipt, JobSubmitted).job_id, spec, escrow_wei, use_fee_wei)

    async def cancel(self, job_id: int) -> None:
        """Takes back a job of this key's that no node holds."""
        await self.carry_out(await self.desk.take_back(job_id, await self.spec(job_id)))

    async def job(self, job_id: int) -> Job:
        """What the chain says of a job now: its state, an elapsed lease included, and who holds it."""
        return await self.chain.call(self.queue.job(job_id))

    async def spec(self, job_id: int) -> JobSpec:
        """What was submitted. Raises ChainError for a job that never was."""
        return await spec_of(self.desk, job_id)

    async def output(self, job_id: int) -> OutputDocument | None:
        """A committed job's output, whose digest is the one on chain; None before the commit.

        It is read from the chain where it was published there. Raises ContentError when it was not and no reachable
        store has it, RequestError where it is private and cannot be opened.
        """
        committed = await _job_event(self.desk, JobCommitted, job_id)
        if committed is None:
            return None
        published = await _job_event(self.desk, OutputPublished, job_id)
        data = published.output if published else await self.content.get_document(committed.receipt.output_digest)
        if (await self.spec(job_id)).flags & JobFlag.PRIVATE:
            data = unseal(self.kept_key(committed.receipt.input_digest).key, data, Sealed.OUTPUT)
        return documents.decode_output(data)

    def kept_key(self, input_digest: bytes) -> KeptKey:
        """A private job's key. Raises RequestError where it is not here."""
        if self._kept_keys is None:
            raise RequestError("no_key", "this client keeps no keys of private jobs")
        return self._kept_keys.of(input_digest)

    def _sealed(self, document: bytes, only_node: str | None) -> bytes:
        """Under a new key, which is kept before anything can depend on it."""
        if self._kept_keys is None:
            raise RequestError("key_not_kept", "this client keeps no keys of private jobs")
        kept = KeptKey(key=new_key(), node=only_node)
        sealed = seal(kept.key, document, Sealed.INPUT)
        self._kept_keys.keep(documents.digest(sealed), kept)
        return sealed


@asynccontextmanager
async def open_market(path: Path) -> AsyncIterator[Market]:
    """The market as `client.toml` describes it. Raises ConfigError, RpcDown, WrongChain."""
    async with market_of(load(path, ClientConfig)) as market:
        yield market


@asynccontextmanager
async def market_of(config: ClientConfig) -> AsyncIterator[Market]:
    """As `open_market`, with what is on this machine for content."""
    deployment = load_deployment(config.chain)
    key = load_key(config.key)
    chain = await ChainClient.connect(config.chain.rpc_urls, config.chain.chain_id, deployment)
    try:
        kept_keys = KeptKeys(config.key.keystore.parent / "private")
        yield Market(chain, deployment, key, BlockContent(config.content_dir), kept_keys)
    finally:
        await chain.close()


async def committed(desk: Desk, job_id: int) -> tuple[Receipt, Settlement]:
    """The receipt of a job that has one on chain, and the settlement that goes with it. Raises ChainError."""
    spec, event = await spec_of(desk, job_id), await _job_event(desk, JobCommitted, job_id)
    if event is None:
        raise ChainError(f"job {job_id} has no receipt on chain yet; wait for its commit")
    return event.receipt, eip712.settlement_of(spec, event.receipt, event.receipt_hash)


async def spec_of(desk: Desk, job_id: int) -> JobSpec:
    """What was submitted as this job. Raises ChainError for one that never was."""
    submitted = await _job_event(desk, JobSubmitted, job_id)
    if submitted is None:
        raise ChainError(f"no job {job_id} was ever submitted here")
    return submitted.spec


async def _job_event(desk: Desk, kind: type[OfJob], job_id: int) -> OfJob | None:
    """The last event of this kind for a job; a job that was released or lapsed may have several claims."""
    contract = desk.outputs if kind is OutputPublished else desk.queue
    topics = (kind.TOPIC, topic(job_id))
    found = await events(desk.chain, contract.address, desk.deployment.block, topics=topics)
    return next((event for event in reversed(found) if isinstance(event, kind)), None)


def _check_stays(known: Adapter, base_id: bytes, datanets: Sequence[int]) -> None:
    """Whoever publishes again names the base of the first time, and its datanets or none. Raises AdapterError."""
    if known.base_id != base_id:
        raise AdapterError(f"this adapter is registered for the base 0x{known.base_id.hex()}, and for no other")
    if datanets and set(datanets) != set(known.datanets):
        ids = ", ".join(map(str, known.datanets)) or "none"
        raise AdapterError(f"this adapter is registered already, with the datanets: {ids}; they stay as they are")


def _one(receipt: TxReceipt, kind: type[E]) -> E:
    """The transaction's event of this kind. Raises ChainError when there is none: not the contract we know."""
    for event in events_of(receipt.logs):
        if isinstance(event, kind):
            return event
    raise ChainError(f"the transaction emitted no {kind.__name__}; check the deployment file")
