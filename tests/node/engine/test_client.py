"""Tokens, refusals and ends reach the caller who waits for them, in a thread and in a child alike."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from openlora.node.engine.client import EngineClient, in_process_engine
from openlora.node.engine.messages import AdapterUse, Sampling, Token
from openlora.node.engine.supervisor import EngineOptions, supervised_engine
from openlora.node.errors import AdapterError, EngineDied, ModelError, Overloaded, RequestError
from tests.node import fake_engine
from tests.node.fake_engine import CRASH, POISON, REFUSE, FakeEngine
from tests.node.tiny_model import write_adapter

FAKE_ENGINE = (sys.executable, fake_engine.__file__)


async def tokens_of(
    client: EngineClient, prompt: list[int], max_tokens: int = 8, adapters: tuple[AdapterUse, ...] = ()
) -> list[Token]:
    answer = client.generate(prompt, Sampling(max_tokens=max_tokens), adapters)
    return [token async for tokens in answer for token in tokens]


@asynccontextmanager
async def child_engine(tmp_path: Path, **options: float) -> AsyncIterator[EngineClient]:
    engine = EngineOptions(tmp_path, command=FAKE_ENGINE, restart_first_s=0.01, **options)  # type: ignore[arg-type]
    async with supervised_engine(engine, tmp_path / "state") as client:
        yield client


async def test_concurrent_requests_each_get_their_own_tokens() -> None:
    async with in_process_engine(FakeEngine()) as client:
        together = await asyncio.gather(*(tokens_of(client, [9, n], max_tokens=n + 1) for n in range(20)))
        alone = [await tokens_of(client, [9, n], max_tokens=n + 1) for n in range(20)]
    assert [[t.token_id for t in one] for one in together] == [[t.token_id for t in one] for one in alone]
    assert [len(one) for one in together] == list(range(1, 21))
    assert all([t.finish_reason for t in one] == [None] * n + ["length"] for n, one in enumerate(together))


async def test_refusals_are_typed() -> None:
    engine = FakeEngine(max_waiting=0)
    async with in_process_engine(engine) as client:
        with pytest.raises(Overloaded):
            await tokens_of(client, [9])
        engine.max_waiting = 10
        with pytest.raises(RequestError, match="refused") as refusal:
            await tokens_of(client, [REFUSE])
        assert refusal.value.code == "refused"
        with pytest.raises(RequestError, match="no adapter x"):
            await tokens_of(client, [9], adapters=(AdapterUse("x"),))


async def test_a_request_that_fails_while_running_keeps_its_first_tokens_and_its_neighbours() -> None:
    async with in_process_engine(FakeEngine()) as client:
        neighbour = asyncio.create_task(tokens_of(client, [9]))
        first: list[Token] = []

        async def read() -> None:
            async for tokens in client.generate([POISON], Sampling(max_tokens=8)):
                first.extend(tokens)

        with pytest.raises(RequestError, match="NaN"):
            await read()
        assert len(await neighbour) == 8


@pytest.mark.parametrize("how", ["close", "cancel"])
async def test_a_request_that_nobody_reads_any_more_is_freed(how: str) -> None:
    engine = FakeEngine()
    async with in_process_engine(engine) as client:
        tokens = client.generate([9], Sampling(max_tokens=1_000_000))
        if how == "close":
            async with aclosing(tokens):
                await anext(tokens)
        else:
            reading = asyncio.create_task(tokens_of(client, [9], max_tokens=1_000_000))
            while (await client.status()).running == 0:
                pass
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        assert (await client.status()).running == 0


async def test_a_slow_reader_stalls_nobody() -> None:
    async with in_process_engine(FakeEngine()) as client:
        slow = client.generate([9], Sampling(max_tokens=1000))
        async with aclosing(slow):
            first = await anext(slow)
            assert len(await tokens_of(client, [9, 9], max_tokens=500)) == 500
            meanwhile = await anext(slow)
            rest = [token async for tokens in slow for token in tokens]
    assert [first[-1].finish_reason, rest[-1].finish_reason] == [None, "length"]
    assert len(first) + len(meanwhile) + len(rest) == 1000
    assert len(meanwhile) > 400, "what came while nobody looked comes at once"


async def test_adapters_are_loaded_used_and_unloaded(tmp_path: Path) -> None:
    async with in_process_engine(FakeEngine()) as client:
        loaded = await client.load_adapter("a", str(write_adapter(tmp_path / "a")))
        assert (loaded.key, loaded.rank) == ("a", 8)
        base, adapted = await tokens_of(client, [9]), await tokens_of(client, [9], adapters=(AdapterUse("a"),))
        assert [t.token_id for t in base] != [t.token_id for t in adapted]
        with pytest.raises(AdapterError, match="has no adapter_config"):
            await client.load_adapter("b", str(tmp_path))
        await client.unload_adapter("a")
        await client.unload_adapter("never heard of")
        assert (await client.status()).adapters == ()


async def test_a_caller_who_gives_up_does_not_take_the_next_one_s_answer(tmp_path: Path) -> None:
    path = str(write_adapter(tmp_path / "a"))
    async with in_process_engine(FakeEngine()) as client:
        hasty = asyncio.create_task(client.load_adapter("a", str(tmp_path)))
        await asyncio.sleep(0)
        hasty.cancel()
        assert (await client.load_adapter("a", path)).key == "a"


async def test_a_killed_engine_fails_what_it_ran_and_comes_back_with_its_adapters(tmp_path: Path) -> None:
    async with child_engine(tmp_path) as client:
        await client.load_adapter("a", str(write_adapter(tmp_path / "a")))
        before = await tokens_of(client, [9], adapters=(AdapterUse("a"),))
        neighbour = client.generate([9], Sampling(max_tokens=1_000_000))
        async with aclosing(neighbour):
            await anext(neighbour)
            with pytest.raises(EngineDied, match="submit it again"):
                await tokens_of(client, [CRASH])
            with pytest.raises(EngineDied):
                _ = [tokens async for tokens in neighbour]
        after = await tokens_of(client, [9], adapters=(AdapterUse("a"),))
        assert [t.token_id for t in after] == [t.token_id for t in before]


async def test_calls_fail_by_name_while_no_engine_comes_back(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    options = EngineOptions(tmp_path / "model", command=FAKE_ENGINE, restart_first_s=0.01, restart_wait_s=0.2)
    async with supervised_engine(options, tmp_path / "state") as client:
        (tmp_path / "model").rmdir()
        with pytest.raises(EngineDied):
            await tokens_of(client, [CRASH])
        with pytest.raises(EngineDied, match="is restarting"):
            await tokens_of(client, [9])
        assert not client.alive


async def test_an_engine_that_answers_nothing_is_replaced(tmp_path: Path) -> None:
    async with child_engine(tmp_path, hang_timeout_s=1.0, probe_interval_s=0.05, stop_timeout_s=0.1) as client:
        pid = child_pid()
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(EngineDied):
            await tokens_of(client, [9])
        assert len(await tokens_of(client, [9])) == 8
        assert child_pid() != pid


async def test_a_model_that_cannot_be_served_is_one_sentence(tmp_path: Path) -> None:
    options = EngineOptions(tmp_path / "none", command=FAKE_ENGINE)
    with pytest.raises(ModelError, match="none does not exist; give a model directory or a GGUF file"):
        async with supervised_engine(options, tmp_path / "state"):
            pass


async def test_no_child_is_left_behind(tmp_path: Path) -> None:
    async with child_engine(tmp_path) as client:
        pid = child_pid()
        async with aclosing(client.generate([9], Sampling(max_tokens=1_000_000))) as tokens:
            await anext(tokens)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def child_pid() -> int:
    """Our one child process."""
    (pid,) = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return int(pid)
