"""GGUF headers from strangers: each fault one sentence, whatever the counts say."""

import os
import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest

from openlora.node.engine.gguf_header import GgufHeader
from openlora.node.errors import ModelError
from tests.node.tiny_gguf import write_tiny_gguf

U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10
Q8_0 = 8
HUGE = (1 << 16, 1 << 60, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, length: int, items: bytes) -> bytes:
    return struct.pack("<IQ", kind, length) + items


def tensor(name: bytes, *shape: int, kind: int = 0, offset: int = 0, dimensions: int | None = None) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape) if dimensions is None else dimensions, *shape)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


def header(
    pairs: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    counted = struct.pack("<IQQ", version, *(counts or (len(tensors), len(pairs))))
    table = b"GGUF" + counted + b"".join((*pairs, *tensors))
    return table + bytes(-len(table) % alignment)


def read(tmp_path: Path, content: bytes) -> GgufHeader:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    return GgufHeader(path)


def test_reads_what_the_gguf_package_reads(tmp_path: Path) -> None:
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    ours, theirs = GgufHeader(path), gguf.GGUFReader(path)
    fields = {key: field for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(ours) == list(fields)
    for key, field in fields.items():
        assert ours.value(key) == (None if gguf.GGUFValueType.ARRAY in field.types else field.contents()), key
        assert ours.stored(key) == b"".join(part.tobytes() for part in field.parts), key
    assert ours.tensors.keys() == {tensor.name for tensor in theirs.tensors}
    for stored in theirs.tensors:
        found = ours.tensors[stored.name]
        assert (found.type, found.shape) == (stored.tensor_type, tuple(stored.shape.tolist()))
        assert (found.offset, found.nbytes) == (stored.data_offset, stored.n_bytes)
        assert ours.rows(stored.name).tobytes() == stored.data.tobytes()


def test_every_type_of_value_and_an_alignment_of_its_own(tmp_path: Path) -> None:
    kinds = {0: ("B", 255), 1: ("b", -1), 2: ("H", 65535), 3: ("h", -2), 4: ("I", 1 << 31), 5: ("i", -3), 6: ("f", 0.5)}
    kinds |= {7: ("?", True), 10: ("Q", (1 << 64) - 1), 11: ("q", -4), 12: ("d", 0.1)}
    pairs = [pair(f"k{kind}".encode(), kind, struct.pack("<" + code, value)) for kind, (code, value) in kinds.items()]
    pairs += [pair(b"list", ARRAY, array(3, 3, bytes(6))), pair(b"none", ARRAY, array(STRING, 0, b""))]
    pairs += [pair(b"texts", ARRAY, array(STRING, 2, text(b"a") + text(b"")))]
    pairs += [pair(b"text", STRING, text("é".encode())), pair(b"general.alignment", U32, struct.pack("<I", 128))]
    content = header(tuple(pairs), (tensor(b"t", 2, 3, offset=128),), alignment=128)
    found = read(tmp_path, content + bytes(128) + np.arange(6, dtype="<f4").tobytes())
    assert {key: found.value(key) for key in found if key[0] == "k"} == {
        f"k{kind}": value for kind, (_, value) in kinds.items()
    }
    assert [found.value(key) for key in ("list", "none", "texts", "text")] == [None, None, None, "é"]
    assert found.rows("t").view(np.float32).tolist() == [[0, 1], [2, 3], [4, 5]]
    assert found.tensors["t"].shape == (2, 3)


ONE = tensor(b"t", 8)
HOSTILE = {
    "empty": (b"", "empty file"),
    "another format": (b"x" * 100, "begin with GGUF"),
    "version 1": (header(version=1), "version 1 "),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648 "),
    "a key twice": (header((pair(b"a", U8, b"\0"), pair(b"a", U8, b"\1"))), "'a' occurs twice"),
    "a key that is not UTF-8": (header((pair(b"\xff", U8, b"\0"),)), "a key is not UTF-8"),
    "a long key": (header((pair(b"k" * 70_000, U8, b"\0"),)), "a key is a text of 70000 bytes"),
    "an unknown type": (header((pair(b"a", 13, bytes(99)),)), "unknown type, 13"),
    "an array of unknown type": (header((pair(b"a", ARRAY, array(99, 1, bytes(99))),)), "unknown type, 99"),
    "an array of arrays": (header((pair(b"a", ARRAY, array(ARRAY, 1, array(U8, 1, b"\0"))),)), "array of arrays"),
    "arrays without end": (header((pair(b"a", ARRAY, array(ARRAY, 1, b"") * 100_000),)), "array of arrays"),
    "a pair too few": (header((pair(b"a", U8, b"\0"),), counts=(0, 2), alignment=1), "goes on beyond"),
    "a tensor too few": (header((), (ONE,), counts=(2, 0), alignment=1) + bytes(8), "goes on beyond"),
    "alignment zero": (header((pair(b"general.alignment", U32, bytes(4)),)), "alignment 0 is no power"),
    "alignment 48": (header((pair(b"general.alignment", U32, b"\x30\0\0\0"),)), "alignment 48 is no power"),
    "alignment true": (header((pair(b"general.alignment", BOOL, b"\1"),)), "alignment True is no power"),
    "alignment one half": (header((pair(b"general.alignment", F32, struct.pack("<f", 0.5)),)), "alignment 0.5"),
    "alignment a list": (header((pair(b"general.alignment", ARRAY, array(U8, 1, b"\x20")),)), "alignment None"),
    "alignment 2^63": (
        header((pair(b"general.alignment", U64, struct.pack("<Q", 1 << 63)),), (ONE,)) + bytes(32),
        "beyond the end of the file",
    ),
    "a tensor twice": (header((), (ONE, tensor(b"t", 8, offset=32))) + bytes(64), "'t' occurs twice"),
    "a name that is not UTF-8": (header((), (tensor(b"\xff", 8),)) + bytes(32), "name is not UTF-8"),
    "five dimensions": (header((), (tensor(b"t", 1, 1, 1, 1, 8),)) + bytes(32), "5 dimensions"),
    "2^32 dimensions": (header((), (tensor(b"t", 8, dimensions=(1 << 32) - 1),)) + bytes(32), "4294967295 dimensions"),
    "no values": (header((), (tensor(b"t", 8, 0),)) + bytes(32), r"F32 cannot have, \(8, 0\)"),
    "half a block": (header((), (tensor(b"t", 16, 2, kind=Q8_0),)) + bytes(64), r"Q8_0 cannot have, \(16, 2\)"),
    "an unknown tensor type": (header((), (tensor(b"t", 8, kind=4),)) + bytes(32), "unknown type, 4"),
    "off the alignment": (header((), (tensor(b"t", 8, offset=16),)) + bytes(64), "off the alignment of 32"),
    "the same bytes twice": (header((), (ONE, tensor(b"u", 8))) + bytes(64), "'u' overlaps another"),
    "a tensor in another": (
        header((), (tensor(b"u", 8, offset=32), tensor(b"t", 24), tensor(b"v", 8, offset=96))) + bytes(128),
        "'u' overlaps another",
    ),
    "a byte short": (header((), (ONE,)) + bytes(31), "'t' reaches beyond the end"),
} | {
    f"{what} {count}": (content, named)
    for count in HUGE
    for what, content, named in (
        ("pairs", header(counts=(0, count)), "pairs|goes on beyond"),
        ("tensors", header(counts=(count, 0)), "tensors|goes on beyond"),
        ("numbers", header((pair(b"a", ARRAY, array(U64, count, b"")),)), "goes on beyond"),
        ("texts", header((pair(b"a", ARRAY, array(STRING, count, b"")),)), "goes on beyond"),
        ("a text's length", header((pair(b"a", STRING, text(b"x", count)),)), "goes on beyond"),
        ("a text of an array's", header((pair(b"a", ARRAY, array(STRING, 2, text(b"x", count))),)), "goes on beyond"),
        ("a key's length", header((text(b"a", count),)), "a key is a text of|goes on beyond"),
        ("an offset", header((), (tensor(b"t", 8, offset=count // 32 * 32),)) + bytes(32), "beyond the end"),
        ("a size", header((), (tensor(b"t", count),)) + bytes(32), "beyond the end"),
        ("sizes", header((), (tensor(b"t", count, count, count, count),)) + bytes(32), "beyond the end"),
    )
}


@pytest.mark.parametrize(("content", "named"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header_is_refused_in_one_sentence(tmp_path: Path, content: bytes, named: str) -> None:
    with pytest.raises(ModelError, match=named) as refusal:
        read(tmp_path, content)
    assert "not a readable GGUF file" in str(refusal.value)
    assert len(str(refusal.value)) < len(str(tmp_path)) + 300


def test_nobody_waits_at_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.gguf")
    with pytest.raises(ModelError, match="a pipe and no GGUF file"):
        GgufHeader(tmp_path / "x.gguf")


def test_every_truncation_of_the_header_is_refused(tmp_path: Path) -> None:
    content = write_tiny_gguf(tmp_path / "tiny.gguf").read_bytes()
    end = GgufHeader(tmp_path / "tiny.gguf").tensors["output_norm.weight"].offset
    for length in range(0, end, 23):
        with pytest.raises(ModelError, match="not a readable GGUF file"):
            read(tmp_path, content[:length])


def test_what_nobody_asks_for_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(header((pair(b"a", ARRAY, array(STRING, 1 << 16, bytes(8 << 16))),)))
    tracemalloc.start()
    GgufHeader(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 18


def test_a_header_of_gigabytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    path.write_bytes(header((pair(b"a", ARRAY, array(U8, 1 << 30, b"")),)))
    with path.open("r+b") as file:
        file.truncate(3 << 30)  # a hole
    with pytest.raises(ModelError, match="beyond 128 MiB"):
        GgufHeader(path)


def test_a_long_text_is_passed_over_and_refused_when_asked_for(tmp_path: Path) -> None:
    found = read(tmp_path, header((pair(b"a", STRING, text(b"x" * 70_000)), pair(b"b", U8, b"\7"))))
    assert found.value("b") == 7
    with pytest.raises(ModelError, match="'a' is a text of 70000 bytes"):
        found.value("a")
