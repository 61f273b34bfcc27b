"""What the CUDA kernels need of a device: registers, spilled bytes, shared memory; as JSON, and without a device.

    python kernels/bench/resources.py > kernels/bench/resources.json

Each kernel is compiled ahead of time as the ops launch it for a model of 4096 features, 32 query and 8 key-value heads
of 128 (and once as for heads of 64), in bfloat16 where no other dtype is named.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # read when triton is imported: what is interpreted cannot be compiled

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from openlora.kernels.triton import attention, elementwise, linear, lora, sampling

ARCHITECTURES = (80, 86, 89, 90)  # A100; RTX 30, A10; RTX 40, L4, L40; H100
WARP = 32
TOOL = "backends/nvidia/bin/cuobjdump"


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel as it is launched: arguments that are neither named nor constants are i32."""

    name: str
    kernel: Any
    pointers: Mapping[str, str]
    constants: Mapping[str, Any]
    floats: tuple[str, ...] = ()
    odd: tuple[str, ...] = ()  # integers that 16 does not divide
    warps: int = 4

    def source(self) -> ASTSource:
        signature, aligned = {}, {}
        for place, name in enumerate(self.kernel.arg_names):
            if name in self.constants:
                signature[name] = "constexpr"
                continue
            kind = "*" + self.pointers[name] if name in self.pointers else "fp32" if name in self.floats else "i32"
            signature[name] = kind
            if kind != "fp32" and name not in self.odd:
                aligned[place,] = [["tt.divisibility", 16]]
        return ASTSource(self.kernel, signature, dict(self.constants), aligned)


def cases() -> Iterator[Case]:
    yield from elementwise_cases()
    yield from attention_cases()
    yield from lora_cases()
    yield from linear_cases()
    yield sampling_case()


def elementwise_cases() -> Iterator[Case]:
    halves = {"x": "bf16", "weight": "bf16", "y": "bf16"}
    yield Case("rms_norm", elementwise.rms_norm_kernel, halves, {"BLOCK": 4096}, ("eps",), ("heads",))
    for name, gelu in (("silu_mul", False), ("gelu_tanh_mul", True)):
        constants = {"GELU": gelu, "BLOCK": 1024}
        yield Case(name, elementwise.gated_kernel, {"gate_up": "bf16", "y": "bf16"}, constants)
    rope = {"q": "bf16", "k": "bf16", "positions": "i32", "table": "fp32"}
    constants = {"Q_BLOCK": 32, "K_BLOCK": 8, "BLOCK_HALF": 64}
    yield Case("rope", elementwise.rope_kernel, rope, constants, odd=("q_heads", "k_heads"))
    cache = {"k": "bf16", "v": "bf16", "k_cache": "bf16", "v_cache": "bf16", "slots": "i32"}
    constants = {"BLOCK_HEADS": 8, "BLOCK": 128}
    yield Case("kv_append", elementwise.kv_append_kernel, cache, constants, odd=("heads",))


def attention_cases() -> Iterator[Case]:
    for head_size in (64, 128, 256):
        yield attention_case(f"attention_decode_{head_size}", head_size, decode=True)
        yield attention_case(f"attention_prompt_{head_size}", head_size)
        yield attention_case(f"attention_prompt_{head_size}_window_soft_cap", head_size, special=True)
        yield attention_case(f"attention_{head_size}_fp32", head_size, dtype="fp32")


def attention_case(
    name: str, head_size: int, *, decode: bool = False, special: bool = False, dtype: str = "bf16"
) -> Case:
    tensors = dict.fromkeys(("q", "k_cache", "v_cache", "out"), dtype)
    indices = dict.fromkeys(("sequences", "row_starts", "context_lens", "page_table"), "i32")
    cut = attention.geometry(head_size, 4 if dtype == "fp32" else 2, decode=decode)
    constants = {
        "PAGE": 16, "CAPPED": special, "WINDOWED": special, "HEADS": 4, "QUERIES": cut.queries,
        "POSITIONS": cut.positions, "HEAD_BLOCK": cut.head_block,
    }  # fmt: skip
    odd = ("page_columns", "kv_heads", "window")
    return Case(name, attention.attention_kernel, tensors | indices, constants, ("scale", "cap"), odd, cut.warps)


def lora_cases() -> Iterator[Case]:
    plan = {"table": "i64", "tiles": "i32", "rows": "i32"}
    for label, dtype, factor in (("bf16", "bf16", tl.bfloat16), ("fp32", "fp32", tl.float32)):
        pointers = plan | {"x": dtype, "sums": "fp32"}
        tile = {"FACTOR": factor, "TILE": lora.TILE, "BLOCK_RANK": lora.BLOCK_RANK}
        constants = tile | {"SPAN": lora.SPAN, "BLOCK_IN": lora.BLOCK_IN}
        yield Case(f"lora_shrink_{label}", lora.shrink_kernel, pointers, constants, odd=("span_stride", "first_entry"))
        pointers = plan | {"y": dtype, "bias": dtype, "effects": "fp32", "sums": "fp32"}
        pointers |= {"entries": "i32", "weights": "fp32"}
        for case, alone in (("alone", True), ("ensemble_odd_rank", False)):
            flags = {"BIASED": not alone, "ALONE": alone, "RANKS_OF_8": alone, "BLOCK_OUT": lora.BLOCK_OUT}
            name = f"lora_expand_{case}_{label}"
            yield Case(name, lora.expand_kernel, pointers, tile | flags, odd=("spans", "span_stride"))
    pointers = plan | {"tokens": "i32", "sums": "fp32"}
    constants = {"FACTOR": tl.bfloat16, "TILE": lora.TILE, "BLOCK_RANK": lora.BLOCK_RANK}
    yield Case("lora_lookup", lora.lookup_kernel, pointers, constants)
    pointers = {"y": "bf16", "effects": "fp32", "indptr": "i32"}
    yield Case("lora_combine", lora.combine_kernel, pointers, {"BLOCK": 1024})


def sampling_case() -> Case:
    pointers = {"logits": "fp32", "temperature": "fp64", "least": "fp32", "perturbed": "fp64"}
    pointers |= dict.fromkeys(("last", "seed", "position"), "i64")
    return Case("sample_perturb", sampling.perturb_kernel, pointers, {"BLOCK": sampling.BLOCK})


def linear_cases() -> Iterator[Case]:
    tensors = {"x": "bf16", "bias": "bf16", "y": "bf16"}
    coded = {"scales": "fp16", "minima": "fp16"}
    kinds: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
        "int8": ({"codes": "i8", "scales": "fp32", "minima": "bf16"}, {"BITS": 8, "GROUP": 0, "MINIMA": False}),
        "int4": ({"codes": "u8"} | coded, {"BITS": 4, "GROUP": 32, "MINIMA": False}),
        "int4_minima": ({"codes": "u8"} | coded, {"BITS": 4, "GROUP": 32, "MINIMA": True}),
        "coded8": ({"codes": "i8"} | coded, {"BITS": 8, "GROUP": 16, "MINIMA": True}),
        "head": ({"codes": "bf16", "scales": "bf16", "minima": "bf16", "y": "fp32"}, {"BITS": 16, "GROUP": 0}),
    }
    for kind, (pointers, constants) in kinds.items():
        for step, rows in (("decode", 16), ("prompt", linear.block_rows(512, 2))):
            cut = {"MINIMA": False, "BIASED": False, "BLOCK_ROWS": rows, "BLOCK_OUT": linear.BLOCK_OUT} | constants
            odd = ("rows", "groups") if kind == "int8" else ("rows",)
            yield Case(f"linear_{kind}_{step}", linear.linear_kernel, tensors | pointers, cut, odd=odd)

    pointers = {"codes": "u8"} | coded | dict.fromkeys(tensors, "fp32")
    cut = {"BITS": 4, "GROUP": 32, "MINIMA": True, "BIASED": False, "BLOCK_OUT": linear.BLOCK_OUT}
    cut |= {"BLOCK_ROWS": linear.block_rows(512, 4)}
    yield Case("linear_int4_minima_prompt_fp32", linear.linear_kernel, pointers, cut, odd=("rows",))


def resources(case: Case, architecture: int) -> dict[str, int]:
    """Of one thread (registers, spilled bytes) and of one block (threads, shared bytes); and how many instructions read
    a single number of 8 or 16 bits, not a vector."""
    compiled = triton.compile(
        case.source(), target=GPUTarget("cuda", architecture, WARP), options={"num_warps": case.warps}
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
        binary.write(compiled.asm["cubin"])
        binary.flush()
        command = [Path(triton.__file__).parent / TOOL, "--dump-resource-usage", binary.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603  # triton's own tool
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage.stdout)
    if found is None:
        raise ValueError(f"{case.name}: cuobjdump names no registers: {usage.stdout!r}")
    registers, stack, local = map(int, found.groups())
    return {
        "registers": registers,
        "spilled_bytes": stack + local,
        "threads": compiled.metadata.num_warps * WARP,
        "shared_bytes": compiled.metadata.shared,
        "narrow_reads": len(re.findall(r"ld\.global\S*\.[bu](?:8|16)\b", compiled.asm["ptx"])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--architecture", type=int, action="append", choices=ARCHITECTURES)
    chosen = parser.parse_args().architecture or ARCHITECTURES
    with tempfile.TemporaryDirectory() as cache:
        triton.knobs.cache.dir = cache
        table = {case.name: {f"sm_{each}": resources(case, each) for each in chosen} for case in cases()}
    print(json.dumps({"triton": triton.__version__, "kernels": table}, indent=2))


if __name__ == "__main__":
    main()
