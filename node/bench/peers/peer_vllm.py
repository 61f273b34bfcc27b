"""vLLM's CPU build."""

import os
from importlib.metadata import version

import workload

# Read when vllm is imported.
os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": f"0-{workload.THREADS - 1}",  # by default it leaves a core free
}


def main() -> None:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    work = workload.Workload.from_arguments(__doc__)
    lora = {"enable_lora": True, "max_loras": work.adapters, "max_lora_rank": 32, "max_cpu_loras": 64}
    engine = LLM(
        str(work.model),
        dtype="bfloat16",
        skip_tokenizer_init=True,
        max_model_len=2_048,
        max_num_seqs=64,
        enable_prefix_caching=False,
        **(lora if work.adapters else {}),
    )
    prompts = [{"prompt_token_ids": prompt} for prompt in work.prompts()]
    adapters = None
    if work.adapters:
        numbers = [request % work.adapters for request in range(work.requests)]
        adapters = [LoRARequest(f"a{number}", 1 + number, str(work.adapter_path(number))) for number in numbers]

    def once(output: int) -> None:
        sampling = SamplingParams(max_tokens=output, temperature=0, ignore_eos=True, detokenize=False)
        answers = engine.generate(prompts, sampling, lora_request=adapters, use_tqdm=False)
        assert all(len(answer.outputs[0].token_ids) == output for answer in answers)

    settings = "bfloat16, compiled, 2 threads, prefix cache off"
    workload.measure(work, "vLLM CPU", version("vllm-cpu"), settings, once)


if __name__ == "__main__":
    main()
