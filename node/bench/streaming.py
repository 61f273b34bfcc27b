"""What HTTP costs: 32 clients that stream from a real `openlora serve` on this machine, beside the engine by itself.

    python node/bench/streaming.py MODEL [--adapters 0 32] [--runs 3] [--dtype bfloat16] [--cache-dir DIR]

The workload is throughput.py's: 32 requests of 64 prompt and 64 output tokens, request i on adapter i mod N, here each
over a connection of its own, a server-sent event for what a step brings. Prints one JSON line for each N: output
tokens/s over HTTP and of the engine, medians of runs that alternate, and the median of the pairs' ratios; the clients'
own processor time is part of the cost.
"""

import argparse
import json
import os
import re
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from bench.throughput import OUTPUT, PROMPT, REQUESTS, load, run_once, write_adapter

from openlora.node.engine.engine import Engine
from openlora.node.engine.messages import AdapterLoaded, LoadAdapter

_USAGE = re.compile(rb'"completion_tokens":(\d+)')
_END = b"0\r\n\r\n"  # of a chunked body
_BASE = "base"


def cache_home(folder: Path, kernels: Path) -> Path:
    """A place for XDG_CACHE_HOME in which a server finds the kernels that are kept in `kernels`."""
    home = folder / "cache"
    home.mkdir()
    (home / "openlora").symlink_to(kernels.resolve())
    return home


@contextmanager
def server(model: Path, dtype: str, adapters: Sequence[Path], home: Path) -> Iterator[tuple[psutil.Process, int]]:
    """A running `openlora serve`, and its port."""
    command = [sys.executable, "-m", "openlora.node", "serve", "--model", str(model), "--dtype", dtype, "--port", "0"]
    command += ["--served-model-name", _BASE, *(f"--adapter={path.name}={path}" for path in adapters)]
    environment = os.environ | {"XDG_CACHE_HOME": str(home)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        try:
            while not (line := process.stderr.readline()).startswith("openlora: serving"):
                assert line, "the server did not start"
            yield psutil.Process(process.pid), int(re.findall(r":(\d+)/", line)[0])
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def request(number: int, vocabulary: int, adapters: Sequence[Path]) -> bytes:
    """Request `number`, whose prompt no other number has: the server's prefix cache finds nothing."""
    prompt = torch.randint(vocabulary, (PROMPT,), generator=torch.Generator().manual_seed(number)).tolist()
    body = {
        "model": adapters[number % len(adapters)].name if adapters else _BASE,
        "prompt": prompt,
        "max_tokens": OUTPUT,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    payload = json.dumps(body).encode()
    head = ("POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json")
    return "\r\n".join((*head, f"Content-Length: {len(payload)}", "", "")).encode() + payload


def stream_all(port: int, requests: Sequence[bytes]) -> float:
    """Seconds until every answer has come whole, all requests sent at once."""
    answers: dict[socket.socket, bytearray] = {}
    with selectors.DefaultSelector() as selector:
        for _ in requests:
            client = socket.create_connection(("127.0.0.1", port))
            answers[client] = bytearray()
            selector.register(client, selectors.EVENT_READ)
        started_s = time.perf_counter()
        for client, one in zip(answers, requests, strict=True):
            client.sendall(one)
        while selector.get_map():
            for key, _ in selector.select():
                assert isinstance(key.fileobj, socket.socket)
                answer = answers[key.fileobj]
                data = key.fileobj.recv(1 << 16)
                answer += data
                if not data or answer.endswith(_END):
                    selector.unregister(key.fileobj)
        seconds = time.perf_counter() - started_s
    for client, answer in answers.items():
        client.close()
        (tokens,) = _USAGE.findall(answer) or [b"none"]
        assert tokens == b"%d" % OUTPUT, answer[:500].decode()
    return seconds


def cpu_s(process: psutil.Process) -> float:
    return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children()))


def measure(engine: Engine, process: psutil.Process, port: int, adapters: Sequence[Path], runs: int) -> dict[str, Any]:
    """Medians of `runs` after a warm-up, HTTP and engine in turn."""
    http_s, engine_s, server_cpu_s = [], [], []
    for run in range(1 + runs):
        first = run * REQUESTS
        requests = [request(first + i, engine.info.vocab_size, adapters) for i in range(REQUESTS)]
        before_s = cpu_s(process)
        http_s.append(stream_all(port, requests))
        server_cpu_s.append(cpu_s(process) - before_s)
        engine_s.append(run_once(engine, len(adapters), first))  # the same texts: what drafts give depends on them
    http_s, engine_s = http_s[1:], engine_s[1:]
    return {
        "engine": f"openlora-{engine.info.backend}",
        "dtype": engine.info.dtype,
        "adapters": len(adapters),
        "clients": REQUESTS,
        "http_tok_s": round(REQUESTS * OUTPUT / statistics.median(http_s), 1),
        "engine_tok_s": round(REQUESTS * OUTPUT / statistics.median(engine_s), 1),
        "ratio": round(statistics.median(alone / http for alone, http in zip(engine_s, http_s, strict=True)), 3),
        "http_s": [round(one, 3) for one in http_s],
        "engine_s": [round(one, 3) for one in engine_s],
        "server_cpu_s": round(statistics.median(server_cpu_s[1:]), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--adapters", type=int, nargs="+", default=[0, 32])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--cache-dir", type=Path, default=Path("var/cache"), help="where compiled kernels are kept")
    arguments = parser.parse_args()
    engine = load(arguments.model, arguments.dtype, "auto", "best", arguments.cache_dir, speculation=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        home = cache_home(folder, arguments.cache_dir)
        paths = [write_adapter(folder, arguments.model, number) for number in range(max(arguments.adapters))]
        for number, path in enumerate(paths):
            (loaded,) = engine.handle(LoadAdapter(key=f"a{number}", path=str(path)))
            assert isinstance(loaded, AdapterLoaded), loaded
        with server(arguments.model, arguments.dtype, paths, home) as (process, port):
            for adapters in arguments.adapters:
                print(json.dumps(measure(engine, process, port, paths[:adapters], arguments.runs)), flush=True)


if __name__ == "__main__":
    main()
