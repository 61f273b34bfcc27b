"""An RPC between an agent and a real chain that fails in every way RPCs do, as a seed decides."""

import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import httpx

TAGGED: Final = {"eth_call": 1, "eth_getBalance": 1, "eth_getTransactionCount": 1, "eth_getCode": 1}
NONSENSE: Final = (None, {}, [], [{}], "0xzz", "latest", 7, {"number": "0x1"})
Answer = dict[str, Any]


class FaultyRpc:
    """`share` of all requests meet one of the faults; `faults` counts them."""

    def __init__(self, chain_url: str, seed: int, share: float) -> None:
        self.url = ""
        self.share = share
        self.faults: Counter[str] = Counter()
        self._chain = httpx.Client(base_url=chain_url, timeout=10, trust_env=False)
        self._dice = random.Random(seed)
        self._lock = threading.Lock()

    def turn_to(self, chain_url: str) -> None:
        """From now on it shows another chain."""
        self._chain.base_url = chain_url

    def handle(self, asked: Answer) -> tuple[int, bytes] | None:
        """HTTP status and body; None drops the connection."""
        with self._lock:
            fault = self._dice.choice(FAULTS) if self._dice.random() < self.share else None
            behind, nonsense = self._dice.randint(1, 3), self._dice.choice(NONSENSE)
        if fault is None:
            return 200, self._body(asked, self.ask(asked["method"], asked["params"]))
        self.faults[fault] += 1
        match fault:
            case "drop":
                return None
            case "500" | "429":
                return int(fault), b"no"
            case "html":
                return 200, b"<html>log in</html>"
            case "nonsense":
                return 200, self._body(asked, {"result": nonsense})
            case "refused":
                return 400, self._body(asked, {"error": {"code": "SERVER_ERROR", "message": "too large a range"}})
            case "lost answer":
                self.ask(asked["method"], asked["params"])
                return 502, b"bad gateway"
            case "swallowed" if asked["method"] == "eth_sendRawTransaction":
                return 200, self._body(asked, {"result": "0x" + "11" * 32})
            case "no receipt" if asked["method"] == "eth_getTransactionReceipt":
                return 200, self._body(asked, {"result": None})
            case "logs twice" if asked["method"] == "eth_getLogs":
                answer = self.ask(asked["method"], asked["params"])
                found = answer.get("result") or []
                gone = [{**log, "removed": True, "blockHash": "0x" + "77" * 32} for log in found]
                return 200, self._body(asked, answer | {"result": [*reversed(found), *gone, *found]})
            case _:
                return 200, self._body(asked, self._as_of(asked["method"], asked["params"], behind))

    def ask(self, method: str, params: list[Any]) -> Answer:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        answer: Answer = self._chain.post("/", json=body).json()
        return answer

    def _as_of(self, method: str, params: list[Any], behind: int) -> Answer:
        """What a server that many blocks behind would say."""
        head = int(self.ask("eth_blockNumber", [])["result"], 16) - behind
        if method == "eth_blockNumber":
            return {"result": hex(head)}
        if method == "eth_getBlockByNumber" and params[0] != "latest" and int(params[0], 16) > head:
            return {"result": None}
        where = 0 if method == "eth_getBlockByNumber" else TAGGED.get(method)
        if where is None:
            return self.ask(method, params)
        if params[where] in ("latest", "pending"):
            params = [*params[:where], hex(head), *params[where + 1 :]]
        elif int(params[where], 16) > head:
            return {"error": {"code": -32000, "message": "header not found"}}
        return self.ask(method, params)

    @staticmethod
    def _body(asked: Answer, answer: Answer) -> bytes:
        return json.dumps({**answer, "jsonrpc": "2.0", "id": asked["id"]}).encode()


FAULTS: Final = (
    *("drop", "500", "429", "html", "nonsense", "refused", "lost answer", "swallowed", "no receipt", "logs twice"),
    *("behind",) * 6,
)


@contextmanager
def faulty_rpc(chain_url: str, seed: int, share: float) -> Iterator[FaultyRpc]:
    rpc = FaultyRpc(chain_url, seed, share)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(rpc.handle))
    rpc.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield rpc
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        rpc._chain.close()


def _handler(handle: Callable[[Answer], tuple[int, bytes] | None]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            answer = handle(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if answer is None:
                self.close_connection = True
                return
            status, body = answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    return Handler
