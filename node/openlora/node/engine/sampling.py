"""From logits to the tokens that leave the engine."""

from collections import abc

import torch
from torch import Tensor

from openlora.kernels.ops import Ops
from openlora.node.engine.messages import Sampling, Token
from openlora.node.engine.sequence import Sequence


def sample_tokens(
    ops: Ops, logits: Tensor, sequences: abc.Sequence[Sequence], eos_token_ids: frozenset[int]
) -> list[Token]:
    """The next token of each sequence, appended to it; `logits` [N, vocabulary] float32, finite, one row each."""
    params = [_sampling(sequence) for sequence in sequences]
    if all(p.temperature == 0 for p in params):
        chosen = logits.argmax(dim=-1).tolist()
    else:
        chosen = _sample(ops, logits, sequences, params).tolist()
    logprobs = _logprobs(logits, chosen, params)
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


def _sample(ops: Ops, logits: Tensor, sequences: abc.Sequence[Sequence], params: abc.Sequence[Sampling]) -> Tensor:
    device = logits.device
    seeds = [p.seed - (p.seed >> 63 << 64) for p in params]  # the same 64 bits, as a signed number
    return ops.sample(
        logits,
        torch.tensor([p.temperature for p in params], dtype=torch.float64, device=device),
        torch.tensor([p.top_k for p in params], device=device),
        torch.tensor([p.top_p for p in params], dtype=torch.float64, device=device),
        torch.tensor(seeds, device=device),
        torch.tensor([len(sequence.tokens) for sequence in sequences], device=device),
    )


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
