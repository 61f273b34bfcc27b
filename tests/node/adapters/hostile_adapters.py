"""Hostile adapters: each a good one, spoilt in one way."""

import json
import math
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from openlora.node.adapters.config import CONFIG_FILE
from openlora.node.adapters.folder import WEIGHTS_FILE
from tests.node.adapters.adapter_files import (
    DOWN,
    EMBEDDING,
    HEAD,
    NORM,
    TRAINED_ROWS,
    Arrays,
    Q,
    arrays,
    biases,
    config,
    container,
    data,
    embedding_arrays,
    header,
    key_of,
    keys,
    magnitudes,
    weights,
)
from tests.node.adapters.hostile_configs import CONFIGS, Hostile, void

# ---- weights --------------------------------------------------------------------------------------------------------

A, B = keys(Q)
ONE = np.ones((1, 1), "<f4")


def with_weights(name: str, reason: str, content: bytes) -> Hostile:
    return Hostile(name, reason, lambda folder: void((folder / WEIGHTS_FILE).write_bytes(content)))


def with_header(name: str, reason: str, change: Callable[[dict[str, Any]], None]) -> Hostile:
    """The honest data under a header that `change` spoils."""
    fields = header(arrays())
    change(fields)
    return with_weights(name, reason, container(fields, data(arrays())))


def with_entry(name: str, reason: str, **changes: Any) -> Hostile:
    """One tensor's entry, of A for Q with shape [4, 8] and offsets [0, 128], changed."""
    return with_header(name, reason, lambda fields: fields[keys(Q)[0]].update(changes))


def with_numbers(name: str, dtype: str, poison: float | int, reason: str = "NaN or Inf") -> Hostile:
    tensors = arrays(dtype=dtype) if dtype != "<u2" else {key: np.zeros(v.shape, dtype) for key, v in arrays().items()}
    tensors[keys(DOWN)[1]][-1, -1] = poison
    return with_weights(name, reason, weights(tensors))


def renamed(name: str) -> bytes:
    """The honest tensors, with A of Q under another name."""
    return weights({name if key == A else key: value for key, value in arrays().items()})


def reshaped(module: str, a: tuple[int, int], b: tuple[int, int]) -> bytes:
    made = {keys(module)[0]: np.ones(a, "<f4"), keys(module)[1]: np.ones(b, "<f4")}
    return weights({**arrays(), **made})


def many_tensors(count: int) -> bytes:
    fields = {f"t{n}": {"dtype": "F16", "shape": [1, 1], "data_offsets": [2 * n, 2 * n + 2]} for n in range(count)}
    return container(fields, bytes(2 * count))


def misaligned() -> bytes:
    """Sound, but for data that begins two bytes beside a float's boundary."""
    encoded = json.dumps(HONEST).encode()
    encoded += b" " * ((2 - len(encoded)) % 4)
    return len(encoded).to_bytes(8, "little") + encoded + DATA


HONEST = header(arrays())
DATA = data(arrays())
LAST = list(HONEST)[-1]
END = HONEST[LAST]["data_offsets"][1]

WEIGHTS = [
    with_weights("empty", "where 1 to", b""),
    with_weights("seven bytes", "too short", bytes(7)),
    with_weights("header of 2^64-1 bytes", "header is larger", b"\xff" * 8 + DATA),
    with_weights("header of 1 MiB and a byte", "header is larger", container(HONEST, DATA, header_bytes=(1 << 20) + 1)),
    with_weights("header beyond the end", "inside its header", container(HONEST, b"", header_bytes=60_000)),
    with_weights("header of no bytes", "JSON", container(b"", DATA)),
    with_weights("header that is an array", "one JSON object", container(b"[]", DATA)),
    with_weights("header nested deeply", "nested too deeply", container(b"[" * (1 << 20), b"")),
    with_weights("header nested in a tensor", "nested too deeply", container(b'{"t":' * 200_000, b"")),
    with_weights("header not UTF-8", "UTF-8", container(b'{"\xff": 0}', DATA)),
    with_weights("header with a duplicate tensor", "occurs twice", container(b'{"t": 0, "t": 0}', DATA)),
    with_weights("header of 350,000 lists", "must have exactly", container(b'{"t":[' + b"[]," * 349_000 + b"0]}", b"")),
    with_weights("4,097 tensors", "more than 4096", many_tensors(4097)),
    with_weights("tensors of nothing we know", "no tensor's name begins with", many_tensors(100)),
    with_weights(
        "no prefix before any name",
        "no tensor's name begins with 'base_model.model.'",
        weights({name.removeprefix("base_model.model."): value for name, value in arrays().items()}),
    ),
    with_weights("pickled weights", "header is larger|inside its header", pickle.dumps(list(range(1000)), protocol=4)),
    with_weights("a zip archive", "header is larger|inside its header", b"PK\x03\x04" + bytes(range(256))),
    with_weights("a byte short", "ends 1 bytes before", container(HONEST, DATA[:-1])),
    with_weights("a byte more", "1 bytes follow", container(HONEST, DATA + b"\0")),
    with_weights("an archive behind the data", "bytes follow", container(HONEST, DATA + b"PK\x05\x06" + bytes(18))),
    with_weights("larger than any such adapter", "where 1 to", container(HONEST, DATA + bytes(2 << 20))),
    with_header("metadata of numbers", "__metadata__", lambda h: h.update(__metadata__={"a": 1})),
    with_header("metadata that is a list", "__metadata__", lambda h: h.update(__metadata__=["a"])),
    with_header("an entry that is a number", "must have exactly", lambda h: h.update({A: 1})),
    with_header("an entry without a shape", "must have exactly", lambda h: void(h[A].pop("shape"))),
    with_entry("an entry with more", "must have exactly", strides=[1, 8]),
    with_entry("dtype F64", "dtype 'F64'", dtype="F64"),
    with_entry("dtype I8", "dtype 'I8'", dtype="I8"),
    with_entry("dtype F8", "dtype 'F8_E4M3'", dtype="F8_E4M3"),
    with_entry("dtype lower case", "dtype 'f32'", dtype="f32"),
    with_entry("dtype a list", "dtype", dtype=["F32"]),
    with_entry("dtype null", "dtype", dtype=None),
    with_entry("zero rows", "two dimensions from 1", shape=[0, 8], data_offsets=[0, 0]),
    with_entry("zero columns", "two dimensions from 1", shape=[4, 0], data_offsets=[0, 0]),
    with_entry("negative rows", "two dimensions from 1", shape=[-4, -8]),
    with_entry("one dimension", r"has shape \(32,\), not \(4, 8\)", shape=[32]),
    with_entry("three dimensions", "two dimensions", shape=[4, 8, 1]),
    with_entry("no dimensions", "two dimensions", shape=[]),
    with_entry("rows as a float", "two dimensions", shape=[4.0, 8]),
    with_entry("rows as a boolean", "two dimensions", shape=[True, 32]),
    with_entry("rows as text", "two dimensions", shape=["4", 8]),
    with_entry("sizes that wrap to 32 elements", "two dimensions from 1", shape=[2**61 + 4, 8]),
    with_entry("sizes whose product wraps", "number of bytes", shape=[2**31 - 1, 2**31 - 1]),
    with_entry("fewer bytes than the shape", "number of bytes", data_offsets=[0, 64]),
    with_entry("more bytes than the shape", "number of bytes", data_offsets=[0, 256]),
    with_entry("offsets reversed", "data_offsets", data_offsets=[128, 0]),
    with_entry("offsets negative", "data_offsets", data_offsets=[-128, 0]),
    with_entry("offsets as floats", "data_offsets", data_offsets=[0.0, 128.0]),
    with_entry("three offsets", "data_offsets", data_offsets=[0, 128, 128]),
    with_entry("offsets of 2^70", "hole|overlaps", data_offsets=[2**70, 2**70 + 128]),
    with_entry("offsets behind the file", "hole|overlaps", data_offsets=[END, END + 128]),
    with_header("the same bytes twice", "overlaps", lambda h: h[B].update(data_offsets=[0, 192])),
    with_header("overlap by an element", "overlaps", lambda h: h[B].update(data_offsets=[124, 316])),
    with_header("a hole of an element", "hole", lambda h: h[LAST].update(data_offsets=[END - 188, END + 4])),
    with_header("bytes of no tensor", "hole|follow", lambda h: void(h.pop(B))),
    with_weights("misaligned", "not aligned", misaligned()),
    with_weights("A missing", "lora_A.weight' is missing", weights({k: v for k, v in arrays().items() if k != A})),
    with_weights("B missing", "lora_B.weight' is missing", weights({k: v for k, v in arrays().items() if k != B})),
    with_weights("a tensor of no target", "belongs to no layer", weights({**arrays(), "lm_head.weight": ONE})),
    with_weights("a base weight", "belongs to no layer", weights({**arrays(), f"base_model.model.{Q}.weight": ONE})),
    with_weights("a DoRA vector without use_dora", "belongs to no", weights(arrays() | magnitudes())),
    with_weights("an embedding's factors, not targeted", "belongs to no", weights(arrays() | embedding_arrays())),
    with_weights("a copy of a layer", "belongs to no", weights({**arrays(), key_of(Q, "base_layer.weight"): ONE})),
    with_weights(
        "a bias of B",
        "lora_B.bias' is no bias of a linear layer",
        weights({**arrays(), B.replace("weight", "bias"): ONE}),
    ),
    with_weights("a layer beyond the last", "is missing", renamed(A.replace("layers.0", "layers.99"))),
    with_weights("a name with a path", "is missing", renamed("../../" + A)),
    with_weights("a name without the prefix", "is missing", renamed(A.removeprefix("base_model.model."))),
    with_weights("a name with a trailing blank", "is missing", renamed(A + " ")),
    with_weights("an adapter's own name in the key", "is missing", renamed(A.replace(".weight", ".mine.weight"))),
    with_weights(
        "one tensor under two names",
        "is there twice, with other numbers",
        weights({**arrays(), A.replace("A.", "A.default."): np.zeros((4, 8), "<f4")}),
    ),
    with_weights("A too narrow", r"has shape \(4, 7\), not \(4, 8\)", reshaped(Q, (4, 7), (12, 4))),
    with_weights("A transposed", r"has shape \(8, 4\), not \(4, 8\)", reshaped(Q, (8, 4), (12, 4))),
    with_weights("B too tall", r"has shape \(13, 4\), not \(12, 4\)", reshaped(Q, (4, 8), (13, 4))),
    with_weights("A and B of different ranks", r"has shape \(12, 3\)", reshaped(Q, (4, 8), (12, 3))),
    with_weights("another rank than configured", r"has shape \(5, 8\)", weights(arrays(5))),
    with_weights("another model's shapes", r"has shape", reshaped(DOWN, (4, 4096), (4096, 4))),
    with_numbers("NaN in F32", "<f4", math.nan),
    with_numbers("Inf in F32", "<f4", math.inf),
    with_numbers("-Inf in F32", "<f4", -math.inf),
    with_numbers("NaN in F16", "<f2", math.nan),
    with_numbers("Inf in F16", "<f2", math.inf),
    with_numbers("NaN in BF16", "<u2", 0x7FC1),
    with_numbers("negative NaN in BF16", "<u2", 0xFFFF),
    with_numbers("Inf in BF16", "<u2", 0x7F80),
    with_numbers("-Inf in BF16", "<u2", 0xFF80),
    with_numbers("Inf once cast to BF16", "<f4", 3.4e38, "overflows bfloat16"),
    with_numbers("Inf once scaled", "<f4", 1e38, "overflows bfloat16"),
    with_numbers("Inf once scaled and weighted", "<f4", 1.7e37, "overflows bfloat16"),
    with_numbers("Inf in BF16 once scaled", "<u2", 0x7F7F, "overflows bfloat16"),
]


# ---- DoRA, the embedding, whole weights ------------------------------------------------------------------------------


def with_both(title: str, reason: str, changes: dict[str, Any], tensors: Arrays) -> Hostile:
    """A configuration that asks for more, and what comes with it."""

    def spoil(folder: Path) -> None:
        (folder / CONFIG_FILE).write_text(json.dumps(config(**changes)))
        (folder / WEIGHTS_FILE).write_bytes(weights(arrays() | tensors))

    return Hostile(title, reason, spoil)


def with_magnitude(title: str, reason: str, value: Any) -> Hostile:
    vectors = magnitudes() | {key_of(Q, "lora_magnitude_vector"): np.asarray(value, "<f4")}
    return with_both(f"a magnitude {title}", reason, {"use_dora": True}, vectors)


def with_bias(title: str, reason: str, value: Any) -> Hostile:
    vectors = biases() | {key_of(Q, "lora_B.bias"): np.asarray(value, "<f4")}
    return with_both(f"a bias of B {title}", reason, {"lora_bias": True}, vectors)


def with_embedding(title: str, reason: str, tensors: Arrays) -> Hostile:
    targets = {"target_modules": ["q_proj", "down_proj", "embed_tokens"]}
    return with_both(f"an embedding's {title}", reason, targets, embedding_arrays() | tensors)


def with_whole(title: str, reason: str, module: str, value: Any) -> Hostile:
    tensors = {key_of(DOWN if module == "down_proj" else module, "weight"): np.asarray(value, "<f4")}
    return with_both(f"a whole {module} {title}", reason, {"modules_to_save": [module]}, tensors)


def with_rows(title: str, reason: str, changes: dict[str, Any], tensors: Arrays) -> Hostile:
    """The rows of tokens 9 and 0, but for what is given."""
    rows = {ROWS: np.ones((2, 8), "<f4")}
    return with_both(f"trained rows {title}", reason, {TOKENS: [9, 0]} | changes, rows | tensors)


ROWS, TOKENS = key_of(EMBEDDING, TRAINED_ROWS), "trainable_token_indices"
EMBEDDING_A, EMBEDDING_B = embedding_arrays()
COPY = key_of(EMBEDDING, "base_layer.weight")
BEYOND = [
    with_magnitude("that is a matrix", r"has shape \(1, 12\), not \(12,\)", np.ones((1, 12))),
    with_magnitude("too short", r"has shape \(11,\), not \(12,\)", np.ones(11)),
    with_magnitude("too long", r"has shape \(13,\), not \(12,\)", np.ones(13)),
    with_magnitude("of NaN", "NaN or Inf", [*np.ones(11), math.nan]),
    with_magnitude("of Inf", "NaN or Inf", [*np.ones(11), -math.inf]),
    with_magnitude("that overflows once weighted", "overflows bfloat16", [*np.ones(11), 3.4e37]),
    with_both("a magnitude of no layer", "belongs to no", {"use_dora": True}, {**magnitudes(), "x": np.ones(3, "<f4")}),
    with_both(
        "an embedding with a layer's A", "lora_embedding_A' is missing", {"target_modules": ["embed_tokens"]}, {}
    ),
    with_embedding("A transposed", r"has shape \(10, 4\), not \(4, 10\)", {EMBEDDING_A: np.ones((10, 4), "<f4")}),
    with_embedding("A of a larger vocabulary", r"has shape \(4, 11\)", {EMBEDDING_A: np.ones((4, 11), "<f4")}),
    with_embedding("B transposed", r"has shape \(4, 8\), not \(8, 4\)", {EMBEDDING_B: np.ones((4, 8), "<f4")}),
    with_embedding("B of NaN", "NaN or Inf", {EMBEDDING_B: np.full((8, 4), math.nan, "<f4")}),
    with_embedding("B that overflows", "overflows bfloat16", {EMBEDDING_B: np.full((8, 4), 1e38, "<f4")}),
    with_embedding("copy too large", r"has shape \(11, 8\), .*; for new tokens", {COPY: np.ones((11, 8), "<f4")}),
    with_embedding("copy of NaN", "NaN or Inf", {COPY: np.full((10, 8), math.nan, "<f4")}),
    with_embedding("two copies", "belongs to no", {COPY: np.ones((10, 8), "<f4"), key_of(EMBEDDING, "weight"): ONE}),
    with_whole("of another vocabulary", r"has shape \(11, 8\), not \(10, 8\); for new tokens", HEAD, np.ones((11, 8))),
    with_whole("that is a vector", r"has shape \(80,\), not \(10, 8\)", HEAD, np.ones(80)),
    with_whole("of NaN", "NaN or Inf", HEAD, np.full((10, 8), math.nan)),
    with_whole("of Inf", "NaN or Inf", EMBEDDING, np.full((10, 8), math.inf)),
    with_whole("that overflows once weighted", "overflows bfloat16", EMBEDDING, np.full((10, 8), 1e38)),
    with_whole("too long", r"has shape \(9,\), not \(8,\)", NORM, np.ones(9)),
    with_whole("that is a matrix", r"has shape \(1, 8\), not \(8,\)", NORM, np.ones((1, 8))),
    with_both(
        "the base's trained biases",
        "q_proj.base_layer.bias' is no bias of a linear layer",
        {"bias": "all"},
        {key_of(Q, "base_layer.bias"): np.ones(12, "<f4")},
    ),
    with_both(
        "a saved layer's bias",
        "lm_head.bias' is no bias of a linear layer",
        {"modules_to_save": ["lm_head"]},
        {key_of(HEAD, "weight"): np.ones((10, 8), "<f4"), key_of(HEAD, "bias"): np.ones(10, "<f4")},
    ),
    with_both("lora_bias beside DoRA", "both set", {"lora_bias": True, "use_dora": True}, biases() | magnitudes()),
    with_both(
        "an embedding's lora_bias",
        "lora_bias is for linear layers, and model.embed_tokens is an embedding",
        {"lora_bias": True, "target_modules": ["q_proj", "down_proj", "embed_tokens"]},
        embedding_arrays() | biases(),
    ),
    with_bias("that is a matrix", r"has shape \(1, 12\), not \(12,\)", np.ones((1, 12))),
    with_bias("too long", r"has shape \(13,\), not \(12,\)", np.ones(13)),
    with_bias("of NaN", "NaN or Inf", [*np.ones(11), math.nan]),
    with_bias("that overflows once scaled", "overflows bfloat16", [*np.ones(11), 1.7e37]),
    with_whole("beside its pair", "lora_A.weight' belongs to no layer", "down_proj", np.ones((8, 20))),
    with_rows("beyond the vocabulary", "holds 10, but this base model's last token is 9", {TOKENS: [9, 10]}, {}),
    with_rows("of another count", r"has shape \(2, 8\), not \(1, 8\)", {TOKENS: [9]}, {}),
    with_rows("of NaN", "NaN or Inf", {}, {ROWS: np.full((2, 8), math.nan, "<f4")}),
    with_rows("that overflow once weighted", "overflows bfloat16", {}, {ROWS: np.full((2, 8), 1e38, "<f4")}),
    with_rows("that nobody announces", "trainable_tokens_delta' belongs to no layer", {TOKENS: None}, {}),
    with_rows(
        "beside the whole embedding",
        "changes model.embed_tokens, and so does",
        {"modules_to_save": ["embed_tokens"]},
        {key_of(EMBEDDING, "weight"): np.ones((10, 8), "<f4")},
    ),
    with_rows(
        "beside the whole head, which is tied",
        "changes lm_head, and so does",
        {"modules_to_save": ["lm_head"]},
        {key_of(HEAD, "weight"): np.ones((10, 8), "<f4")},
    ),
    with_both(
        "tied ends that are changed apart",
        "model.embed_tokens and lm_head are changed apart",
        {"ensure_weight_tying": True, "modules_to_save": ["embed_tokens"]},
        {key_of(EMBEDDING, "weight"): np.ones((10, 8), "<f4"), key_of(HEAD, "weight"): np.zeros((10, 8), "<f4")},
    ),
    with_both(
        "tied ends of one pattern and two dtypes",
        "model.embed_tokens and lm_head are changed apart",
        {"ensure_weight_tying": True, "modules_to_save": ["embed_tokens"]},
        {
            key_of(EMBEDDING, "weight"): np.full((10, 8), 7, "<f2"),
            key_of(HEAD, "weight"): np.full((10, 8), 0x4700, "<u2"),
        },
    ),
    with_both(
        "tied ends of which one is changed",
        "lm_head.lora_A.weight' is missing",
        {"ensure_weight_tying": True, "target_modules": ["q_proj", "down_proj", "embed_tokens"]},
        embedding_arrays(),
    ),
    with_both("no rows of trained tokens", "trainable_tokens_delta' is missing", {TOKENS: [1]}, {}),
]


# ---- folders --------------------------------------------------------------------------------------------------------


def extra(name: str) -> Hostile:
    return Hostile(f"{name!r} beside them", "is no part of an adapter", lambda folder: (folder / name).touch())


def replace(name: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Put something else where the file `name` was; the file itself is still there as `outside/<name>`."""

    def spoil(folder: Path) -> None:
        outside = folder.parent / "outside"
        outside.mkdir()
        (folder / name).rename(outside / name)
        make(folder / name)

    return spoil


def link(path: Path) -> None:
    path.symlink_to(path.parent.parent / "outside" / path.name)


def swap(folder: Path) -> None:
    (folder / CONFIG_FILE).rename(folder / "x")
    (folder / WEIGHTS_FILE).rename(folder / CONFIG_FILE)
    (folder / "x").rename(folder / WEIGHTS_FILE)


def crowd(folder: Path) -> None:
    for number in range(1000):
        (folder / str(number)).touch()


FOLDERS = [
    *(extra(name) for name in ("adapter_model.bin", "tokenizer.json", "chat_template.jinja", "modeling_x.py")),
    *(extra(name) for name in ("README.md", ".hidden", "a\nb", "weights.tar.gz", "ADAPTER_CONFIG.JSON")),
    *(
        Hostile(f"{name} {what}", reason, replace(name, make))
        for name in (CONFIG_FILE, WEIGHTS_FILE)
        for what, reason, make in (
            ("is missing", f"{name} is missing", void),
            ("is a link", "cannot be read as a plain file", link),
            ("is a broken link", "cannot be read as a plain file", lambda path: path.symlink_to("nowhere")),
            ("is an endless device", "cannot be read as a plain file", lambda path: path.symlink_to("/dev/zero")),
            ("is a pipe", "not a plain file", os.mkfifo),
            ("is a folder", "not a plain file", Path.mkdir),
        )
    ),
    Hostile("the files swapped", "where 1 to|UTF-8|JSON", swap),
    Hostile("a folder beside them", "is no part", lambda folder: (folder / "sub").mkdir()),
    Hostile("a thousand files", "is no part", crowd),
    Hostile("a sparse terabyte", "where 1 to", lambda folder: os.truncate(folder / WEIGHTS_FILE, 1 << 40)),
]

HOSTILE = [*CONFIGS, *WEIGHTS, *BEYOND, *FOLDERS]
