"""How long `openlora serve` takes from its command line to the first token, with its kernels built already.

    python node/bench/cold_start.py MODEL [--runs 3] [--dtype bfloat16] [--cache-dir DIR]

Prints one JSON line: the medians of the seconds until it says that it serves, and until a client who asks then has a
token. The files are in the page cache, as after an earlier start.
"""

import argparse
import json
import socket
import statistics
import tempfile
import time
from pathlib import Path

from bench.streaming import cache_home, request, server

VOCABULARY = 256  # of the prompt's tokens


def start(model: Path, dtype: str, home: Path) -> tuple[float, float]:
    """Seconds to the line that says where it serves, and to the first token."""
    started_s = time.perf_counter()
    with server(model, dtype, [], home) as (_, port):
        ready_s = time.perf_counter() - started_s
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(request(0, VOCABULARY, []))
            answer = b""
            while b"data: " not in answer:
                answer += (data := client.recv(1 << 16))
                assert data, answer.decode()
        return ready_s, time.perf_counter() - started_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--cache-dir", type=Path, default=Path("var/cache"), help="where compiled kernels are kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = cache_home(Path(folder), arguments.cache_dir)
        start(arguments.model, arguments.dtype, home)
        runs = [start(arguments.model, arguments.dtype, home) for _ in range(arguments.runs)]
    ready, first = zip(*runs, strict=True)
    result = {
        "dtype": arguments.dtype,
        "serving_s": round(statistics.median(ready), 2),
        "first_token_s": round(statistics.median(first), 2),
        "runs": [round(one, 2) for one in first],
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
