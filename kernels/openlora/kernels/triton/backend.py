"""The Triton kernels as a backend. Plain products, and what is rare in a step, stay torch's: its kernels do well."""

from dataclasses import replace

from openlora.kernels.ops import BACKENDS
from openlora.kernels.triton import attention, elementwise, linear, lora, lora_table, sampling

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
    lora_table=lora_table.FactorTable,
    sample=sampling.sample,
    linear=linear.linear,
    linear_int8=linear.linear_int8,
    linear_coded=linear.linear_coded,
    linear_int4=linear.linear_int4,
)
