"""The inference engine: commands in, tokens out, one forward pass a step."""

import secrets
import time
from collections import abc
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from openlora.node.adapters.format import read_adapter
from openlora.node.engine.adapter_pool import AdapterPool, ResidentAdapter
from openlora.node.engine.admission import check_adapters, check_prompt, check_request
from openlora.node.engine.blocks import BlockAllocator
from openlora.node.engine.checkpoint import Checkpoint
from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.loader import build_weights, open_model
from openlora.node.engine.lookup import Lookup
from openlora.node.engine.messages import (
    AdapterLoaded,
    AdapterRefused,
    AdapterUnloaded,
    AdapterUse,
    Cancel,
    Command,
    Event,
    GetStatus,
    LoadAdapter,
    ModelInfo,
    Refused,
    Shutdown,
    Status,
    Step,
    Submit,
    Token,
    UnloadAdapter,
)
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.engine.prefix_cache import root_key
from openlora.node.engine.runner import Outputs, Runner
from openlora.node.engine.runners import auto_dtype, best_device, best_runner
from openlora.node.engine.sampling import Run, confirmed, to_events
from openlora.node.engine.scheduler import Scheduler
from openlora.node.engine.sequence import Chunk, Sequence
from openlora.node.errors import AdapterError, RequestError

__all__ = ["Engine", "EngineLimits", "ScoreRequest"]


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Tokens whose next-token distributions are wanted at every position, under a recipe."""

    tokens: tuple[int, ...]
    adapters: tuple[AdapterUse, ...] = ()


class Engine:
    """One base model, its cache and its adapters. Not thread-safe; whoever owns it calls `handle` and `step` in turn.

    Requests that share a pass do not touch each other's numbers: each row reads its own sequence's pages and its own
    adapters, and a row that turns NaN or infinite ends its own request alone.
    """

    def __init__(self, config: DecoderConfig, runner: Runner, limits: EngineLimits, checkpoint: Checkpoint) -> None:
        """`runner` computes the model of `config`, which `checkpoint` holds, with `limits.pages` pages of
        `limits.page_tokens` tokens."""
        blocks = BlockAllocator(limits.pages, limits.page_tokens)
        kv_tokens = blocks.pages * blocks.page_tokens
        self.info = ModelInfo(
            family=config.family,
            dtype=str(runner.dtype).removeprefix("torch."),
            weights=runner.form,
            vocab_size=config.vocab_size,
            max_context=min(config.max_positions, kv_tokens),
            eos_token_ids=config.eos_token_ids,
            kv_tokens=kv_tokens,
            backend=runner.backend,
        )
        self._limits = limits
        self._layout = config.modules()
        self._eos = frozenset(config.eos_token_ids)
        self._blocks = blocks
        self._scheduler = Scheduler(limits, blocks, runner.row_block)
        self._base = secrets.token_bytes(32)  # stands for the base model: no cached page outlives this engine
        self._adapters = AdapterPool(limits.adapter_bytes, runner.factors, checkpoint, runner.dtype, runner.device)
        self._runner = runner
        self._sequences: dict[str, Sequence] = {}
        self._refused: list[Refused] = []
        self._steps = 0
        self._generated_tokens = 0

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        dtype: str = "auto",
        weights: str = "auto",
        limits: EngineLimits | None = None,
        cache_dir: Path | None = None,
        device: torch.device | None = None,
    ) -> "Engine":
        """Load a Hugging Face directory or a GGUF file, as `auto_dtype` and `build_weights` have `dtype` and `weights`.
        Raises ModelError.

        `cache_dir` keeps compiled kernels from one start to the next; without it only the reference serves.
        On a GPU where there is one, unless `device` names another.
        """
        limits = limits or EngineLimits()
        config = DecoderConfig.from_path(path)
        config = replace(config, max_positions=min(config.max_positions, limits.kv_tokens))  # none is ever beyond
        checkpoint = Checkpoint(path, config)
        source, device = open_model(path, config), device or best_device()
        if dtype == "auto":
            dtype = auto_dtype(source, config, limits, cache_dir, device)
        loaded = build_weights(source, config, dtype, weights, device)
        runner = best_runner(config, loaded, limits, cache_dir)
        return cls(config, runner, limits, checkpoint)

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    def handle(self, command: Command) -> list[Event]:
        """Carry out a command; its immediate answers. Refuses, and never raises for, what a stranger may send."""
        match command:
            case Submit():
                return self._submit(command)
            case Cancel(request_id=request_id):
                self._end(request_id)
                return []
            case LoadAdapter(key=key, path=path):
                return [self._load_adapter(key, Path(path))]
            case UnloadAdapter(key=key):
                self._adapters.unload(key)
                return [AdapterUnloaded(key=key)]
            case GetStatus():
                return [self._status()]
            case Shutdown():
                for request_id in list(self._sequences):
                    self._end(request_id)
                return []

    @torch.inference_mode()
    def step(self) -> Step | None:
        """One forward pass; None when nothing runs. A request that failed in it is reported by `take_refused`."""
        chunks = self._scheduler.schedule()
        if not chunks:
            return None
        started_s = time.perf_counter()
        tokens = self._take([chunk for chunk in chunks if chunk.outputs], self._forward(chunks))
        self._scheduler.pace.learn(chunks, time.perf_counter() - started_s)
        for token in tokens:
            if token.finish_reason is not None:
                self._end(token.request_id)
        self._steps += 1
        self._generated_tokens += len(tokens)
        return Step(tokens=tuple(tokens))

    def take_refused(self) -> list[Refused]:
        """The requests that failed while running since the last call."""
        refused, self._refused = self._refused, []
        return refused

    @torch.inference_mode()
    def score(self, requests: abc.Sequence[ScoreRequest]) -> list[Tensor]:
        """Teacher forcing, all requests batched together: for each a tensor [tokens, vocabulary] float32 whose row i
        holds the log-probabilities of the token after tokens[i]. For an idle engine. Raises RequestError."""
        assert not self.has_work, "scoring steps the engine, and would lose the tokens of running requests"
        try:
            sequences = [self._score_sequence(f"score-{i}", request) for i, request in enumerate(requests)]
            found: dict[Sequence, list[Tensor]] = {sequence: [] for sequence in sequences}
            while self.has_work:
                chunks = self._scheduler.schedule()
                logits = self._forward(chunks).logits
                assert logits is not None, "sequences that sample nothing want them"
                rows = logits.log_softmax(dim=-1).split_with_sizes([chunk.outputs for chunk in chunks])
                for chunk, logprobs in zip(chunks, rows, strict=True):
                    found[chunk.sequence].append(logprobs)
                    if not chunk.sequence.pending:
                        self._end(chunk.sequence.request_id)
            return [torch.cat(found[sequence]) for sequence in sequences]
        finally:
            for request_id in list(self._sequences):
                self._end(request_id)

    def check_integrity(self) -> None:
        """Assert that pages and adapters are held by exactly the requests that exist."""
        self._scheduler.check_integrity()
        live = [*self._scheduler.running, *self._scheduler.waiting]
        assert {id(s) for s in live} == {id(s) for s in self._sequences.values()}
        self._adapters.check_integrity([adapter for s in live for adapter, _ in s.adapters])

    # ---- commands ---------------------------------------------------------------------------------------------------

    def _submit(self, submit: Submit) -> list[Event]:
        try:
            if submit.request_id in self._sequences:
                raise RequestError("bad_input", "a request of this id is running already")
            check_request(submit, self.info, self._limits.max_adapters)
            prompt = list(submit.prompt)
            sequence = Sequence(submit.request_id, prompt, len(prompt), submit.sampling, tenant=submit.tenant)
            self._add(sequence, submit.adapters)
        except RequestError as error:
            return [Refused(request_id=submit.request_id, code=error.code, message=str(error))]
        return []

    def _score_sequence(self, request_id: str, request: ScoreRequest) -> Sequence:
        sequence = Sequence(request_id, list(request.tokens), len(request.tokens), None)
        check_prompt(request.tokens, 0, self.info)
        check_adapters(request.adapters, self._limits.max_adapters)
        self._add(sequence, request.adapters)
        return sequence

    def _add(self, sequence: Sequence, uses: abc.Sequence[AdapterUse]) -> None:
        """Pin the recipe's adapters and queue the sequence. Raises RequestError, with nothing left pinned."""
        held: list[tuple[ResidentAdapter, float]] = []
        try:
            for use in uses:
                if (adapter := self._adapters.acquire(use.key)) is None:
                    raise RequestError("unknown_adapter", f"adapter {use.key!r} is not loaded")
                held.append((adapter, use.weight))
            sequence.adapters = tuple(held)
            sequence.line = tuple(use.key for use in uses)
            if self._limits.prefix_cache and sequence.sampling is not None:  # scoring wants every position computed
                recipe = [(adapter.content, weight) for adapter, weight in held]
                sequence.root = root_key(self._base, sequence.tenant, recipe)
            if self._limits.speculation and self._runner.exact:
                sequence.lookup = Lookup(sequence.tokens, sequence.prompt_length)
            self._scheduler.add(sequence)
        except RequestError:
            for adapter, _ in held:
                self._adapters.release(adapter)
            raise
        self._sequences[sequence.request_id] = sequence

    def _end(self, request_id: str) -> None:
        """Free what a request holds; one that has ended already is no error."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is None:
            return
        self._scheduler.remove(sequence)
        for adapter, _ in sequence.adapters:
            self._adapters.release(adapter)

    def _load_adapter(self, key: str, directory: Path) -> AdapterLoaded | AdapterRefused:
        try:
            adapter = self._adapters.load(key, read_adapter(directory, self._layout))
        except AdapterError as error:
            return AdapterRefused(key=key, message=str(error))
        return AdapterLoaded(key=key, rank=adapter.rank, bytes=adapter.nbytes)

    def _status(self) -> Status:
        """An idle engine checks its books first: one whose pages are mixed up must not go on."""
        if not self.has_work:
            self.check_integrity()
        return Status(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            kv_tokens_free=self._blocks.available * self._blocks.page_tokens,
            adapters=self._adapters.keys,
            steps=self._steps,
            generated_tokens=self._generated_tokens,
            kv_tokens_cached=self._blocks.idle * self._blocks.page_tokens,
            cache_hit_tokens=self._scheduler.cache.hit_tokens,
            preemptions=self._scheduler.preemptions,
            drafted_tokens=self._scheduler.speculation.drafted,
            accepted_tokens=self._scheduler.speculation.accepted,
        )

    # ---- a step -----------------------------------------------------------------------------------------------------

    def _forward(self, chunks: list[Chunk]) -> Outputs:
        outputs = self._runner.run(chunks)
        self._scheduler.computed(chunks)
        return outputs

    def _take(self, chunks: list[Chunk], outputs: Outputs) -> list[Token]:
        """The tokens that a pass has brought the chunks' sequences. One whose logits were not finite is refused and
        freed, unless a draft may have made them so."""
        runs, drafted, row = [], [], 0
        for chunk in chunks:
            drawn = [token for token in outputs.tokens[row : row + chunk.outputs] if token is not None]
            if len(drawn) == chunk.outputs:
                runs.append(Run(chunk.sequence, row, confirmed(chunk.draft, drawn)))
                if chunk.draft:
                    drafted.append(chunk)
            elif chunk.draft:
                self._scheduler.recompute(chunk.sequence)
            else:
                self._refuse_poisoned(chunk.sequence)
            row += chunk.outputs
        tokens = to_events(runs, outputs.logits, self._eos)
        self._scheduler.confirmed(drafted)
        return tokens

    def _refuse_poisoned(self, sequence: Sequence) -> None:
        message = "the model's numbers became infinite or NaN under this prompt and these adapters"
        self._refused.append(Refused(request_id=sequence.request_id, code="not_finite", message=message))
        self._scheduler.distrust(sequence)
        self._end(sequence.request_id)
