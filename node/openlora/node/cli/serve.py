"""`openlora serve`: the engine alone, behind an OpenAI-compatible HTTP server."""

import asyncio
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from openlora.node.api.app import create_app
from openlora.node.api.catalog import Catalog, ServedAdapter, check_name
from openlora.node.api.keys import read_keys
from openlora.node.api.limits import Limits
from openlora.node.api.server import Server, bind, is_loopback
from openlora.node.api.service import TextService
from openlora.node.cli.engine_choice import Devices, EngineChoice, VllmPython, chosen_engine
from openlora.node.config import Backend, LogConfig, ModelConfig
from openlora.node.engine.backends import engine_options
from openlora.node.engine.client import InferenceEngine
from openlora.node.engine.supervisor import EngineOptions, supervised_engines
from openlora.node.engine.text import TextModel
from openlora.node.errors import AdapterError, ConfigError, ModelError
from openlora.node.logs import set_up
from openlora.node.tasks import running

DTYPES = ("auto", "bfloat16", "float32")
WEIGHTS = ("auto", "full", "int8", "int4")


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """A checked command line."""

    engine: EngineOptions
    served_model_name: str
    adapters: tuple[ServedAdapter, ...]
    host: str
    port: int
    keys: tuple[str, ...]
    adapter_loading: bool
    limits: Limits


def serve(
    model: Annotated[Path, typer.Option(help="The base model: a Hugging Face directory or a GGUF file.")],
    dtype: Annotated[str, typer.Option(help="auto, bfloat16 or float32.")] = "auto",
    weights: Annotated[
        str, typer.Option(help="auto (as the model's file keeps them), full (in dtype), or rounded to int8 or int4.")
    ] = "auto",
    adapter: Annotated[list[str] | None, typer.Option(metavar="NAME=PATH", help="An adapter; repeatable.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; other than loopback needs --api-key-file.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8000,
    api_key_file: Annotated[Path | None, typer.Option(help="File of API keys, one a line; every route asks.")] = None,
    enable_adapter_loading: Annotated[
        bool, typer.Option("--enable-adapter-loading", help="Let clients load adapters from this machine's disk.")
    ] = False,
    served_model_name: Annotated[str | None, typer.Option(help="The base model's name for clients.")] = None,
    engine: EngineChoice = Backend.OPENLORA,
    vllm_python: VllmPython = "",
    device: Devices = None,
) -> None:
    """Serve a base model and its adapters to any OpenAI client."""
    if dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype} is unknown; choose {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")
    if weights not in WEIGHTS:
        raise ConfigError(f"--weights {weights} is unknown; choose {', '.join(WEIGHTS[:-1])} or {WEIGHTS[-1]}")
    if not model.exists():
        raise ModelError(f"--model {model} does not exist; give a Hugging Face directory or a GGUF file")
    keys = () if api_key_file is None else read_keys(api_key_file, "--api-key-file")
    if not keys and not is_loopback(host):
        raise ConfigError(f"--host {host} can be reached from other machines; protect it with --api-key-file FILE")
    options = ServeOptions(
        engine=engine_options(
            ModelConfig(path=model, dtype=dtype, weights=weights), chosen_engine(engine, vllm_python, device)
        ),
        served_model_name=check_name(served_model_name or _name_of(model)),
        adapters=tuple(_adapter(text) for text in adapter or ()),
        host=host,
        port=port,
        keys=keys,
        adapter_loading=enable_adapter_loading,
        limits=Limits(),
    )
    _refuse_same_names(options)
    set_up(LogConfig(), os.environ)
    try:
        asyncio.run(run_server(options))
    except asyncio.CancelledError:  # a signal while the model was being loaded
        raise typer.Exit(130) from None


async def run_server(options: ServeOptions) -> None:
    """Serves until SIGTERM or SIGINT, and leaves no process behind. Raises OpenLoraError for what cannot be served."""
    server = Server()
    with (
        bind(options.host, options.port, options.limits) as sock,
        tempfile.TemporaryDirectory(prefix="openlora-") as state_dir,
        server.signals(),
    ):
        async with (
            running(asyncio.to_thread(TextModel.load, options.engine.model), "tokenizer") as text,
            supervised_engines(options.engine, Path(state_dir)) as engine,
        ):
            catalog = Catalog(options.served_model_name, str(options.engine.model))
            await _load_adapters(engine, catalog, options.adapters)
            service = TextService(engine, await text, catalog, options.limits)
            app = create_app(service, keys=options.keys, adapter_loading=options.adapter_loading)
            sock.listen()  # whoever reads that it serves can connect
            _say_ready(service, sock)
            await server.serve(app, sock, options.limits)


async def _load_adapters(engine: InferenceEngine, catalog: Catalog, adapters: Sequence[ServedAdapter]) -> None:
    for adapter in adapters:
        try:
            await engine.load_adapter(adapter.name, adapter.path)
        except AdapterError as error:
            raise AdapterError(f"--adapter {adapter.name}={adapter.path} is refused: {error}") from None
        catalog.add(adapter)


def _say_ready(service: TextService, sock: socket.socket) -> None:
    host, port = sock.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    info, adapters = service.engine.info, len(service.catalog.adapters)
    print(
        f"openlora: serving {service.catalog.base.name} ({info.family}, {info.numbers}, {info.backend} kernels) "
        f"and {adapters} adapter{'' if adapters == 1 else 's'} on http://{address}/v1",
        file=sys.stderr,
        flush=True,
    )


def _adapter(text: str) -> ServedAdapter:
    name, equals, path = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"--adapter {text} is not NAME=PATH")
    if not Path(path).is_dir():
        raise AdapterError(f"--adapter {text}: {path} is no directory; give the one with adapter_config.json in it")
    return ServedAdapter(check_name(name), str(Path(path).resolve()))


def _refuse_same_names(options: ServeOptions) -> None:
    seen = {options.served_model_name}
    for adapter in options.adapters:
        if adapter.name in seen:
            raise ConfigError(f"--adapter {adapter.name} is named twice, or like the base model; names must differ")
        seen.add(adapter.name)


def _name_of(model: Path) -> str:
    return model.stem if model.is_file() else model.absolute().name
