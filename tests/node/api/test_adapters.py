"""Adapters are loaded and unloaded at run time as vLLM does it, where the operator allows it."""

from pathlib import Path

import openai
import pytest

from tests.node.api.harness import BASE, serving
from tests.node.fake_engine import FakeEngine
from tests.node.tiny_model import write_adapter


async def test_an_adapter_comes_and_goes(tmp_path: Path) -> None:
    path = str(write_adapter(tmp_path / "new"))
    async with serving(tmp_path, FakeEngine(), adapter_loading=True) as server:
        loaded = await server.post("/v1/load_lora_adapter", {"lora_name": "new", "lora_path": path})
        assert (loaded.status_code, loaded.text) == (200, "Success: LoRA adapter 'new' added successfully.")
        await server.openai.completions.create(model="new", prompt="a")
        again = await server.post("/v1/load_lora_adapter", {"lora_name": "new", "lora_path": path})
        assert (again.status_code, again.json()["error"]["code"]) == (400, "already_loaded")
        body = {"lora_name": "new", "lora_path": path, "load_inplace": True}
        assert (await server.post("/v1/load_lora_adapter", body)).status_code == 200
        unloaded = await server.post("/v1/unload_lora_adapter", {"lora_name": "new"})
        assert (unloaded.status_code, unloaded.text) == (200, "Success: LoRA adapter 'new' removed successfully.")
        with pytest.raises(openai.NotFoundError):
            await server.openai.completions.create(model="new", prompt="a")
        assert "new" not in (await server.engine.status()).adapters


BAD_LOADS: tuple[dict[str, object], ...] = (
    {"lora_name": "x"},
    {"lora_name": "x", "lora_path": "/nowhere"},
    {"lora_name": "x", "lora_path": "/no\0where"},
    {"lora_name": "a+b", "lora_path": "/x"},
    {"lora_name": "a:1", "lora_path": "/x"},
    {"lora_name": BASE, "lora_path": "/x", "load_inplace": True},
    {"lora_name": "x", "lora_path": "/x", "unheard": 1},
)


async def test_bad_loads_and_unloads_are_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeEngine(), adapter_loading=True) as server:
        for body in BAD_LOADS:
            response = await server.post("/v1/load_lora_adapter", body)
            assert response.status_code == 400, body
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        for name in (BASE, "unheard"):
            response = await server.post("/v1/unload_lora_adapter", {"lora_name": name})
            assert (response.status_code, response.json()["error"]["code"]) == (404, "adapter_not_found")


async def test_loading_is_off_unless_enabled(tmp_path: Path) -> None:
    async with serving(tmp_path, FakeEngine()) as server:
        load = await server.post("/v1/load_lora_adapter", {"lora_name": "x", "lora_path": "/x"})
        unload = await server.post("/v1/unload_lora_adapter", {"lora_name": "poet"})
        assert (load.status_code, unload.status_code) == (404, 404)
        assert "--enable-adapter-loading" in load.json()["error"]["message"]
        assert "poet" in (await server.engine.status()).adapters
