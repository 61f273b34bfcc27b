"""From logits to the tokens that leave the engine."""

from collections import abc
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from openlora.kernels.ops import Ops
from openlora.node.engine.messages import Sampling, Token
from openlora.node.engine.sequence import Sequence


def choose(ops: Ops, logits: Tensor, sequences: abc.Sequence[Sequence]) -> list[int | None]:
    """The next token of each row, drawn as its sequence's sampling says (greedily where there is none); None where a
    logit is infinite or NaN. `logits` [N, vocabulary] float32."""
    if not sequences:
        return []
    lowest, highest = logits.aminmax(dim=-1)  # NaN where a row holds one
    finite = (lowest.isfinite() & highest.isfinite()).tolist()
    sound = logits if all(finite) else logits.where(torch.tensor(finite, device=logits.device).unsqueeze(1), 0.0)
    chosen = _draw(ops, sound, sequences)
    return [token if usable else None for token, usable in zip(chosen, finite, strict=True)]


class Run(NamedTuple):
    """The next tokens of a sequence that a pass has found; the first was drawn from the logits' row `row`."""

    sequence: Sequence
    row: int
    tokens: abc.Sequence[int]


def confirmed(draft: abc.Sequence[int], drawn: abc.Sequence[int]) -> abc.Sequence[int]:
    """Of `drawn`, the tokens after a sequence's last row and after each of its draft, those that would have been drawn
    without a draft: up to the first that the draft had otherwise."""
    right = 0
    while right < len(draft) and draft[right] == drawn[right]:
        right += 1
    return drawn[: right + 1]


def to_events(runs: abc.Iterable[Run], logits: Tensor | None, eos_token_ids: frozenset[int]) -> list[Token]:
    """Append each run's tokens to its sequence, up to one that ends the request, and tell of them. `logits` [N,
    vocabulary] are needed where log-probabilities are to be reported."""
    tokens: list[Token] = []
    reported: list[tuple[int, int, int]] = []
    for sequence, first_row, chosen in runs:
        sampling = sequence.sampling
        assert sampling is not None, "nothing is sampled for this sequence"
        for row, token_id in enumerate(chosen, first_row):
            sequence.tokens.append(token_id)
            reason = _finish_reason(sequence, sampling, token_id, eos_token_ids)
            if sampling.logprobs is not None:
                reported.append((len(tokens), row, sampling.logprobs))
            tokens.append(Token(request_id=sequence.request_id, token_id=token_id, finish_reason=reason))
            if reason is not None:
                break
    if reported:
        assert logits is not None, "log-probabilities are wanted"
        _report(tokens, reported, logits)
    return tokens


def _draw(ops: Ops, logits: Tensor, sequences: abc.Sequence[Sequence]) -> list[int]:
    params = [sequence.sampling for sequence in sequences]
    if not any(p is not None and p.temperature for p in params):
        return [int(token) for token in logits.argmax(dim=-1).tolist()]
    device = logits.device
    seeds = [p.seed - (p.seed >> 63 << 64) if p else 0 for p in params]  # the same 64 bits, as a signed number
    chosen = ops.sample(
        logits,
        torch.tensor([p.temperature if p else 0.0 for p in params], dtype=torch.float64, device=device),
        torch.tensor([p.top_k if p else 0 for p in params], device=device),
        torch.tensor([p.top_p if p else 1.0 for p in params], dtype=torch.float64, device=device),
        torch.tensor(seeds, device=device),
        torch.tensor([len(sequence.tokens) for sequence in sequences], device=device),
    )
    return [int(token) for token in chosen.tolist()]


def _report(tokens: list[Token], reported: abc.Sequence[tuple[int, int, int]], logits: Tensor) -> None:
    """Give tokens their log-probabilities: for each of `reported` its index, its row, and how many of the most probable
    tokens are told of beside it."""
    logprobs = logits[[row for _, row, _ in reported]].log_softmax(dim=-1)
    values, ids = (x.tolist() for x in logprobs.topk(max(count for _, _, count in reported), dim=-1))
    for i, (index, _, count) in enumerate(reported):
        tokens[index] = msgspec.structs.replace(
            tokens[index],
            logprob=float(logprobs[i, tokens[index].token_id]),
            top=tuple(zip(ids[i][:count], values[i][:count], strict=True)),
        )


def _finish_reason(sequence: Sequence, sampling: Sampling, token_id: int, eos: frozenset[int]) -> str | None:
    if token_id in sampling.stop_token_ids or (token_id in eos and not sampling.ignore_eos):
        return "stop"
    return "length" if sequence.generated >= sampling.max_tokens else None
