"""The live nodes as people and dashboards read them."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from openlora.p2p.presence.record import Model, Presence, Tier


class View(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Root of what follows."""


class GpuView(View, frozen=True):
    name: str
    memory_bytes: int
    driver: str


class HardwareView(View, frozen=True):
    cpu: str
    cores: int
    ram_bytes: int
    gpus: tuple[GpuView, ...]


class ModelView(View, frozen=True):
    base_id: str
    name: str
    dtype: str
    max_context: int  # tokens
    engine: str


class TierView(View, frozen=True):
    total: int
    digests: tuple[str, ...]  # the most useful


class TiersView(View, frozen=True):
    slots: TierView
    ram: TierView
    disk: TierView


class AskView(View, frozen=True):
    """Token wei per 1,000 tokens, in decimal."""

    in_wei_per_k: str
    out_wei_per_k: str


class LoadView(View, frozen=True):
    """Jobs and requests."""

    queued: int
    running: int
    capacity: int


class NodeView(View, frozen=True):
    """A node as its presence record tells it; times are unix seconds. Every text is a stranger's."""

    operator: str
    peer_id: str
    addresses: tuple[str, ...]
    hardware: HardwareView
    models: tuple[ModelView, ...]
    adapters: TiersView
    ask: AskView
    load: LoadView
    version: str
    sequence: int
    issued_at: int
    expires_at: int


def node_view(record: Presence) -> NodeView:
    status = record.status
    hardware, load = status.hardware, status.load
    return NodeView(
        operator=record.operator,
        peer_id=record.peer,
        addresses=record.addresses,
        hardware=HardwareView(
            cpu=hardware.cpu,
            cores=hardware.cores,
            ram_bytes=hardware.ram_bytes,
            gpus=tuple(
                GpuView(name=gpu.name, memory_bytes=gpu.memory_bytes, driver=gpu.driver) for gpu in hardware.gpus
            ),
        ),
        models=tuple(_model_view(model) for model in status.models),
        adapters=TiersView(
            slots=_tier(status.adapters.slots), ram=_tier(status.adapters.ram), disk=_tier(status.adapters.disk)
        ),
        ask=AskView(in_wei_per_k=status.ask.in_price_per_k, out_wei_per_k=status.ask.out_price_per_k),
        load=LoadView(queued=load.queued, running=load.running, capacity=load.capacity),
        version=status.version,
        sequence=record.sequence,
        issued_at=record.issued_at,
        expires_at=record.expires_at,
    )


def _model_view(model: Model) -> ModelView:
    return ModelView(
        base_id=f"0x{model.base_id}",
        name=model.name,
        dtype=model.dtype,
        max_context=model.max_context,
        engine=model.engine,
    )


def _tier(tier: Tier) -> TierView:
    return TierView(total=tier.total, digests=tuple("0x" + digest.hex() for digest in tier.digests()))


COLUMNS = ("operator", "machine", "models", "in slots #", "in RAM #", "on disk #", "ask in:out OLRA", "jobs", "seen")


def table_rows(views: Sequence[Mapping[str, Any]], tokens: Callable[[int], str]) -> Sequence[Sequence[object]]:
    """One row a node, given as JSON, under COLUMNS; `tokens` writes wei."""
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
