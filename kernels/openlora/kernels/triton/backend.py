"""The Triton kernels as a backend. What is one product or rare a step stays torch's: its own kernels serve it well."""

from dataclasses import replace

from openlora.kernels.ops import BACKENDS
from openlora.kernels.triton import attention, elementwise, lora

TRITON = replace(
    BACKENDS["reference"],
    name="triton",
    rms_norm=elementwise.rms_norm,
    silu_mul=elementwise.silu_mul,
    gelu_tanh_mul=elementwise.gelu_tanh_mul,
    rope_=elementwise.rope_,
    kv_append_=elementwise.kv_append_,
    plan_attention=attention.plan_attention,
    paged_attention=attention.paged_attention,
    plan_lora=lora.plan_lora,
    lora_=lora.lora_,
    lora_embedding_=lora.lora_embedding_,
    lora_vector_=lora.lora_vector_,
)
