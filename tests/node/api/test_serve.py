"""`openlora serve` as a process: what it refuses, what it answers, and that it leaves nothing behind."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from safetensors.numpy import save_file

from tests.node.tiny_model import write_tiny_model

SERVE = (sys.executable, "-m", "openlora.node", "serve")
KEY = "a-key-of-some-length"
QUESTION = "What is the capital of France?"
ADAPTERS = ("pirate", "haiku")


def refusal(*arguments: str) -> str:
    """The one sentence of a serve that refuses."""
    done = subprocess.run([*SERVE, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("openlora: ")
    return line


@pytest.mark.slow
def test_a_bad_command_line_is_one_sentence(tmp_path: Path) -> None:
    model = str(write_tiny_model(tmp_path / "tiny"))
    key_file = tmp_path / "keys"
    key_file.write_text("short\n")
    assert "does not exist; give a Hugging Face directory or a GGUF file" in refusal("--model", str(tmp_path / "no"))
    assert "choose auto, bfloat16 or float32" in refusal("--model", model, "--dtype", "int3")
    assert "protect it with --api-key-file" in refusal("--model", model, "--host", "0.0.0.0")
    assert "no address to listen on" in refusal("--model", model, "--host", "no.such.host.invalid")
    assert "at least 16" in refusal("--model", model, "--api-key-file", str(key_file))
    assert "cannot be read" in refusal("--model", model, "--api-key-file", str(tmp_path / "none"))
    assert "is not NAME=PATH" in refusal("--model", model, "--adapter", "x")
    assert "is no directory" in refusal("--model", model, "--adapter", "x=/nowhere")
    assert "cannot name a model" in refusal("--model", model, "--adapter", f"a+b={tmp_path}")
    twice = ("--adapter", f"a={tmp_path}", "--adapter", f"a={tmp_path}")
    assert "is named twice" in refusal("--model", model, *twice)
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port} on 127.0.0.1 is in use" in refusal("--model", model, "--port", port)


@pytest.mark.slow
def test_a_model_or_adapter_that_does_not_fit_is_one_sentence(tmp_path: Path, model_dir: Path) -> None:
    weightless = str(write_tiny_model(tmp_path / "tiny"))
    refusal("--model", weightless, "--port", "0")
    (tmp_path / "adapter").mkdir()
    adapter = f"x={tmp_path / 'adapter'}"
    assert f"--adapter {adapter} is refused" in refusal("--model", str(model_dir), "--port", "0", "--adapter", adapter)


def write_random_adapter(directory: Path, seed: int) -> Path:
    """A rank-4 adapter of SmolLM2-135M's query projections that changes what it says."""
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in range(30):
        module = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{module}.lora_A.weight"] = random.normal(0, 0.1, (4, 576)).astype(np.float32)
        tensors[f"{module}.lora_B.weight"] = random.normal(0, 0.1, (576, 4)).astype(np.float32)
    directory.mkdir()
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return directory


def as_downloaded(directory: Path) -> None:
    """Leaves the folder as Hugging Face's cache has it."""
    blobs = directory.with_name(f"{directory.name}-blobs")
    directory.rename(blobs)
    directory.mkdir()
    for path in blobs.iterdir():
        (directory / path.name).symlink_to(Path("..") / blobs.name / path.name)


@contextmanager
def serve(*arguments: str) -> Iterator[tuple[str, int]]:
    """The URL and the process id of a server, which must end in order when it is told to."""
    process = subprocess.Popen([*SERVE, "--port", "0", *arguments], stderr=subprocess.PIPE, text=True)
    with process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            assert line.startswith("openlora: serving"), line
            yield line.split()[-1], process.pid
            shown = Path(f"/proc/{process.pid}/cmdline").read_text() + Path(f"/proc/{process.pid}/environ").read_text()
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
            shown += process.stderr.read()
            assert [secret for secret in (KEY, QUESTION) if secret in shown] == []
        finally:
            process.kill()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_the_official_client_on_the_real_model(model_dir: Path, tmp_path: Path) -> None:
    folders = [write_random_adapter(tmp_path / name, seed) for seed, name in enumerate(ADAPTERS)]
    as_downloaded(folders[0])
    options = [f"--adapter={name}={folder}" for name, folder in zip(ADAPTERS, folders, strict=True)]
    (tmp_path / "keys").write_text(f"{KEY}\n")
    # float32: the model is nearly undecided about its first word, and bfloat16 rounds the other way
    options += ["--dtype", "float32"]
    with serve("--model", str(model_dir), "--api-key-file", str(tmp_path / "keys"), *options) as (url, pid):
        (engine,) = children(pid)
        with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            check_models(client, model_dir.name)
            check_answers(client, model_dir.name)
            check_engine_killed(client, model_dir.name, engine)
            (engine,) = children(pid)
            with pytest.raises(openai.AuthenticationError):
                client.with_options(api_key="wrong").models.list()
    with pytest.raises(ProcessLookupError):
        os.kill(engine, 0)


def check_models(client: openai.OpenAI, base: str) -> None:
    assert [model.id for model in client.models.list()] == [base, *ADAPTERS]


def check_answers(client: openai.OpenAI, base: str) -> None:
    question: list[ChatCompletionMessageParam] = [{"role": "user", "content": QUESTION}]
    answers = {}
    for model, max_tokens in ((base, 8), ("pirate", 4), ("pirate:0.7+haiku:0.3", 4)):
        whole = client.chat.completions.create(
            model=model, messages=question, temperature=0, max_tokens=max_tokens, logprobs=True, top_logprobs=2
        )
        stream = client.chat.completions.create(
            model=model, messages=question, temperature=0, max_tokens=max_tokens, stream=True
        )
        answers[model] = whole.choices[0].message.content
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == answers[model]
        logprobs = whole.choices[0].logprobs
        assert logprobs is not None
        assert logprobs.content is not None
        assert all(entry.logprob == entry.top_logprobs[0].logprob for entry in logprobs.content), "greedy is the best"
    assert "Paris" in (answers[base] or "")
    assert len(set(answers.values())) == 3, answers


def check_engine_killed(client: openai.OpenAI, base: str, engine: int) -> None:
    stream = client.completions.create(model=base, prompt="Once upon a time", max_tokens=500, stream=True)
    next(iter(stream))
    os.kill(engine, signal.SIGKILL)
    with pytest.raises(openai.APIError, match="submit it again"):
        for _ in stream:
            pass
    patient = client.with_options(max_retries=4)  # a machine with other work takes longer to start the next one
    assert patient.completions.create(model="pirate", prompt="Once", max_tokens=2).choices[0].text
