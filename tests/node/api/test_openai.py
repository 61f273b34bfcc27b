"""What OpenAI's own client, and the bytes on the wire, see of the completion routes."""

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.node.api.harness import BASE, serving
from tests.node.fake_engine import EOS, POISON, FakeEngine

USER: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


def hello() -> FakeEngine:
    return FakeEngine(script=b"Hello, world!")


async def test_a_completion(tmp_path: Path) -> None:
    async with serving(tmp_path, hello()) as server:
        answer = await server.openai.completions.create(model=BASE, prompt="abc", max_tokens=20)
    assert (answer.object, answer.model, len(answer.choices)) == ("text_completion", BASE, 1)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("Hello, world!", "stop")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 14, 17)


async def test_the_default_is_sixteen_tokens_for_completions_and_the_whole_context_for_chats(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeEngine()) as server:
        completion = await server.openai.completions.create(model=BASE, prompt="abc")
        chat = await server.openai.chat.completions.create(model=BASE, messages=USER)
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 16
    assert chat.usage is not None
    assert chat.usage.total_tokens == 512
    assert (completion.choices[0].finish_reason, chat.choices[0].finish_reason) == ("length", "length")


async def test_prompts_of_all_four_kinds(tmp_path: Path) -> None:
    prompts = ("ab", ["ab", "cd"], [97, 98], [[97, 98], [99, 100]])
    async with serving(tmp_path, FakeEngine()) as server:
        answers = [await server.openai.completions.create(model=BASE, prompt=p, temperature=0) for p in prompts]
    texts = [[choice.text for choice in answer.choices] for answer in answers]
    assert texts[0] == texts[2] == texts[1][:1]
    assert texts[1] == texts[3]
    assert texts[1][0] != texts[1][1]
    assert [choice.index for choice in answers[3].choices] == [0, 1]


async def test_choices_differ_and_a_seed_repeats_them(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeEngine()) as server:
        ask: Any = server.openai.completions.create
        once, again, other, unseeded, unseeded_again = [
            [choice.text for choice in (await ask(model=BASE, prompt="ab", n=3, **seed)).choices]
            for seed in ({"seed": 7}, {"seed": 7}, {"seed": -1}, {}, {})
        ]
    assert once == again
    assert len({*once, *other}) == 6
    assert unseeded != unseeded_again


async def test_a_stop_string_ends_the_answer(tmp_path: Path) -> None:
    async with serving(tmp_path, hello()) as server:
        one = await server.openai.completions.create(model=BASE, prompt="a", stop=", w", max_tokens=50)
        two = await server.openai.chat.completions.create(model=BASE, messages=USER, stop=["zz", "wor"])
        ids = await server.openai.completions.create(
            model=BASE, prompt="a", max_tokens=50, extra_body={"stop_token_ids": [ord("w")]}
        )
    assert (one.choices[0].text, one.choices[0].finish_reason) == ("Hello", "stop")
    assert (two.choices[0].message.content, two.choices[0].finish_reason) == ("Hello, ", "stop")
    assert (ids.choices[0].text, ids.choices[0].finish_reason) == ("Hello, ", "stop")
    assert one.usage is not None
    assert one.usage.completion_tokens == 8


async def test_ignore_eos_goes_on(tmp_path: Path) -> None:
    async with serving(tmp_path, hello()) as server:
        answer = await server.openai.completions.create(
            model=BASE, prompt="a", max_tokens=20, extra_body={"ignore_eos": True}
        )
    assert answer.usage is not None
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (20, "length")


async def test_echo_puts_the_prompt_first(tmp_path: Path) -> None:
    async with serving(tmp_path, hello()) as server:
        whole = await server.openai.completions.create(model=BASE, prompt="Say: ", echo=True)
        ids = await server.openai.completions.create(model=BASE, prompt=[ord("X")], echo=True, max_tokens=1)
        stream = await server.openai.completions.create(model=BASE, prompt="Say: ", echo=True, stream=True)
        streamed = "".join([chunk.choices[0].text async for chunk in stream])
    assert whole.choices[0].text == streamed == "Say: Hello, world!"
    assert ids.choices[0].text == "XH"


async def test_a_streamed_completion_is_the_whole_one_in_pieces(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeEngine()) as server:
        ask: dict[str, Any] = {"model": BASE, "prompt": ["ab", "cd"], "n": 2, "seed": 1, "max_tokens": 30}
        whole = await server.openai.completions.create(**ask)
        stream = await server.openai.completions.create(**ask, stream=True, stream_options={"include_usage": True})
        texts, usage = dict.fromkeys(range(4), ""), None
        reasons: dict[int, str | None] = {}
        async for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.text
                reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert set(reasons.values()) == {"length"}
    assert usage == whole.usage


async def test_the_events_of_a_chat_are_openai_s(tmp_path: Path) -> None:
    body = {"model": BASE, "messages": USER, "stop": "o,", "stream_options": {"include_usage": True}}
    async with serving(tmp_path, hello()) as server:
        *chunks, usage, done = await server.events("/v1/chat/completions", body)
    assert done == "[DONE]"
    begin, *deltas, end = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert (begin, end) == ({"role": "assistant", "content": ""}, {})
    assert all(delta.keys() == {"content"} for delta in deltas)
    assert "".join(delta["content"] for delta in deltas) == "Hell"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (1 + len(deltas)) + ["stop"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in [*chunks, usage]}) == 1
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 6)


async def test_a_stream_without_usage_has_no_usage_field(tmp_path: Path) -> None:
    async with serving(tmp_path, hello()) as server:
        *chunks, _ = await server.events("/v1/completions", {"model": BASE, "prompt": "a"})
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello, world!"
    assert not any("usage" in chunk for chunk in chunks)


async def test_what_a_step_brings_is_one_event(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeEngine(script=b"Hello, world!", run=7)) as server:
        *chunks, _ = await server.events("/v1/completions", {"model": BASE, "prompt": "a", "logprobs": 0})
        chat = await server.events("/v1/chat/completions", {"model": BASE, "messages": USER})
    choices = [chunk["choices"][0] for chunk in chunks]
    assert len(choices) <= 2, "14 tokens, the end token among them, in two steps"
    assert "".join(choice["text"] for choice in choices) == "Hello, world!"
    logprobs = [choice["logprobs"] for choice in choices]
    assert [name for one in logprobs for name in one["tokens"]] == [*"Hello, world!", "<|im_end|>"]
    assert [offset for one in logprobs for offset in one["text_offset"]] == list(range(14))
    assert len(chat) <= 5, "the role, two steps, the reason, [DONE]"


async def test_chat_logprobs(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeEngine(script="é!".encode())) as server:
        answer = await server.openai.chat.completions.create(
            model=BASE, messages=USER, logprobs=True, top_logprobs=2, max_completion_tokens=3
        )
        events = await server.events(
            "/v1/chat/completions", {"model": BASE, "messages": USER, "logprobs": True, "max_tokens": 3}
        )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [entry.bytes for entry in logprobs.content] == [[0xC3], [0xA9], [0x21]]
    assert [entry.token for entry in logprobs.content] == ["\ufffd", "\ufffd", "!"]
    assert [[top.logprob for top in entry.top_logprobs] for entry in logprobs.content] == [[-0.25, -1.25]] * 3
    streamed = [chunk["choices"][0]["logprobs"] for chunk in events[1:-1]]
    assert [entry["bytes"] for part in streamed if part for entry in part["content"]] == [[0xC3], [0xA9], [0x21]]


async def test_completion_logprobs(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeEngine(script="xé!".encode())) as server:
        answer = await server.openai.completions.create(model=BASE, prompt="a", logprobs=1, max_tokens=4)
        stream = await server.openai.completions.create(model=BASE, prompt="a", logprobs=1, max_tokens=4, stream=True)
        chunks = [chunk.choices[0].logprobs async for chunk in stream]
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["x", "bytes:\\xc3", "bytes:\\xa9", "!"]
    assert logprobs.token_logprobs == [-0.25] * 4
    assert logprobs.text_offset is not None
    assert [offset for chunk in chunks if chunk for offset in chunk.text_offset or ()] == logprobs.text_offset


async def test_models_adapters_and_ensembles(tmp_path: Path) -> None:
    names = (BASE, "poet", "pirate", "poet:0.7+pirate:-0.3", "pirate:-0.3 + poet:0.7", "poet:1.0")
    async with serving(tmp_path, FakeEngine()) as server:
        cards = {card.id: card async for card in server.openai.models.list()}
        one = await server.openai.models.retrieve("poet")
        texts = [
            (await server.openai.completions.create(model=name, prompt="a", temperature=0)).choices[0].text
            for name in names
        ]
    assert list(cards) == [BASE, "poet", "pirate"]
    assert [card.model_dump()["parent"] for card in cards.values()] == [None, BASE, BASE]
    assert one.model_dump()["root"] == str(tmp_path / "poet")
    assert len(set(texts)) == 5
    assert texts[1] == texts[5]


async def test_harmless_fields_are_ignored_and_neutral_values_accepted(tmp_path: Path) -> None:
    extra = {
        "user": "u", "metadata": {"a": "b"}, "store": True, "presence_penalty": 0.0, "frequency_penalty": 0,
        "logit_bias": {}, "tools": None, "response_format": {"type": "text"}, "repetition_penalty": 1.0, "seed": None,
        "temperature": None, "n": None, "stop": None, "stream": None, "top_k": -1,
        "moderation": None, "prompt_cache_options": {"mode": "implicit"}, "ignore_eos": None, "stop_token_ids": None,
    }  # fmt: skip
    async with serving(tmp_path, hello()) as server:
        response = await server.post("/v1/chat/completions", {"model": BASE, "messages": USER, **extra})
    assert response.status_code == 200, response.text


async def test_a_form_that_another_site_posts_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeEngine(), adapter_loading=True) as server:
        response = await server.http.post("/v1/load_lora_adapter", content=b'{"lora_name": "x", "lora_path": "/x"}')
    assert response.status_code == 400


async def test_an_error_in_the_middle_of_a_stream_is_its_last_event(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeEngine()) as server:
        *chunks, error = await server.events("/v1/completions", {"model": BASE, "prompt": [POISON]})
        assert sum(len(chunk["choices"][0]["text"]) for chunk in chunks) == 2
        assert error["error"]["code"] == "not_finite"
        stream = await server.openai.completions.create(model=BASE, prompt=[POISON], stream=True)
        with pytest.raises(openai.APIError, match="NaN"):
            _ = [chunk async for chunk in stream]


async def test_the_first_failing_choice_ends_the_others(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeEngine()) as server:
        with pytest.raises(openai.BadRequestError, match="NaN"):
            await server.openai.completions.create(model=BASE, prompt=[[POISON], [9]], max_tokens=500)
        assert await server.settled()


async def test_the_end_token_is_counted_and_not_shown(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeEngine(script=b"")) as server:
        answer = await server.openai.completions.create(model=BASE, prompt="a", logprobs=0)
    assert answer.usage is not None
    assert (answer.choices[0].text, answer.usage.completion_tokens) == ("", 1)
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.tokens == ["<|im_end|>"]
    assert EOS == 258


async def test_the_synchronous_client(tmp_path: Path) -> None:
    def ask(url: str) -> tuple[str | None, str]:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
            whole = client.chat.completions.create(model=BASE, messages=USER)
            stream = client.chat.completions.create(model=BASE, messages=USER, stream=True)
            return whole.choices[0].message.content, "".join(c.choices[0].delta.content or "" for c in stream)

    async with serving(tmp_path, hello()) as server:
        assert await asyncio.to_thread(ask, server.url) == ("Hello, world!", "Hello, world!")
