"""vLLM as an engine: the agent's commands in, vLLM's tokens out.

What our own engine promises and vLLM does not: a request's numbers may depend on what it is batched with, sampling
follows vLLM's generator and no counter, and NaN is not looked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
import vllm
from vllm import SamplingParams
from vllm.logprobs import Logprob
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine

from openlora.node.adapters.format import read_adapter
from openlora.node.engine.adapter_pool import AdapterPool, ResidentAdapter
from openlora.node.engine.admission import check_request
from openlora.node.engine.checkpoint import Checkpoint
from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.messages import (
    AdapterLoaded,
    AdapterRefused,
    AdapterUnloaded,
    Cancel,
    Command,
    Event,
    GetStatus,
    LoadAdapter,
    ModelInfo,
    Refused,
    Sampling,
    Shutdown,
    Status,
    Step,
    Submit,
    Token,
    UnloadAdapter,
)
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.engine.vllm.recipes import Recipe, Recipes
from openlora.node.errors import AdapterError, RequestError

_TRIAL = "\0trial"  # the key of an adapter that vLLM has not yet taken


@dataclass(frozen=True, slots=True)
class _Held:
    """What a running request keeps from being dropped, and how many likely tokens it wants to hear of."""

    adapters: tuple[tuple[ResidentAdapter, float], ...]
    recipe: Recipe | None
    alternatives: int


class VllmEngine:
    """The `Steps` of the engine's loop, on a vLLM engine in this process. Not thread-safe."""

    def __init__(
        self, llm: LLMEngine, config: DecoderConfig, checkpoint: Checkpoint, limits: EngineLimits, recipes: Recipes
    ) -> None:
        """`config` and `checkpoint` are of the model that `llm` serves."""
        model, cache = llm.vllm_config.model_config, llm.vllm_config.cache_config
        self.info = ModelInfo(
            family=config.family,
            dtype=str(model.dtype).removeprefix("torch."),
            weights="full",
            vocab_size=config.vocab_size,
            max_context=model.max_model_len,
            eos_token_ids=config.eos_token_ids,
            kv_tokens=cache.num_gpu_blocks * cache.block_size,
            backend=f"vllm-{vllm.__version__}",
        )
        self._llm = llm
        self._limits = limits
        self._layout = config.modules()
        self._recipes = recipes
        self._adapters = AdapterPool(
            limits.adapter_bytes, recipes.factors, checkpoint, model.dtype, torch.device("cpu")
        )
        self._running: dict[str, _Held] = {}
        self._refused: list[Refused] = []
        self._steps = 0
        self._generated_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self._running)

    def handle(self, command: Command) -> list[Event]:
        """Carry out a command; its immediate answers."""
        match command:
            case Submit():
                return self._submit(command)
            case Cancel(request_id=request_id):
                self._cancel([request_id])
                return []
            case LoadAdapter(key=key, path=path):
                return [self._load_adapter(key, Path(path))]
            case UnloadAdapter(key=key):
                self._adapters.unload(key)
                return [AdapterUnloaded(key=key)]
            case GetStatus():
                return [self._status()]
            case Shutdown():
                self._cancel(list(self._running))
                return []

    def step(self) -> Step | None:
        """One of vLLM's steps; None if no token came of it."""
        tokens = [token for output in self._llm.step() for token in self._take(output)]
        self._steps += 1
        self._generated_tokens += len(tokens)
        return Step(tokens=tuple(tokens)) if tokens else None

    def take_refused(self) -> list[Refused]:
        """The requests that vLLM gave up since the last call."""
        refused, self._refused = self._refused, []
        return refused

    # ---- commands ---------------------------------------------------------------------------------------------------

    def _submit(self, submit: Submit) -> list[Event]:
        try:
            if submit.request_id in self._running:
                raise RequestError("bad_input", "a request of this id is running already")
            if len(self._running) >= self._limits.max_running + self._limits.max_waiting:
                raise RequestError("overloaded", "too many requests wait for this engine; try again later")
            check_request(submit, self.info, self._limits.max_adapters)
            held = self._hold(submit)
        except RequestError as error:
            return [Refused(request_id=submit.request_id, code=error.code, message=str(error))]
        prompt: dict[str, Any] = {"prompt_token_ids": list(submit.prompt)}
        if submit.tenant:
            prompt["cache_salt"] = submit.tenant
        lora = None if held.recipe is None else _lora_request(held.recipe)
        self._llm.add_request(submit.request_id, prompt, self._sampling(submit.sampling), lora_request=lora)
        self._running[submit.request_id] = held
        return []

    def _hold(self, submit: Submit) -> _Held:
        """Holds the request's adapters, and gives vLLM their recipe. Raises RequestError with nothing left held."""
        adapters: list[tuple[ResidentAdapter, float]] = []
        try:
            for use in submit.adapters:
                if (adapter := self._adapters.acquire(use.key)) is None:
                    raise RequestError("unknown_adapter", f"adapter {use.key!r} is not loaded")
                adapters.append((adapter, use.weight))
            recipe = self._recipe(adapters) if adapters else None
            return _Held(tuple(adapters), recipe, submit.sampling.logprobs or 0)
        except RequestError:
            for adapter, _ in adapters:
                self._adapters.release(adapter)
            raise

    def _recipe(self, adapters: Sequence[tuple[ResidentAdapter, float]]) -> Recipe:
        """Loaded into vLLM now, where a refusal costs one request: in a step it would cost all."""
        recipe = self._recipes.acquire(adapters)
        try:
            self._llm.add_lora(_lora_request(recipe))
        except (ValueError, RuntimeError) as error:  # what its loader raises for an adapter that it cannot serve
            self._recipes.release(recipe)
            raise RequestError("bad_adapters", f"vLLM cannot serve these adapters: {error}") from error
        return recipe

    def _cancel(self, request_ids: list[str]) -> None:
        known = [request_id for request_id in request_ids if request_id in self._running]
        self._llm.abort_request(known)
        for request_id in known:
            self._end(request_id)

    def _end(self, request_id: str) -> None:
        held = self._running.pop(request_id)
        if held.recipe is not None:
            self._recipes.release(held.recipe)
        for adapter, _ in held.adapters:
            self._adapters.release(adapter)

    def _load_adapter(self, key: str, directory: Path) -> AdapterLoaded | AdapterRefused:
        """Checked as our own engine checks it, and tried in vLLM before `key` names it."""
        try:
            weights = read_adapter(directory, self._layout)
            trial = self._adapters.load(_TRIAL, weights)
            try:
                self._recipes.release(self._recipe([(trial, 1.0)]))
            finally:
                self._adapters.unload(_TRIAL)
            adapter = self._adapters.load(key, weights)
        except (AdapterError, RequestError) as error:
            return AdapterRefused(key=key, message=str(error))
        return AdapterLoaded(key=key, rank=adapter.rank, bytes=adapter.nbytes)

    def _sampling(self, sampling: Sampling) -> SamplingParams:
        ends = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else self.info.eos_token_ids)}
        return SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=sampling.seed,
            stop_token_ids=sorted(ends),
            ignore_eos=True,  # every end is named
            logprobs=sampling.logprobs,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )

    def _status(self) -> Status:
        metrics = {metric.name: getattr(metric, "value", 0) for metric in self._llm.get_metrics()}
        used = float(metrics.get("vllm:kv_cache_usage_perc", 0))  # a share, its name notwithstanding
        return Status(
            running=int(metrics.get("vllm:num_requests_running", 0)),
            waiting=int(metrics.get("vllm:num_requests_waiting", 0)),
            kv_tokens_free=int((1 - used) * self.info.kv_tokens),
            adapters=self._adapters.keys,
            steps=self._steps,
            generated_tokens=self._generated_tokens,
            cache_hit_tokens=int(metrics.get("vllm:prefix_cache_hits", 0)),
            preemptions=int(metrics.get("vllm:num_preemptions", 0)),
        )

    # ---- a step -----------------------------------------------------------------------------------------------------

    def _take(self, output: RequestOutput) -> list[Token]:
        """What a step gave one request: no token, one, or several."""
        request_id, (made,) = output.request_id, output.outputs
        if (held := self._running.get(request_id)) is None:
            return []
        if made.finish_reason is not None:
            self._end(request_id)
        if made.finish_reason not in (None, "stop", "length"):
            message = f"vLLM gave the request up ({made.finish_reason}); submit it again"
            self._refused.append(Refused(request_id=request_id, code="engine_failed", message=message))
            return []
        found = made.logprobs or [None] * len(made.token_ids)
        tokens = [_token(request_id, *each, held.alternatives) for each in zip(made.token_ids, found, strict=True)]
        if made.finish_reason is not None:
            tokens[-1] = msgspec.structs.replace(tokens[-1], finish_reason=made.finish_reason)
        return tokens


def _token(request_id: str, token_id: int, found: Mapping[int, Logprob] | None, alternatives: int) -> Token:
    """`found`: the chosen token and the likeliest ones, of which it may be one; None: nobody asked."""
    if found is None:
        return Token(request_id=request_id, token_id=token_id)
    likeliest = sorted(((other, each.logprob) for other, each in found.items()), key=lambda each: -each[1])
    return Token(
        request_id=request_id,
        token_id=token_id,
        logprob=found[token_id].logprob,
        top=tuple(likeliest[:alternatives]),
    )


def _lora_request(recipe: Recipe) -> LoRARequest:
    return LoRARequest(str(recipe.number), recipe.number, str(recipe.directory))
