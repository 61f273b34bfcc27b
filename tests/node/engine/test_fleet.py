"""Engines side by side: adapters are not loaded twice without need, and nobody waits for another device."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from openlora.node.engine.client import in_process_engine
from openlora.node.engine.fleet import SPREAD_AT, EngineFleet
from openlora.node.engine.messages import AdapterRefused, AdapterUse, Sampling, Token
from openlora.node.engine.process import use_device
from openlora.node.engine.supervisor import EngineOptions, supervised_engines
from openlora.node.errors import AdapterError, ConfigError, ModelError, RequestError
from tests.node.engine.test_client import FAKE_ENGINE
from tests.node.fake_engine import FakeEngine
from tests.node.tiny_model import write_adapter


@asynccontextmanager
async def fleet_of(*engines: FakeEngine) -> AsyncIterator[EngineFleet]:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(in_process_engine(engine)) for engine in engines]
        try:
            yield EngineFleet(clients)
        finally:
            for engine in engines:
                engine.gate.set()


async def answer(fleet: EngineFleet, *keys: str, tokens: int = 4) -> list[Token]:
    uses = [AdapterUse(key) for key in keys]
    return [token async for batch in fleet.generate([9], Sampling(max_tokens=tokens), uses) for token in batch]


async def load(fleet: EngineFleet, folder: Path, *keys: str) -> None:
    for key in keys:
        await fleet.load_adapter(key, str(write_adapter(folder / key)))


async def until(fleet: EngineFleet, waiting: int) -> None:
    async with asyncio.timeout(5):
        while (status := await fleet.status()).running + status.waiting < waiting:
            pass


async def test_adapters_are_spread_and_each_is_loaded_once(tmp_path: Path) -> None:
    left, right = FakeEngine(), FakeEngine()
    async with fleet_of(left, right) as fleet:
        await load(fleet, tmp_path, *"abcdef")
        assert len(left.adapters) == len(right.adapters) == 3
        assert not left.adapters.keys() & right.adapters.keys()
        for _ in range(3):
            await asyncio.gather(*(answer(fleet, key) for key in "abcdef"))
        assert len(left.adapters) + len(right.adapters) == 6
        assert set((await fleet.status()).adapters) == set("abcdef")


async def test_a_held_up_device_holds_up_no_other(tmp_path: Path) -> None:
    left, right = FakeEngine(), FakeEngine()
    async with fleet_of(left, right) as fleet:
        await load(fleet, tmp_path, "a", "b")
        stuck, free = ("a", "b") if "a" in left.adapters else ("b", "a")
        left.gate.clear()
        waiting = [asyncio.create_task(answer(fleet, stuck)) for _ in range(SPREAD_AT)]
        await until(fleet, SPREAD_AT)
        async with asyncio.timeout(5):
            await asyncio.gather(*(answer(fleet, free) for _ in range(4)), *(answer(fleet) for _ in range(4)))
            assert stuck not in right.adapters
            await answer(fleet, stuck)  # it is in demand now, so the other device has it too
        assert stuck in right.adapters
        assert not any(task.done() for task in waiting)
        left.gate.set()
        await fleet.status()  # the engine's loop looks at its gate when something comes
        assert [len(await task) for task in waiting] == [4] * SPREAD_AT


async def test_a_recipe_of_adapters_on_two_devices_gets_them_on_one(tmp_path: Path) -> None:
    left, right = FakeEngine(), FakeEngine()
    async with fleet_of(left, right) as fleet:
        await load(fleet, tmp_path, "a", "b")
        assert len(await answer(fleet, "a", "b")) == 4
        assert {"a", "b"} in (left.adapters.keys(), right.adapters.keys())
        await fleet.unload_adapter("a")
        assert "a" not in left.adapters
        assert "a" not in right.adapters
        with pytest.raises(RequestError, match="no adapter a"):
            await answer(fleet, "a", "b")


class SmallEngine(FakeEngine):
    """Has room for two adapters."""

    def handle(self, command):
        if type(command).__name__ == "LoadAdapter" and len(self.adapters) >= 2 and command.key not in self.adapters:
            return [AdapterRefused(key=command.key, message="unload others first")]
        return super().handle(command)


async def test_copies_make_room_for_what_has_none(tmp_path: Path) -> None:
    left, right = SmallEngine(), SmallEngine()
    async with fleet_of(left, right) as fleet:
        await load(fleet, tmp_path, "a", "b", "c")
        await answer(fleet, "a", "b")  # the last free place holds a copy now
        await load(fleet, tmp_path, "d")
        assert left.adapters.keys() | right.adapters.keys() == set("abcd")
        with pytest.raises(AdapterError, match="unload others"):
            await load(fleet, tmp_path, "e")
        with pytest.raises(AdapterError, match="unload others"):
            await answer(fleet, *("abcd"))


async def test_children_each_on_their_device(tmp_path: Path) -> None:
    write_adapter(tmp_path / "a")
    core = min(os.sched_getaffinity(0))
    devices = (f"cpu:{core}", f"cpu:{core}")
    options = EngineOptions(tmp_path, command=FAKE_ENGINE, devices=devices, restart_first_s=0.01)
    async with supervised_engines(options, tmp_path) as engine:
        await engine.load_adapter("a", str(tmp_path / "a"))
        assert isinstance(engine, EngineFleet)
        assert engine.info.kv_tokens == 2 * 65_536
        assert len(await answer(engine, "a")) == 4
    with pytest.raises(ModelError, match="cpu:0-7"):
        async with supervised_engines(EngineOptions(tmp_path, command=FAKE_ENGINE, devices=("tpu:0",)), tmp_path):
            pass


async def test_an_engine_on_a_gpu_that_there_is_not_does_not_take_the_cpu(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'cuda:4096': torch .* sees no such GPU; compare `nvidia-smi`"):
        async with supervised_engines(EngineOptions(tmp_path, devices=("cuda:4096",)), tmp_path):
            pass


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:4096", "cpu:0-4095", "cpu:1-"])
def test_a_device_that_there_is_not_is_named(device: str) -> None:
    with pytest.raises(ConfigError, match=device):
        use_device(device)
