"""OpenLoRA, through its engine's public calls."""

from importlib.metadata import version
from pathlib import Path

import workload

from openlora.node.engine.engine import Engine
from openlora.node.engine.limits import EngineLimits
from openlora.node.engine.messages import AdapterLoaded, AdapterUse, LoadAdapter, Sampling, Submit


def main() -> None:
    work = workload.Workload.from_arguments(__doc__)
    limits = EngineLimits(prefix_cache=False, speculation=work.speculation)
    engine = Engine.load(work.model, dtype="bfloat16", limits=limits, cache_dir=Path("var/cache"))
    for number in range(work.adapters):
        (loaded,) = engine.handle(LoadAdapter(key=f"a{number}", path=str(work.adapter_path(number))))
        assert isinstance(loaded, AdapterLoaded), loaded

    def once(output: int) -> None:
        for request, prompt in enumerate(work.prompts()):
            adapter = work.adapter_of(request)
            recipe = () if adapter is None else (AdapterUse(f"a{adapter}"),)
            sampling = Sampling(max_tokens=output, temperature=0.0, ignore_eos=True)
            refused = engine.handle(Submit(str(request), tuple(prompt), sampling, recipe))
            assert not refused, refused
        generated = 0
        while engine.has_work:
            step = engine.step()
            generated += len(step.tokens) if step else 0
        assert generated == work.requests * output, generated

    settings = f"bfloat16, {engine.info.backend}, prefix cache off"
    name = "OpenLoRA with speculation" if work.speculation else "OpenLoRA"
    workload.measure(work, name, version("openlora"), settings, once)


if __name__ == "__main__":
    main()
