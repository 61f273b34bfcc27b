"""The engine alone, behind an OpenAI-compatible HTTP server: what `openlora serve` runs."""

import asyncio
import gc
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openlora.node.adapters.folder import copy_adapter
from openlora.node.api.app import create_app
from openlora.node.api.catalog import Catalog, ServedAdapter
from openlora.node.api.limits import Limits
from openlora.node.api.server import Server, bind
from openlora.node.api.service import TextService
from openlora.node.engine.client import InferenceEngine
from openlora.node.engine.supervisor import EngineOptions, supervised_engines
from openlora.node.engine.text import TextModel
from openlora.node.errors import AdapterError
from openlora.node.tasks import running


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
            await _load_adapters(engine, catalog, options.adapters, Path(state_dir))
            service = TextService(engine, await text, catalog, options.limits)
            app = create_app(service, keys=options.keys, adapter_loading=options.adapter_loading)
            gc.freeze()  # what the start has made stays: no collection walks it while streams wait
            sock.listen()  # whoever reads that it serves can connect
            _say_ready(service, sock)
            await server.serve(app, sock, options.limits)


async def _load_adapters(
    engine: InferenceEngine, catalog: Catalog, adapters: Sequence[ServedAdapter], copies: Path
) -> None:
    for adapter in adapters:
        try:
            await engine.load_adapter(adapter.name, await asyncio.to_thread(_without_links, adapter.path, copies))
        except AdapterError as error:
            raise AdapterError(f"--adapter {adapter.name}={adapter.path} is refused: {error}") from None
        catalog.add(adapter)


def _without_links(folder: str, copies: Path) -> str:
    """Where the engine, which follows no link, can read the adapter in `folder`."""
    try:
        if not any(path.is_symlink() for path in Path(folder).iterdir()):
            return folder
    except OSError as error:
        raise AdapterError(f"{folder} cannot be read: {error.strerror}") from error
    plain = tempfile.mkdtemp(dir=copies)
    copy_adapter(Path(folder), Path(plain))
    return plain


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
