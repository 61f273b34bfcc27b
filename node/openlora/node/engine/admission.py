"""What a request must satisfy before the engine takes it."""

import math

from openlora.node.engine.messages import AdapterUse, ModelInfo, Sampling, Submit
from openlora.node.errors import RequestError

MAX_ADAPTER_WEIGHT = 10.0
MAX_LOGPROBS = 20
MAX_TENANT_CHARS = 128
MAX_TEMPERATURE = 100.0


def check_request(submit: Submit, model: ModelInfo, max_adapters: int) -> None:
    """Raises RequestError for what can never run: `bad_input`, `bad_sampling`, `bad_adapters`, `context_length`."""
    check_prompt(submit.prompt, submit.sampling.max_tokens, model)
    _check_sampling(submit.sampling)
    if len(submit.tenant) > MAX_TENANT_CHARS:
        raise RequestError("bad_input", f"a tenant's name has at most {MAX_TENANT_CHARS} characters")
    check_adapters(submit.adapters, max_adapters)


def check_prompt(prompt: tuple[int, ...], max_tokens: int, model: ModelInfo) -> None:
    """Raises RequestError `bad_input`, or `context_length` if prompt and output together are too long."""
    if not prompt:
        raise RequestError("bad_input", "the prompt is empty")
    if min(prompt) < 0 or max(prompt) >= model.vocab_size:
        raise RequestError("bad_input", f"prompt token ids must lie in [0, {model.vocab_size})")
    if len(prompt) + max_tokens > model.max_context:
        raise RequestError(
            "context_length",
            f"{len(prompt)} prompt tokens and max_tokens {max_tokens} exceed this node's {model.max_context}",
        )


def _check_sampling(sampling: Sampling) -> None:
    rules = (
        (sampling.max_tokens >= 1, "max_tokens must be at least 1"),
        (0 <= sampling.temperature <= MAX_TEMPERATURE, f"temperature must lie in [0, {MAX_TEMPERATURE:g}]"),
        (0 <= sampling.top_k < 1 << 31, "top_k must be 0 (off) or positive"),
        (0 < sampling.top_p <= 1, "top_p must lie in (0, 1]"),
        (0 <= sampling.seed < 1 << 64, "seed must be an unsigned 64-bit number"),
        (sampling.logprobs is None or 0 <= sampling.logprobs <= MAX_LOGPROBS, f"logprobs is at most {MAX_LOGPROBS}"),
    )
    for holds, message in rules:
        if not holds:
            raise RequestError("bad_sampling", message)


def check_adapters(adapters: tuple[AdapterUse, ...], max_adapters: int) -> None:
    """Raises RequestError `bad_adapters`; whether they are loaded is not looked at."""
    if len(adapters) > max_adapters:
        raise RequestError("bad_adapters", f"a request may name at most {max_adapters} adapters")
    for use in adapters:
        if not math.isfinite(use.weight) or abs(use.weight) > MAX_ADAPTER_WEIGHT:
            raise RequestError("bad_adapters", f"an adapter's weight must lie within ±{MAX_ADAPTER_WEIGHT:g}")
