"""The shared library's functions and structs, as src/api.h declares them."""

import ctypes
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int32, c_int64, c_void_p
from pathlib import Path

from openlora.kernels.errors import KernelsUnavailable

DENSE, INT8, CODES8, CODES4 = range(4)  # formats of Values


class Shape(ctypes.Structure):
    _fields_ = (
        *(
            (name, c_int32)
            for name in (
                "vocab_size",
                "hidden_size",
                "intermediate_size",
                "layers",
                "heads",
                "kv_heads",
                "head_size",
                "max_positions",
                "pages",
                "threads",
            )
        ),
        ("rms_norm_eps", c_float),
        ("attention_scale", c_float),
        ("embedding_scale", c_float),
        ("attention_soft_cap", c_float),
        ("logit_soft_cap", c_float),
        ("gelu", c_bool),
    )


class Values(ctypes.Structure):
    _fields_ = (
        ("format", c_int32),
        ("group", c_int32),
        ("half", c_int32),
        ("numbers", c_void_p),
        ("scales", c_void_p),
        ("minima", c_void_p),
    )


class LayerWeights(ctypes.Structure):
    _fields_ = (
        *(
            (name, c_void_p)
            for name in ("attention_norm", "mlp_norm", "q_norm", "k_norm", "post_attention_norm", "post_mlp_norm")
        ),
        *((name, Values) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((f"{name}_bias", c_void_p) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        ("window", c_int32),
    )


class Weights(ctypes.Structure):
    _fields_ = (
        ("embedding", c_void_p),
        ("layers", POINTER(LayerWeights)),
        ("norm", c_void_p),
        ("head", Values),
        ("rope", c_void_p),
    )


class Factor(ctypes.Structure):
    _fields_ = (
        ("layer", c_int32),
        ("part", c_int32),
        ("rank", c_int32),
        ("scale", c_float),
        ("a", c_void_p),
        ("b", c_void_p),
    )


class Alteration(ctypes.Structure):
    _fields_ = (
        ("kind", c_int32),
        ("layer", c_int32),
        ("part", c_int32),
        ("rank", c_int32),
        ("scale", c_float),
        ("values", c_void_p),
        ("a", c_void_p),
        ("b", c_void_p),
    )


class Step(ctypes.Structure):
    _fields_ = (
        ("rows", c_int32),
        ("sequences", c_int32),
        ("outputs", c_int32),
        *(
            (name, c_void_p)
            for name in (
                "tokens",
                "row_starts",
                "context_lens",
                "page_starts",
                "pages",
                "output_rows",
                "entry_starts",
                "entry_slots",
                "entry_weights",
                "temperature",
                "top_p",
                "top_k",
                "seed",
                "position",
                "logits",
                "chosen",
            )
        ),
    )


def load_library(path: Path) -> ctypes.CDLL:
    """Raises KernelsUnavailable for a file that cannot be loaded, on a file system mounted noexec say."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelsUnavailable(f"the built kernels cannot be loaded: {error}") from error
    signatures = {
        "decoder_create": (c_void_p, [POINTER(Shape), POINTER(Weights), c_char_p, c_char_p]),
        "decoder_destroy": (None, [c_void_p]),
        "decoder_instructions": (c_char_p, [c_void_p]),
        "decoder_load_adapter": (c_bool, [c_void_p, c_int32, POINTER(Factor), c_int32]),
        "decoder_alter": (c_bool, [c_void_p, c_int32, POINTER(Alteration), c_int32]),
        "decoder_unload_adapter": (None, [c_void_p, c_int32]),
        "decoder_step": (c_bool, [c_void_p, POINTER(Step)]),
        "repack": (c_int64, [c_char_p, c_void_p, c_int32, c_void_p]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, f"openlora_{name}")
        function.restype, function.argtypes = result, arguments
    return library
