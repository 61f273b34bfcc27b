"""Whether to claim a job: local facts only, each refusal with its skip code."""

import asyncio
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from openlora.contracts import JobFlag, JobSpec, Recipe
from openlora.node import documents
from openlora.node.absent import Absent
from openlora.node.adapters.fetch import AdapterFetcher
from openlora.node.content import Content, adapter_cid
from openlora.node.documents import MAX_PUBLISHED_BYTES, InputDocument, output_bytes
from openlora.node.engine.messages import ModelInfo
from openlora.node.engine.text import TextModel
from openlora.node.errors import AdapterCheckFailed, AdapterError, ContentError, NetworkDown, RequestError
from openlora.node.job import SkipCode
from openlora.node.private.sealing import Sealed, unseal
from openlora.node.terms import Terms

CLAIM_AND_COMMIT_GAS: Final = 400_000  # what one job may cost the hot key, generously
PUBLISH_GAS: Final = 400_000  # more, for publishing an output: a client's contract may be called with 200,000 of it …
PUBLISH_GAS_PER_BYTE: Final = 60  # … and calldata, its digest and the event cost by the byte
SERVED_FLAGS: Final = JobFlag.GUARDED | JobFlag.PUBLISH | JobFlag.PRIVATE
FETCH_S: Final = 20.0  # of one place for live jobs; what came until then is there at the next attempt


class Skip(Exception):
    """The job is not claimed, and why."""

    def __init__(self, code: SkipCode) -> None:
        super().__init__(code.value)
        self.code = code


@dataclass(frozen=True, slots=True)
class Funds:
    """What the chain says this node can put up, read just now."""

    gas_wei: int  # balance of the hot key
    gas_price_wei: int
    free_stake_wei: int
    bond_wei: int  # of one claim
    now_s: int  # by the chain's clock, which decides about deadlines


@dataclass(frozen=True, slots=True)
class Admission:
    """This node's rules and what it serves; each `check` holds a job against some of them, and raises Skip."""

    base_id: bytes
    model: ModelInfo
    text: TextModel
    content: Content
    fetcher: AdapterFetcher
    terms: Terms
    storage_dir: Path
    absent: Absent = field(default_factory=Absent)

    def check_offer(self, spec: JobSpec, recipe: Recipe, now_s: float) -> None:
        """What the spec alone tells, and this machine."""
        market = self.terms.market
        if self.terms.draining:
            raise Skip(SkipCode.DRAINING)
        if recipe.base_id != self.base_id:
            raise Skip(SkipCode.MODEL_NOT_SERVED)
        if spec.flags & ~int(SERVED_FLAGS):  # inverted, an IntFlag knows its own bits alone
            raise Skip(SkipCode.UNKNOWN_FLAGS)
        if spec.flags & JobFlag.PUBLISH and output_bytes(spec.max_out_tokens) > MAX_PUBLISHED_BYTES:
            raise Skip(SkipCode.OUTPUT_TOO_LARGE)
        if market.clients and spec.client not in market.clients:
            raise Skip(SkipCode.CLIENT_NOT_ALLOWED)
        if market.adapters and any(adapter_cid(digest) not in market.adapters for digest in recipe.adapters):
            raise Skip(SkipCode.ADAPTER_NOT_ALLOWED)
        asked = (market.min_in_price_wei_per_k, market.min_out_price_wei_per_k)
        if spec.in_price_per_k < asked[0] or spec.out_price_per_k < asked[1]:
            raise Skip(SkipCode.PRICE_TOO_LOW)
        if min(spec.deadline - now_s, spec.lease_secs) < market.min_time_left_s:
            raise Skip(SkipCode.DEADLINE_TOO_NEAR)
        if shutil.disk_usage(self.storage_dir).free < self.terms.min_free_bytes:
            raise Skip(SkipCode.LOW_DISK)

    def check_funds(self, spec: JobSpec, funds: Funds) -> None:
        """Gas and bond."""
        if funds.gas_wei < _gas_of(spec) * funds.gas_price_wei:
            raise Skip(SkipCode.LOW_GAS)
        if funds.free_stake_wei < funds.bond_wei:
            raise Skip(SkipCode.NO_STAKE)

    async def check_content(
        self, spec: JobSpec, document: bytes | None, recipe: Recipe, key: bytes | None = None
    ) -> None:
        """The input and the adapters, fetched; `key` opens a private job's input."""
        await self._check_input(spec, document, key)
        await self._check_adapters(recipe)

    async def _check_input(self, spec: JobSpec, document: bytes | None, key: bytes | None) -> None:
        digest = spec.input_digest
        if document is None and digest in self.absent:
            raise Skip(SkipCode.INPUT_UNAVAILABLE)
        try:
            prompt_ids = await self.prompt_ids(await self.input(spec, document, key))
        except (ContentError, NetworkDown):
            self.absent.add(digest)
            raise Skip(SkipCode.INPUT_UNAVAILABLE) from None
        except RequestError:
            raise Skip(SkipCode.BAD_INPUT) from None
        room = min(spec.max_out_tokens, self.model.max_context - len(prompt_ids))
        if len(prompt_ids) > spec.max_in_tokens or room < 1:
            raise Skip(SkipCode.OVER_CONTEXT)

    async def _check_adapters(self, recipe: Recipe) -> None:
        """That they are on disk and verified. Whoever claims first and finds out afterwards pays for it, and those who
        register bad adapters would live on that."""
        for digest in recipe.adapters:
            if digest in self.absent:
                raise Skip(SkipCode.ADAPTER_UNAVAILABLE)
            try:
                async with asyncio.timeout(FETCH_S):
                    await self.fetcher.ensure(digest)
            except (ContentError, NetworkDown, AdapterCheckFailed, TimeoutError):
                self.absent.add(digest)
                raise Skip(SkipCode.ADAPTER_UNAVAILABLE) from None
            except AdapterError:
                raise Skip(SkipCode.ADAPTER_REFUSED) from None

    async def input(self, spec: JobSpec, document: bytes | None, key: bytes | None = None) -> InputDocument:
        """The spec's input: `document` where it came inline, else by its digest; opened with `key`, if there is one.
        Raises ContentError, RequestError."""
        data = document or await self.content.get_document(spec.input_digest)
        if key is None:
            return documents.decode_input(data)
        try:
            return documents.decode_input(unseal(key, data, Sealed.INPUT))
        except RequestError:  # whose words may quote the document
            raise RequestError("bad_input", "the sealed input does not open to an input document") from None

    async def prompt_ids(self, document: InputDocument) -> list[int]:
        """Token ids of the document's prompt under this model's tokenizer and chat template. Raises RequestError.

        In a thread: a document's megabyte takes seconds, in which nothing else of the agent may stand still.
        """
        ids = await asyncio.to_thread(self._token_ids, document)
        if not ids:
            raise RequestError("bad_input", "the prompt is empty")
        if not all(0 <= token < self.model.vocab_size for token in ids):
            raise RequestError("bad_input", f"the prompt's token ids must lie in [0, {self.model.vocab_size})")
        return ids

    def _token_ids(self, document: InputDocument) -> list[int]:
        if document.messages is not None:
            return self.text.encode_chat(document.messages)
        if document.prompt is not None:
            return self.text.encode(document.prompt)
        assert document.prompt_ids is not None, "decode_input promises one of three"
        return list(document.prompt_ids)


def _gas_of(spec: JobSpec) -> int:
    """What the hot key must be able to pay for before it claims the job."""
    if not spec.flags & JobFlag.PUBLISH:
        return CLAIM_AND_COMMIT_GAS
    return CLAIM_AND_COMMIT_GAS + PUBLISH_GAS + PUBLISH_GAS_PER_BYTE * output_bytes(spec.max_out_tokens)
