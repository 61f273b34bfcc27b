"""A GGUF file as a Hugging Face directory, the same as transformers makes of it."""

import json
from pathlib import Path

import pytest

from openlora.node.errors import ModelError
from openlora.node.gguf_conversion import convert_llama
from tests.node.tiny_gguf import write_tiny_gguf


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
