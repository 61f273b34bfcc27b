"""Drawing the next tokens of all rows at once. Contract: see `reference`.

One kernel adds each survivor's noise to its logit in float64, as the reference does; torch sorts where top-k or top-p
want it, and takes the largest.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def perturb_kernel(
    logits, temperature, least, last, seed, position, perturbed, vocabulary, BLOCK: tl.constexpr
):  # fmt: skip
    """ℓ_v + T·g_v of each survivor: its logit is above `least`, or is equal and its id is not above `last`; else −∞."""
    row = tl.program_id(0).to(tl.int64)
    v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = v < vocabulary
    score = tl.load(logits + row * vocabulary + v, mask=inside, other=0)
    edge = tl.load(least + row)
    survives = (score > edge) | ((score == edge) & (v <= tl.load(last + row)))
    counter = tl.load(position + row).to(tl.uint32) + tl.zeros((BLOCK,), tl.uint32)
    zero = tl.zeros((BLOCK,), tl.uint32)
    word, _, _, _ = tl.philox(tl.load(seed + row).to(tl.uint64, bitcast=True), counter, v.to(tl.uint32), zero, zero)
    uniform = (word.to(tl.float64) + 0.5) * 2.3283064365386963e-10  # 2⁻³²
    found = score.to(tl.float64) - tl.load(temperature + row) * tl.log(-tl.log(uniform))
    tl.store(perturbed + row * vocabulary + v, tl.where(survives, found, -float("inf")), mask=inside)


def sample(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, seed: Tensor, position: Tensor) -> Tensor:
    rows, vocabulary = logits.shape
    logits = logits.contiguous()
    least, last = _edges(logits, temperature, top_k, top_p)
    perturbed = torch.empty(rows, vocabulary, dtype=torch.float64, device=logits.device)
    if rows:
        grid = (rows, triton.cdiv(vocabulary, BLOCK))
        perturb_kernel[grid](logits, temperature, least, last, seed, position, perturbed, vocabulary, BLOCK=BLOCK)
    return torch.where(temperature == 0, logits.argmax(dim=-1), perturbed.argmax(dim=-1))


def _edges(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """The logit [N] and id [N] int64 of each row's last survivor, in descending order of logits and ascending ids."""
    vocabulary = logits.shape[1]
    least = torch.full_like(logits[:, 0], -torch.inf)
    last = torch.full_like(top_k, vocabulary)
    limit = torch.where((top_k > 0) & (top_k < vocabulary), top_k, vocabulary)
    (cut,) = ((temperature > 0) & ((limit < vocabulary) | (top_p < 1))).nonzero(as_tuple=True)
    if len(cut) == 0:
        return least, last
    ordered, by_rank = logits[cut].sort(dim=1, descending=True, stable=True)
    limit, wanted = limit[cut].unsqueeze(1), top_p[cut].unsqueeze(1)
    rank = torch.arange(vocabulary, device=logits.device)
    scores = (ordered.double() / temperature[cut].unsqueeze(1)).masked_fill(rank >= limit, -torch.inf)
    before = (scores.softmax(dim=1).cumsum(dim=1) < wanted).sum(dim=1, keepdim=True)
    count = torch.where(wanted < 1, torch.minimum(before + 1, limit), limit)
    least[cut] = ordered.gather(1, count - 1).squeeze(1)
    last[cut] = by_rank.gather(1, count - 1).squeeze(1)
    return least, last
