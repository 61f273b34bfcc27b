"""What agent and engine say to each other: token ids in, token ids out.

The engine knows no text: tokenizers, chat templates and stop strings live with the caller (`engine/text.py`). Every
message is a typed, tagged msgpack struct; unknown tags and wrong types are refused by the decoder. `VERSION` changes
whenever a message does; the child announces it in `Ready`.
"""

import msgspec

VERSION = 3


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """Root of all messages; the class name is the tag."""


# ---- shared parts ---------------------------------------------------------------------------------------------------


class AdapterUse(msgspec.Struct, frozen=True):
    """One term of a recipe: the effect added is weight · s · B·A·x, s = α/r (α/√r for rsLoRA)."""

    key: str  # as given to LoadAdapter
    weight: float = 1.0


class Sampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the next token is chosen: Gumbel-max under Philox4x32-10 keyed by `seed`, over the survivors of top-k, then
    top-p. temperature 0 is greedy. `max_tokens` >= 1. `logprobs`: how many alternatives to report besides the chosen
    token's own log-probability (None: report nothing; 0..20). Log-probabilities are of the model's unmodified softmax.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    seed: int = 0  # 64 bits, unsigned
    stop_token_ids: tuple[int, ...] = ()  # besides the model's own end-of-sequence ids
    ignore_eos: bool = False
    logprobs: int | None = None


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine serves, fixed for its life."""

    family: str  # "llama", "qwen2", …
    dtype: str  # "bfloat16", "float32"
    weights: str  # what they were rounded to: "full" (not at all), "int8", "int4"
    vocab_size: int
    max_context: int  # prompt + output tokens of one request, at most
    eos_token_ids: tuple[int, ...]
    kv_tokens: int  # capacity of the paged cache, in tokens
    backend: str  # kernels: "reference", "cpu-…" with the instruction set, "triton", "vllm …"

    @property
    def numbers(self) -> str:
        """What is computed with, for people and peers: "bfloat16", "bfloat16+int8"."""
        return self.dtype if self.weights == "full" else f"{self.dtype}+{self.weights}"


# ---- agent → engine -------------------------------------------------------------------------------------------------


class Submit(Message, frozen=True):
    """Run a request. Answered by `Step` tokens whose last one has `finish_reason`, or by one `Refused`."""

    request_id: str
    prompt: tuple[int, ...]
    sampling: Sampling
    adapters: tuple[AdapterUse, ...] = ()  # empty: the base model
    tenant: str = ""  # whose it is: tenants are served evenly, and share no cached computation; at most 128 characters


class Cancel(Message, frozen=True):
    """Stop a request and free its pages. No token of it follows the engine's next `Step`; an unknown id is no error."""

    request_id: str


class LoadAdapter(Message, frozen=True):
    """Make a verified adapter directory servable under `key`. Answered by `AdapterLoaded` or `AdapterRefused`.

    A key in use by running requests keeps serving them with the old weights; new requests see the new ones.
    """

    key: str
    path: str


class UnloadAdapter(Message, frozen=True):
    """Forget `key` for new requests; memory returns when its last running request ends. Answered by `AdapterUnloaded`,
    also for a key that is unknown."""

    key: str


class GetStatus(Message, frozen=True):
    """Answered by `Status`."""


class Shutdown(Message, frozen=True):
    """End the process; running requests are dropped."""


Command = Submit | Cancel | LoadAdapter | UnloadAdapter | GetStatus | Shutdown


# ---- engine → agent -------------------------------------------------------------------------------------------------


class Ready(Message, frozen=True):
    """First message of a child: the model is loaded."""

    version: int
    model: ModelInfo


class Failed(Message, frozen=True):
    """First message of a child in place of `Ready`: the model cannot be served; the child ends with exit code 2."""

    message: str


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """One generated token. `finish_reason` ends the request: "stop" (an end token, which is included), "length"."""

    request_id: str
    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()  # (token id, log-probability), best first
    finish_reason: str | None = None


class Step(Message, frozen=True):
    """All tokens of one forward pass; those of a request, of which there may be several, in their order."""

    tokens: tuple[Token, ...]


class Refused(Message, frozen=True):
    """A request that cannot run; `code` as in RequestError."""

    request_id: str
    code: str
    message: str


class AdapterLoaded(Message, frozen=True):
    key: str
    rank: int
    bytes: int


class AdapterUnloaded(Message, frozen=True):
    key: str


class AdapterRefused(Message, frozen=True):
    key: str
    message: str


class Status(Message, frozen=True):
    running: int
    waiting: int
    kv_tokens_free: int  # what is cached and held by no request included
    adapters: tuple[str, ...]
    steps: int
    generated_tokens: int
    kv_tokens_cached: int = 0  # of the free ones, those that a request with an equal beginning could use
    cache_hit_tokens: int = 0  # prompt tokens that were not computed, since the start
    preemptions: int = 0  # since the start
    drafted_tokens: int = 0  # that were computed ahead on a guess, since the start
    accepted_tokens: int = 0  # of them, those that were right


Event = Ready | Failed | Step | Refused | AdapterLoaded | AdapterUnloaded | AdapterRefused | Status
