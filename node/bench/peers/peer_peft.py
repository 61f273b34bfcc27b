"""transformers.generate, with PEFT's mixed-adapter batch: adapter_names=[...], one a request."""

from importlib.metadata import version

import torch
import workload
from peft import PeftModel
from transformers import AutoModelForCausalLM


def main() -> None:
    work = workload.Workload.from_arguments(__doc__)
    torch.set_num_threads(workload.THREADS)
    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(work.model, dtype=torch.bfloat16).eval()
    names = {}
    if work.adapters:
        model = PeftModel.from_pretrained(model, work.adapter_path(0), adapter_name="a0")
        for number in range(1, work.adapters):
            model.load_adapter(work.adapter_path(number), adapter_name=f"a{number}")
        model.eval()
        names["adapter_names"] = [f"a{work.adapter_of(request)}" for request in range(work.requests)]
    prompts = torch.tensor(work.prompts())
    mask = torch.ones_like(prompts)

    def once(output: int) -> None:
        lengths = {"max_new_tokens": output, "min_new_tokens": output}
        model.generate(input_ids=prompts, attention_mask=mask, do_sample=False, **lengths, **names)

    versions = f"{version('transformers')} + {version('peft')}"
    workload.measure(work, "transformers + PEFT", versions, "bfloat16, 2 threads, one batch of 32", once)


if __name__ == "__main__":
    main()
