"""What is refused, by status, code and the name of the field. One server answers all."""

import json
from collections.abc import AsyncIterator

import openai
import pytest
import pytest_asyncio

from tests.node.api.harness import BASE, Harness, serving
from tests.node.fake_engine import FakeEngine

pytestmark = pytest.mark.asyncio(loop_scope="module")
USER = [{"role": "user", "content": "hi"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Harness]:
    async with serving(tmp_path_factory.mktemp("tiny"), FakeEngine()) as harness:
        yield harness


@pytest.mark.parametrize(
    ("model", "status", "code"),
    [
        ("gpt-4", 404, "model_not_found"),
        ("poet+gpt-4", 404, "model_not_found"),
        ("", 404, "model_not_found"),
        ("poet:11", 400, "invalid_value"),
        ("poet:nan", 400, "invalid_value"),
        ("poet:0", 400, "invalid_value"),
        ("poet:", 400, "invalid_value"),
        ("poet+poet", 400, "invalid_value"),
        (f"{BASE}+poet", 400, "invalid_value"),
        ("+".join(f"a{i}" for i in range(9)), 400, "too_many_adapters"),
    ],
)
async def test_a_model_that_cannot_be_had(server: Harness, model: str, status: int, code: str) -> None:
    with pytest.raises(openai.APIStatusError) as refusal:
        await server.openai.completions.create(model=model, prompt="a")
    assert (refusal.value.status_code, refusal.value.code, refusal.value.param) == (status, code, "model")


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logit_bias": {"50256": -100}}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": -1}, "frequency_penalty"),
        ({"temprature": 0}, "temprature"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"n": 5}, "n"),
        ({"n": True}, "n"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "0"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": 2**64}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": 7}, "stop"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"moderation": {"model": "x"}}, "moderation"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, "messages"),
        ({"max_tokens": 500}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 600}]}, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 60_000}]}, "messages"),
        ({"model": None}, "model"),
    ],
)
async def test_what_would_be_silently_disobeyed_is_refused_by_name(
    server: Harness, extra: dict[str, object], param: str | None
) -> None:
    response = await server.post("/v1/chat/completions", {"model": BASE, "messages": USER, **extra})
    error = response.json()["error"]
    assert response.status_code == 400, response.text
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert param is None or error["param"] == param


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [259]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"logprobs": 21}, "logprobs"),
        ({"top_k": 10**30}, "top_k"),
        ({"stop_token_ids": [10**30]}, "stop_token_ids.0"),
    ],
)
async def test_bad_completion_requests(server: Harness, extra: dict[str, object], param: str) -> None:
    response = await server.post("/v1/completions", {"model": BASE, "prompt": "a", **extra})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    "content",
    [None, 5, ["a"], [{"type": "image_url", "image_url": {"url": "x"}}], [{"type": "text", "text": "a", "b": 1}]],
)
async def test_content_that_is_no_text(server: Harness, content: object) -> None:
    body = {"model": BASE, "messages": [{"role": "user", "content": content}]}
    error = (await server.post("/v1/chat/completions", body)).json()["error"]
    assert error["param"] == "messages.0.content"
    assert "give a string, or parts that are" in error["message"]


@pytest.mark.parametrize(
    ("path", "extra"),
    [
        ("completions", {"prompt": "\ud800"}),
        ("completions", {"prompt": ["a", "b\udfff"]}),
        ("completions", {"prompt": "a", "\ud800": 1}),
        ("chat/completions", {"messages": [{"role": "user", "content": "\ud83d"}]}),
        ("chat/completions", {"messages": [{"role": "user", "content": "x", "\ud83d": 1}]}),
    ],
)
async def test_half_a_surrogate_pair_is_no_character(server: Harness, path: str, extra: dict[str, object]) -> None:
    """JSON can spell it, and UTF-8 cannot."""
    body = json.dumps({"model": BASE, **extra}).encode()
    response = await server.http.post(f"/v1/{path}", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"model": NaN}', b"[" * 100_000, b"\xff"])
async def test_a_body_that_is_no_request(server: Harness, body: bytes) -> None:
    response = await server.http.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


async def test_a_body_that_is_no_text_is_said_to_be_none(server: Harness) -> None:
    response = await server.http.post("/v1/completions", content=b"\xff", headers={"Content-Type": "application/json"})
    assert response.json()["error"]["message"] == "The body is not JSON in UTF-8."


async def test_what_is_not_served_is_named(server: Harness):
    with pytest.raises(openai.NotFoundError, match="POST /v1/embeddings is no route of this server"):
        await server.openai.embeddings.create(model=BASE, input="hi")
