"""An engine without a model: next tokens are a hash of the request, so equal requests give equal tokens.

Runs in a thread (`in_process_engine(FakeEngine())`) or as a child (`python fake_engine.py --socket …`), and shows what
a real engine shows: batching, refusals, adapters by key, cancellation, log-probabilities, an end token.

A prompt's first token may order a behaviour: see `CRASH`, `REFUSE` and `POISON`.
"""

import hashlib
import json
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

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
    Status,
    Step,
    Submit,
    Token,
    UnloadAdapter,
)
from openlora.node.engine.process import Arguments, Steps, main
from openlora.node.errors import ModelError

VOCAB = 259  # the 256 bytes, then <|endoftext|>, <|im_start|>, <|im_end|>
EOS = 258
CRASH, REFUSE, POISON = 0, 1, 2  # first token of a prompt: SIGKILL, refused at once, refused after two tokens
MAX_CONTEXT = 512


@dataclass
class _Request:
    submit: Submit
    generated: int = 0


@dataclass
class FakeEngine:
    """`script`: bytes that every request answers, then the end token; None: a hash. `run`: a request's tokens a step.
    `gate`: steps wait for it."""

    script: bytes | None = None
    run: int = 1
    max_waiting: int = 1000
    step_s: float = 0.0
    gate: threading.Event = field(default_factory=threading.Event)
    adapters: dict[str, str] = field(default_factory=dict)
    requests: dict[str, _Request] = field(default_factory=dict)
    refused: list[Refused] = field(default_factory=list)
    tenants: list[str] = field(default_factory=list)  # of all requests that came
    steps: int = 0
    generated: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(
            family="fake",
            dtype="float32",
            weights="full",
            vocab_size=VOCAB,
            max_context=MAX_CONTEXT,
            eos_token_ids=(EOS,),
            kv_tokens=65_536,
            backend="reference",
        )

    @property
    def has_work(self) -> bool:
        return bool(self.requests) and self.gate.is_set()

    def handle(self, command: Command) -> list[Event]:
        match command:
            case Submit():
                return self._submit(command)
            case Cancel(request_id=request_id):
                self.requests.pop(request_id, None)
            case LoadAdapter(key=key, path=path):
                if not (Path(path) / "adapter_config.json").is_file():
                    return [AdapterRefused(key=key, message=f"{path} has no adapter_config.json")]
                self.adapters[key] = path
                return [AdapterLoaded(key=key, rank=8, bytes=1000)]
            case UnloadAdapter(key=key):
                self.adapters.pop(key, None)
                return [AdapterUnloaded(key=key)]
            case GetStatus():
                return [self._status()]
        return []

    def step(self) -> Step | None:
        time.sleep(self.step_s)
        if any(request.submit.prompt[0] == CRASH for request in self.requests.values()):
            os.kill(os.getpid(), signal.SIGKILL)
        for request_id in [i for i, r in self.requests.items() if r.submit.prompt[0] == POISON and r.generated == 2]:
            del self.requests[request_id]
            self.refused.append(Refused(request_id=request_id, code="not_finite", message="the numbers became NaN"))
        tokens: list[Token] = []
        for request in list(self.requests.values()):
            for _ in range(self.run):
                tokens.append(self._next(request))
                if tokens[-1].finish_reason is not None:
                    del self.requests[request.submit.request_id]
                    break
        self.steps += 1
        self.generated += len(tokens)
        return Step(tokens=tuple(tokens))

    def take_refused(self) -> list[Refused]:
        refused, self.refused = self.refused, []
        return refused

    def _submit(self, submit: Submit) -> list[Event]:
        self.tenants.append(submit.tenant)
        unknown = [use.key for use in submit.adapters if use.key not in self.adapters]
        if unknown:
            return [Refused(request_id=submit.request_id, code="unknown_adapter", message=f"no adapter {unknown[0]}")]
        if submit.prompt[0] == REFUSE:
            return [Refused(request_id=submit.request_id, code="refused", message="this request is refused")]
        if len(self.requests) >= self.max_waiting:
            return [Refused(request_id=submit.request_id, code="overloaded", message="the queue is full")]
        self.requests[submit.request_id] = _Request(submit)
        return []

    def _next(self, request: _Request) -> Token:
        sampling, position = request.submit.sampling, request.generated
        request.generated += 1
        token_id = self._token_id(request.submit, position)
        ends = (token_id == EOS and not sampling.ignore_eos) or token_id in sampling.stop_token_ids
        full = request.generated >= sampling.max_tokens
        report = sampling.logprobs is not None
        return Token(
            request_id=request.submit.request_id,
            token_id=token_id,
            logprob=-0.25 if report else None,
            top=tuple(((token_id + i) % 256, -0.25 - i) for i in range(sampling.logprobs or 0)),
            finish_reason="stop" if ends else "length" if full else None,
        )

    def _token_id(self, submit: Submit, position: int) -> int:
        if self.script is not None:
            return self.script[position] if position < len(self.script) else EOS
        recipe = [(self.adapters[use.key], use.weight) for use in submit.adapters]
        seed = submit.sampling.seed if submit.sampling.temperature > 0 else 0
        key = json.dumps([submit.prompt, recipe, seed, position]).encode()
        return 97 + hashlib.sha256(key).digest()[0] % 26

    def _status(self) -> Status:
        return Status(
            running=len(self.requests),
            waiting=0,
            kv_tokens_free=65_536,
            adapters=tuple(self.adapters),
            steps=self.steps,
            generated_tokens=self.generated,
        )


def load(arguments: Arguments) -> Steps:
    """The child's engine: `--model` must exist; a file named `slow` in it makes every step take 5 ms."""
    if not arguments.model.exists():
        raise ModelError(f"{arguments.model} does not exist; give a model directory or a GGUF file")
    return FakeEngine(step_s=0.005 if (arguments.model / "slow").exists() else 0.0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], load))
