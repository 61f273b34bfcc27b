"""`openlora bench`: how fast the engine is on this machine."""

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from openlora.node.cli.engine_choice import Devices, EngineChoice, VllmPython, chosen_engine
from openlora.node.cli.output import JsonFlag, Output
from openlora.node.config import Backend, ModelConfig


def bench(
    model: Annotated[Path, typer.Option(help="The base model: a Hugging Face directory or a GGUF file.")],
    weights: Annotated[str, typer.Option(help="auto, full, int8 or int4, as for `serve`.")] = "auto",
    requests: Annotated[
        list[int] | None, typer.Option(min=1, max=512, help="Requests at once; repeatable. 1, 8 and 32 by default.")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 64,
    output_tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 64,
    engine: EngineChoice = Backend.OPENLORA,
    vllm_python: VllmPython = "",
    device: Devices = None,
    json: JsonFlag = False,
) -> None:
    """Measure the engine here: random prompts, greedy, base model. A node that runs beside it is measured too."""
    from openlora.node.engine.backends import engine_options
    from openlora.node.engine.supervisor import supervised_engines
    from openlora.node.throughput import measure

    output = Output(json)
    options = engine_options(ModelConfig(path=model, weights=weights), chosen_engine(engine, vllm_python, device))

    async def run() -> None:
        with tempfile.TemporaryDirectory(prefix="openlora-bench-") as folder:
            async with supervised_engines(options, Path(folder)) as running:
                await measure(running, 1, prompt_tokens, 8)  # the first run touches what later ones find
                figures = [await measure(running, one, prompt_tokens, output_tokens) for one in requests or (1, 8, 32)]
                info = running.info
        output.say(f"{info.family}, {info.numbers}, {info.backend}; {prompt_tokens} prompt and {output_tokens} tokens")
        rows = [
            (one.requests, f"{one.tokens_per_s:,.0f}", f"{one.first_token_s * 1e3:,.0f}", f"{one.token_s * 1e3:,.1f}")
            for one in figures
        ]
        output.table(("at once #", "tokens/s", "first token, ms", "each token, ms"), rows)
        output.result({"backend": info.backend, "numbers": info.numbers, "figures": figures})

    asyncio.run(run())
