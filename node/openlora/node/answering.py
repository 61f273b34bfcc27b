"""An answer from an input: through the engine, streamed as it comes, the same whichever lane the work came by."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from openlora.contracts import JobSpec, Recipe
from openlora.node.adapters.residency import AdapterResidency
from openlora.node.admission import Admission
from openlora.node.documents import InputDocument, OutputDocument
from openlora.node.engine.client import InferenceEngine
from openlora.node.engine.messages import AdapterUse, Sampling
from openlora.node.engine.text import TextDelta, collect
from openlora.node.errors import EngineDied
from openlora.node.facts import WEIGHT_UNIT
from openlora.node.streams import JobStreams

log = logging.getLogger(__name__)

ENGINE_ATTEMPTS: Final = 3  # work that ends the engine this often is given up


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be answered. `key` names its stream; the seed is fixed by the lane before the engine sees anything."""

    key: int
    spec: JobSpec
    recipe: Recipe
    seed: int
    document: InputDocument


@dataclass(frozen=True, slots=True)
class Answerer:
    """Computes answers. The adapters must be held (`residency.hold`) and ready while it does."""

    admission: Admission
    residency: AdapterResidency
    engine: InferenceEngine
    streams: JobStreams

    async def answer(self, work: Work) -> OutputDocument:
        """The whole answer; its text is published to the work's stream, which begins anew if the engine is restarted.

        Raises RequestError, and EngineDied when it died of this work too often.
        """
        for attempt in range(1, ENGINE_ATTEMPTS + 1):
            self.streams.open(work.key)
            try:
                return await self._complete(work)
            except EngineDied:
                if attempt == ENGINE_ATTEMPTS:
                    raise
                log.warning("event=engine_died work=%x attempt=%d", work.key, attempt)
        raise AssertionError("the last attempt returns or raises")

    async def _complete(self, work: Work) -> OutputDocument:
        prompt_ids = await self.admission.prompt_ids(work.document)
        uses = [
            AdapterUse(self.residency.key(digest), weight / WEIGHT_UNIT)
            for digest, weight in zip(work.recipe.adapters, work.recipe.weights, strict=True)
        ]
        sampling = _sampling(work, len(prompt_ids), self.engine.info.max_context)
        stop, tenant = work.document.sampling.stop, f"chain:{work.spec.client}"
        deltas = self.admission.text.complete(self.engine, prompt_ids, sampling, uses, stop, tenant)
        completion = await collect(self._published(work.key, deltas), len(prompt_ids))
        return OutputDocument(
            v=1,
            text=completion.text,
            token_ids=completion.token_ids,
            finish_reason=completion.finish_reason,
            usage=completion.usage,
        )

    async def _published(self, key: int, deltas: AsyncGenerator[TextDelta, None]) -> AsyncIterator[TextDelta]:
        async with aclosing(deltas):
            async for delta in deltas:
                self.streams.publish(key, delta.text)
                yield delta


def _sampling(work: Work, prompt_tokens: int, max_context: int) -> Sampling:
    asked = work.document.sampling
    limit = min(work.spec.max_out_tokens, max_context - prompt_tokens)
    return Sampling(
        max_tokens=limit if asked.max_tokens is None else min(limit, asked.max_tokens),
        temperature=asked.temperature,
        top_k=asked.top_k,
        top_p=asked.top_p,
        seed=work.seed,
        ignore_eos=asked.ignore_eos,
    )
