"""From logits to the tokens that leave the engine."""

from collections import abc

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


def to_events(
    sequences: abc.Sequence[Sequence],
    chosen: abc.Sequence[int],
    logits: Tensor | None,
    eos_token_ids: frozenset[int],
) -> list[Token]:
    """Append each sequence's chosen token to it, and tell of it. `logits` [N, vocabulary] are needed where
    log-probabilities are to be reported."""
    params = [_sampling(sequence) for sequence in sequences]
    logprobs = _logprobs(logits, chosen, params) if logits is not None else {}
    tokens = []
    for row, (sequence, sampling, token_id) in enumerate(zip(sequences, params, chosen, strict=True)):
        sequence.tokens.append(token_id)
        logprob, top = logprobs.get(row, (None, ()))
        tokens.append(
            Token(
                request_id=sequence.request_id,
                token_id=token_id,
                logprob=logprob,
                top=top,
                finish_reason=_finish_reason(sequence, sampling, token_id, eos_token_ids),
            )
        )
    return tokens


def _sampling(sequence: Sequence) -> Sampling:
    assert sequence.sampling is not None, "nothing is sampled for this sequence"
    return sequence.sampling


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


def _logprobs(
    logits: Tensor, chosen: abc.Sequence[int], params: abc.Sequence[Sampling]
) -> dict[int, tuple[float, tuple[tuple[int, float], ...]]]:
    """For each row that asks: the chosen token's log-probability, and the most probable tokens with theirs."""
    rows = [row for row, p in enumerate(params) if p.logprobs is not None]
    if not rows:
        return {}
    all_logprobs = logits[rows].log_softmax(dim=-1)
    most = max(params[row].logprobs or 0 for row in rows)
    values, ids = (x.tolist() for x in all_logprobs.topk(most, dim=-1))
    return {
        row: (
            float(all_logprobs[i, chosen[row]]),
            tuple(zip(ids[i], values[i], strict=True))[: params[row].logprobs],
        )
        for i, row in enumerate(rows)
    }


def _finish_reason(sequence: Sequence, sampling: Sampling, token_id: int, eos: frozenset[int]) -> str | None:
    if token_id in sampling.stop_token_ids or (token_id in eos and not sampling.ignore_eos):
        return "stop"
    return "length" if sequence.generated >= sampling.max_tokens else None
