"""OpenVINO GenAI's continuous batching. A call has one set of adapters, so each adapter's requests are a call."""

from importlib.metadata import version

import openvino_genai as genai
import workload
from openvino import Tensor


def load(work: workload.Workload, adapters: list[genai.Adapter]) -> genai.ContinuousBatchingPipeline:
    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = 2  # GB
    scheduler.max_num_seqs = 64
    scheduler.enable_prefix_caching = False
    properties = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": workload.THREADS}
    if adapters:
        properties["adapters"] = genai.AdapterConfig(adapters)
    return genai.ContinuousBatchingPipeline(work.data / "openvino", scheduler, "CPU", properties)


def main() -> None:
    work = workload.Workload.from_arguments(__doc__)
    files = [work.adapter_path(number) / "adapter_model.safetensors" for number in range(work.adapters)]
    adapters = [genai.Adapter(file) for file in files]
    engine = load(work, adapters)
    prompts = [Tensor([prompt]) for prompt in work.prompts()]
    calls: dict[int | None, list[Tensor]] = {}
    for request, prompt in enumerate(prompts):
        calls.setdefault(work.adapter_of(request), []).append(prompt)

    def once(output: int) -> None:
        for adapter, mine in calls.items():
            config = genai.GenerationConfig(max_new_tokens=output, ignore_eos=True, do_sample=False)
            if adapter is not None:
                config.adapters = genai.AdapterConfig(adapters[adapter])
            answers = engine.generate(mine, [config] * len(mine))
            assert all(len(answer.m_generation_ids[0]) == output for answer in answers)

    settings = "bfloat16, 2 threads, prefix cache off, one call an adapter"
    workload.measure(work, "OpenVINO GenAI", version("openvino-genai"), settings, once)


if __name__ == "__main__":
    main()
