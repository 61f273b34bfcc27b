"""A base model's id follows from its weights and its tokenizer."""

import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from openlora.node.base_model import base_model_id
from openlora.node.errors import ModelError
from tests.node.tiny_gguf import write_tiny_gguf

Entry = tuple[str, list[int], bytes]  # dtype, shape, bytes
TENSORS: dict[str, Entry] = {
    "b.weight": ("BF16", [2, 3], b"\x01\x02" * 6),
    "a.weight": ("F32", [1], b"\x00\x00\x80\x3f"),
}


def write_safetensors(path: Path, tensors: dict[str, Entry], **metadata: str) -> None:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", TENSORS)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_the_id_by_hand(model: Path) -> None:
    a = b"\0\0\0\x08a.weight" + b"\0\0\0\x03F32" + b"\0\0\0\x01" + b"\0\0\0\0\0\0\0\x01"
    b = b"\0\0\0\x08b.weight" + b"\0\0\0\x04BF16" + b"\0\0\0\x02" + b"\0\0\0\0\0\0\0\x02" + b"\0\0\0\0\0\0\0\x03"
    content = b"\0\0\0\x02" + a + sha256(b"\x00\x00\x80\x3f").digest() + b + sha256(b"\x01\x02" * 6).digest()
    assert base_model_id(model) == sha256(content + sha256(b"{}").digest()).digest()


def test_order_metadata_and_other_files_do_not_matter(model: Path) -> None:
    before = base_model_id(model)
    write_safetensors(model / "model.safetensors", dict(reversed(TENSORS.items())), format="pt")
    (model / "config.json").write_text("{}")
    assert base_model_id(model) == before


def test_shards_are_the_same_model(model: Path) -> None:
    before = base_model_id(model)
    (model / "model.safetensors").unlink()
    shard(model)
    assert base_model_id(model) == before


def shard(model: Path) -> dict[str, str]:
    weight_map = {name: f"model-{n}.safetensors" for n, name in enumerate(TENSORS)}
    for name, file in weight_map.items():
        write_safetensors(model / file, {name: TENSORS[name]})
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


@pytest.mark.parametrize(
    "change",
    [
        {"a.weight": ("F32", [1], b"\x01\x00\x80\x3f")},
        {"a.weight": ("I32", [1], b"\x00\x00\x80\x3f")},
        {"b.weight": ("BF16", [3, 2], b"\x01\x02" * 6)},
        {"c.weight": ("F32", [1], b"\x00\x00\x80\x3f")},
    ],
)
def test_every_part_of_a_tensor_matters(model: Path, change: dict[str, Entry]) -> None:
    before = base_model_id(model)
    write_safetensors(model / "model.safetensors", TENSORS | change)
    assert base_model_id(model) != before


def test_the_tokenizer_matters(model: Path) -> None:
    before = base_model_id(model)
    (model / "tokenizer.json").write_text("{} ")
    assert base_model_id(model) != before


def test_progress_reaches_the_end(model: Path) -> None:
    seen: list[tuple[int, int]] = []
    base_model_id(model, lambda done, total: seen.append((done, total)))
    assert seen == [(4, 16), (16, 16)]


def rewrite_index(**changes: Any) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        (model / "model.safetensors").unlink()
        index = {"weight_map": shard(model)} | changes
        (model / "model.safetensors.index.json").write_text(json.dumps(index))

    return spoil


def respelled(**changes: Any) -> Callable[[Path], None]:
    def spoil(model: Path) -> None:
        entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} | changes
        encoded = json.dumps({"b.weight": entry}).encode()
        (model / "model.safetensors").write_bytes(len(encoded).to_bytes(8, "little") + encoded + bytes(4))

    return spoil


MALFORMED: list[dict[str, Any]] = [
    *({"dtype": dtype} for dtype in (None, True, 1.5, "\ud800")),
    *({"shape": shape} for shape in (None, "1", ["1"], [1.0], [-1], [2**64], [True])),
    *({"data_offsets": offsets} for offsets in (None, [4], [0, 4.0], [4, 0], [0, 10**400], [2**63, 2**63])),
]
SHARDS = {name: f"model-{n}.safetensors" for n, name in enumerate(TENSORS)}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda model: (model / "tokenizer.json").unlink(), r"tokenizer\.json: No such file"),
        (lambda model: (model / "model.safetensors").unlink(), r"model\.safetensors: No such file"),
        (lambda model: (model / "model.safetensors").write_bytes(b""), "JSON"),
        (lambda model: (model / "model.safetensors").write_bytes(b"\xff" * 100), "not a safetensors file"),
        (lambda model: (model / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"[]"), "not a JSON object"),
        (lambda model: (model / "model.safetensors").write_bytes(b"\x07" + bytes(7) + b'{"t":1}'), "malformed"),
        *((respelled(**entry), r"malformed safetensors header, at tensor 'b\.weight'") for entry in MALFORMED),
        (lambda model: in_place_of(model / "tokenizer.json", os.mkfifo), r"tokenizer\.json: no plain file"),
        (lambda model: in_place_of(model / "model.safetensors", os.mkfifo), r"model\.safetensors: no plain file"),
        (lambda model: in_place_of(model / "tokenizer.json", endless), r"tokenizer\.json: no plain file"),
        (lambda model: truncate(model / "model.safetensors"), r"ends before its tensor 'a\.weight'"),
        (rewrite_index(weight_map=[]), "weight_map must"),
        (rewrite_index(weight_map={"a.weight": "../x"}), "weight_map must"),
        (rewrite_index(weight_map={"a.weight": "x\0"}), "weight_map must"),
        (rewrite_index(weight_map={"a.weight": "\ud800"}), "weight_map must"),
        (rewrite_index(weight_map=SHARDS | {"c.weight": "model-0.safetensors"}), "other tensors"),
        (rewrite_index(weight_map={"b.weight": "model-1.safetensors"}), "other tensors"),
        (rewrite_index(weight_map=SHARDS | {"c.weight": "model-9.safetensors"}), "No such file"),
    ],
)
def test_what_is_no_whole_model(model: Path, spoil: Callable[[Path], Any], reason: str) -> None:
    spoil(model)
    with pytest.raises(ModelError, match=reason):
        base_model_id(model)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def in_place_of(path: Path, make: Callable[[Path], None]) -> None:
    path.unlink()
    make(path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_a_gguf_file_is_its_tensors_and_its_tokenizer(tmp_path: Path) -> None:
    tiny = base_model_id(write_tiny_gguf(tmp_path / "tiny.gguf"))
    assert base_model_id(write_tiny_gguf(tmp_path / "renamed.gguf", name="another name")) == tiny
    assert base_model_id(write_tiny_gguf(tmp_path / "template.gguf", template="{}")) != tiny
    changed = bytearray((tmp_path / "tiny.gguf").read_bytes())
    changed[-1] ^= 1
    (tmp_path / "changed.gguf").write_bytes(changed)
    assert base_model_id(tmp_path / "changed.gguf") != tiny


@pytest.mark.parametrize("content", [b"", b"GGUF", b"x" * 1000, b"GGUF\x03\0\0\0" + b"\xff" * 16])
def test_a_file_that_is_no_gguf(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(ModelError, match="not a readable GGUF file"):
        base_model_id(tmp_path / "model.gguf")
