"""`openlora serve`: the engine alone, behind an OpenAI-compatible HTTP server."""

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openlora.node.cli.engine_choice import Devices, EngineChoice, VllmPython, chosen_engine
from openlora.node.config import Backend, LogConfig, ModelConfig
from openlora.node.errors import AdapterError, ConfigError, ModelError

if TYPE_CHECKING:
    from openlora.node.api.catalog import ServedAdapter
    from openlora.node.serving import ServeOptions

DTYPES = ("auto", "bfloat16", "float32")
WEIGHTS = ("auto", "full", "int8", "int4")


def serve(
    model: Annotated[Path, typer.Option(help="The base model: a Hugging Face directory or a GGUF file.")],
    dtype: Annotated[
        str,
        typer.Option(help="auto (float32 if the model's file is, or where only that is fast), bfloat16 or float32."),
    ] = "auto",
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
    served_model_name: Annotated[
        str | None, typer.Option(help="The base model's name for clients; by default its folder's or file's.")
    ] = None,
    engine: EngineChoice = Backend.OPENLORA,
    vllm_python: VllmPython = "",
    device: Devices = None,
) -> None:
    """Serve a base model and its adapters to any OpenAI client."""
    from openlora.node.api.catalog import check_name
    from openlora.node.api.keys import read_keys
    from openlora.node.api.limits import Limits
    from openlora.node.api.server import is_loopback
    from openlora.node.engine.backends import engine_options
    from openlora.node.logs import set_up
    from openlora.node.serving import ServeOptions, run_server

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


def _adapter(text: str) -> "ServedAdapter":
    from openlora.node.api.catalog import ServedAdapter, check_name

    name, equals, path = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"--adapter {text} is not NAME=PATH")
    if not Path(path).is_dir():
        raise AdapterError(f"--adapter {text}: {path} is no directory; give the one with adapter_config.json in it")
    return ServedAdapter(check_name(name), str(Path(path).resolve()))


def _refuse_same_names(options: "ServeOptions") -> None:
    seen = {options.served_model_name}
    for adapter in options.adapters:
        if adapter.name in seen:
            raise ConfigError(f"--adapter {adapter.name} is named twice, or like the base model; names must differ")
        seen.add(adapter.name)


def _name_of(model: Path) -> str:
    return model.stem if model.is_file() else model.absolute().name
