"""As much of a Kubo's RPC as we use, on loopback, with the faults that a test wants."""

import json
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from openlora.p2p.content.cid import Cid, Codec

CODECS = {"raw": Codec.RAW, "dag-pb": Codec.DAG_PB}


@dataclass
class FakeKubo:
    """`blocks` and `pins` are what it holds; `calls` are (command, options) in order."""

    rpc: str  # multiaddr
    blocks: dict[str, bytes] = field(default_factory=dict)
    pins: list[str] = field(default_factory=list)
    calls: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    answer: tuple[int, bytes] | None = None  # (status, body) for every call from now on
    name_as: str | None = None  # what block/put says the name of every block is
    hang: threading.Event | None = None  # calls wait for it


@contextmanager
def fake_kubo() -> Iterator[FakeKubo]:
    server = _Server(("127.0.0.1", 0), _Handler)
    kubo = server.kubo = FakeKubo(f"/ip4/127.0.0.1/tcp/{server.server_port}/http")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield kubo
    finally:
        if kubo.hang is not None:
            kubo.hang.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    kubo: FakeKubo
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that had enough
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, _Server)
        kubo = self.server.kubo
        url = urlsplit(self.path)
        options = {name: values[-1] for name, values in parse_qs(url.query).items()}
        body = self._body()
        command = url.path.removeprefix("/api/v0/")
        kubo.calls.append((command, options))
        if kubo.hang is not None:
            kubo.hang.wait(10)
        if kubo.answer is not None:
            self._answer(*kubo.answer)
        elif command == "block/get" and options["arg"] in kubo.blocks:
            self._answer(200, kubo.blocks[options["arg"]])
        elif command == "block/put":
            block = _first_part(body, self.headers["Content-Type"])
            cid = str(Cid.of(CODECS[options["cid-codec"]], block))
            kubo.blocks[cid] = block
            self._answer(200, json.dumps({"Key": kubo.name_as or cid, "Size": len(block)}).encode())
        elif command == "pin/add" and options["arg"] in kubo.blocks:
            kubo.pins.append(options["arg"])
            self._answer(200, json.dumps({"Pins": [options["arg"]]}).encode())
        else:
            self._answer(500, b'{"Message":"context deadline exceeded","Code":0,"Type":"error"}')

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream" if status == 200 else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *args: object) -> None:
        pass


def _first_part(body: bytes, content_type: str) -> bytes:
    boundary = content_type.split("boundary=")[1].strip('"').encode()
    part = body.split(b"--" + boundary)[1]
    return part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")
