"""The live nodes as people and dashboards read them."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from openlora.p2p.presence.record import Presence, Tier


def node_view(record: Presence) -> Mapping[str, Any]:
    """One node as JSON: prices in token wei as text, times in unix seconds, adapters by the digests it tells of."""
    status = record.status
    hardware = status.hardware
    return {
        "operator": record.operator,
        "peer_id": record.peer,
        "addresses": list(record.addresses),
        "hardware": {
            "cpu": hardware.cpu,
            "cores": hardware.cores,
            "ram_bytes": hardware.ram_bytes,
            "gpus": [
                {"name": gpu.name, "memory_bytes": gpu.memory_bytes, "driver": gpu.driver} for gpu in hardware.gpus
            ],
        },
        "models": [
            {
                "base_id": f"0x{model.base_id}",
                "name": model.name,
                "dtype": model.dtype,
                "max_context": model.max_context,
                "engine": model.engine,
            }
            for model in status.models
        ],
        "adapters": {
            name: {"total": tier.total, "digests": ["0x" + digest.hex() for digest in tier.digests()]}
            for name, tier in _tiers(record).items()
        },
        "ask": {"in_wei_per_k": status.ask.in_price_per_k, "out_wei_per_k": status.ask.out_price_per_k},
        "load": {"queued": status.load.queued, "running": status.load.running, "capacity": status.load.capacity},
        "version": status.version,
        "sequence": record.sequence,
        "issued_at": record.issued_at,
        "expires_at": record.expires_at,
    }


COLUMNS = ("operator", "machine", "models", "in slots #", "in RAM #", "on disk #", "ask in:out OLRA", "jobs", "seen")


def table_rows(views: Sequence[Mapping[str, Any]], tokens: Callable[[int], str]) -> Sequence[Sequence[object]]:
    """One row a node, under COLUMNS; `tokens` writes wei."""
    return [_row(view, tokens) for view in sorted(views, key=lambda view: str(view["operator"]))]


def _row(view: Mapping[str, Any], tokens: Callable[[int], str]) -> Sequence[object]:
    load, ask, adapters = view["load"], view["ask"], view["adapters"]
    waiting = f" +{load['queued']}" if load["queued"] else ""
    return (
        view["operator"],
        _machine(view["hardware"]),
        ", ".join(_model(model) for model in view["models"]),
        *(adapters[tier]["total"] for tier in ("slots", "ram", "disk")),
        f"{tokens(int(ask['in_wei_per_k']))}:{tokens(int(ask['out_wei_per_k']))}",
        f"{load['running']}/{load['capacity']}{waiting}",
        f"{max(0, int(time.time()) - view['issued_at'])} s ago",
    )


def _model(model: Mapping[str, Any]) -> str:
    """vLLM is named: what it answers cannot be computed again."""
    foreign = f" on {model['engine']}" if model["engine"].startswith("vllm") else ""
    return f"{model['name']} {model['dtype']}{foreign}"


def _machine(hardware: Mapping[str, Any]) -> str:
    gpus = [f"{gpu['name']} {gpu['memory_bytes'] >> 30} GiB" for gpu in hardware["gpus"]]
    return ", ".join(gpus) or f"{hardware['cores']} × {hardware['cpu']}, {hardware['ram_bytes'] >> 30} GiB"


def _tiers(record: Presence) -> Mapping[str, Tier]:
    adapters = record.status.adapters
    return {"slots": adapters.slots, "ram": adapters.ram, "disk": adapters.disk}
