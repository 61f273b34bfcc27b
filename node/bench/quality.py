"""What fewer bits cost: each form of the weights beside float32, over a fixed text.

    python node/bench/quality.py MODEL [--weights full int8 int4] [--text FILE] [--cache DIR]

Prints one JSON line for each form: the mean Kullback-Leibler divergence of its next-token distributions from those of
the checkpoint in float32, the share of positions where both find the same token most probable, and the perplexity of
the text; the first line is float32's own. The text is cut into paragraphs, which are scored apart.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from openlora.node.engine.engine import Engine, ScoreRequest
from openlora.node.engine.loader import FORMS
from openlora.node.engine.text import TextModel

TEXT = Path(__file__).parent / "quality.txt"


def scores(engine: Engine, paragraphs: Sequence[tuple[int, ...]]) -> list[Tensor]:
    return engine.score([ScoreRequest(tokens) for tokens in paragraphs])


def divergence(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    p, q = torch.cat(list(exact)), torch.cat(list(found))
    return float((p.exp() * (p - q)).sum(dim=-1).mean())


def agreement(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    same = torch.cat([a.argmax(dim=-1) == b.argmax(dim=-1) for a, b in zip(found, exact, strict=True)])
    return float(same.float().mean())


def perplexity(found: Sequence[Tensor], paragraphs: Sequence[tuple[int, ...]]) -> float:
    """Of every token but each paragraph's first."""
    chosen = [
        logprobs[:-1].gather(1, torch.tensor(tokens[1:]).unsqueeze(1))
        for logprobs, tokens in zip(found, paragraphs, strict=True)
    ]
    return float((-torch.cat(chosen).mean()).exp())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--weights", nargs="+", default=["full", "int8", "int4"], choices=FORMS)
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--cache", type=Path, default=Path("var/cache"))
    arguments = parser.parse_args()
    text = TextModel.load(arguments.model)
    paragraphs = [tuple(text.encode(paragraph)) for paragraph in arguments.text.read_text().split("\n\n")]
    exact = scores(Engine.load(arguments.model, dtype="float32", weights="full"), paragraphs)

    def report(found: Sequence[Tensor], **what: str) -> None:
        result = what | {
            "divergence": round(divergence(found, exact), 5),
            "agreement": round(agreement(found, exact), 4),
            "perplexity": round(perplexity(found, paragraphs), 3),
            "tokens": sum(map(len, paragraphs)),
        }
        print(json.dumps(result), flush=True)

    report(exact, dtype="float32", weights="full", kernels="reference")
    for form in arguments.weights:
        engine = Engine.load(arguments.model, dtype="bfloat16", weights=form, cache_dir=arguments.cache)
        report(scores(engine, paragraphs), dtype=engine.info.dtype, weights=form, kernels=engine.info.backend)


if __name__ == "__main__":
    main()
