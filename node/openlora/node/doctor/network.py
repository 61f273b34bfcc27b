"""The ports that the node listens on, the peers it joins by, and what else it speaks with."""

import asyncio
import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiomqtt
import httpx

from openlora.node.api.keys import read_keys
from openlora.node.api.server import is_loopback
from openlora.node.config import MqttConfig, NodeConfig, TelemetryConfig
from openlora.node.doctor.finding import Code, Finding, critical, warning
from openlora.node.errors import ConfigError
from openlora.node.telemetry.broker import Broker

TIMEOUT_S: Final = 2.5


@dataclass(frozen=True, slots=True)
class Place:
    """Where something listens."""

    host: str
    port: int

    @classmethod
    def of(cls, multiaddr: str) -> "Place | None":
        """/ip4/127.0.0.1/tcp/4001/… ; None for what is no TCP address."""
        parts = multiaddr.split("/")
        if len(parts) < 5 or parts[1] not in ("ip4", "ip6", "dns", "dns4", "dns6") or parts[3] != "tcp":
            return None
        return cls(parts[2], int(parts[4])) if parts[4].isdigit() else None


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    busy_ports: tuple[tuple[str, str], ...]  # the key that names it, and why it cannot be listened on
    bootstrap: tuple[tuple[str, str], ...]  # each peer's multiaddr, and why it was not reached; "": it was
    lonely: bool  # nobody to join by
    dashboard_fault: str = ""
    kubo_fault: str = ""
    broker_fault: str = ""
    broker_refusal: str = ""


async def look_at_network(config: NodeConfig, operator: str | None, *, ports_are_its_own: bool) -> NetworkFacts:
    """`ports_are_its_own`: an agent runs or starts. `operator` is the broker's user name where none is configured."""
    reached, kubo_fault, (broker_fault, refusal) = await asyncio.gather(
        asyncio.gather(*map(_unreached, config.network.bootstrap)),
        _kubo_fault(config.storage.kubo_rpc),
        _ask_broker(config.telemetry.mqtt, operator),
    )
    return NetworkFacts(
        busy_ports=() if ports_are_its_own else tuple(_busy_ports(config)),
        bootstrap=tuple(zip(config.network.bootstrap, reached, strict=True)),
        lonely=not config.network.bootstrap,
        dashboard_fault=_dashboard_fault(config.telemetry),
        kubo_fault=kubo_fault,
        broker_fault=broker_fault,
        broker_refusal=refusal,
    )


def _busy_ports(config: NodeConfig) -> Iterator[tuple[str, str]]:
    wanted = [("network.listen", address, Place.of(address)) for address in config.network.listen]
    host, _, port = config.telemetry.listen.rpartition(":")
    if port.isdigit():
        wanted.append(("telemetry.listen", config.telemetry.listen, Place(host.strip("[]"), int(port))))
    for key, shown, place in wanted:
        if place is not None and (fault := _unbindable(place)):
            yield f"{key} {shown}", fault


def _dashboard_fault(telemetry: TelemetryConfig) -> str:
    host = telemetry.listen.rpartition(":")[0].strip("[]")
    try:
        if telemetry.key_file:
            read_keys(Path(telemetry.key_file), "telemetry.key_file")
        elif telemetry.listen and not is_loopback(host):
            return f"telemetry.listen {telemetry.listen} can be reached from other machines"
    except ConfigError as error:
        return str(error)
    return ""


def _unbindable(place: Place) -> str:
    with socket.socket(socket.AF_INET6 if ":" in place.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((place.host, place.port))
        except OSError as error:
            return error.strerror or str(error)
    return ""


async def _unreached(multiaddr: str) -> str:
    place = Place.of(multiaddr)
    if place is None or "/p2p/" not in multiaddr:
        return "it must read /ip4/ADDRESS/tcp/PORT/p2p/PEER-ID"
    return await _unconnected(place)


async def _unconnected(place: Place) -> str:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            _, writer = await asyncio.open_connection(place.host, place.port)
    except TimeoutError:
        return f"no answer in {TIMEOUT_S:g} s"
    except OSError as error:
        return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return ""


async def _kubo_fault(rpc: str) -> str:
    if not rpc:
        return ""
    place = Place.of(rpc)
    if place is None:
        return "it must read /ip4/ADDRESS/tcp/PORT"
    host = f"[{place.host}]" if ":" in place.host else place.host
    try:
        async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as http:
            answer = await http.post(f"http://{host}:{place.port}/api/v0/version")
            return "" if answer.is_success and "Version" in answer.json() else "what answers there is no Kubo"
    except httpx.HTTPError as error:
        return str(error) or type(error).__name__
    except (ValueError, TypeError, RecursionError):
        return "what answers there is no Kubo"


async def _ask_broker(config: MqttConfig, operator: str | None) -> tuple[str, str]:
    """Why the broker does not answer, and why it refuses us; two empty texts if all is well or there is none."""
    if not config.host:
        return "", ""
    try:
        broker = Broker.of(config, operator or "")
    except ConfigError as error:
        return "", str(error)
    if not broker.username:  # nobody knows yet who we are
        return await _unconnected(Place(config.host, config.port)), ""
    identifier = f"openlora-doctor-{secrets.token_hex(4)}"  # the agent's own would throw it out
    try:
        async with broker.connected(identifier, TIMEOUT_S):
            return "", ""
    except aiomqtt.MqttCodeError as error:
        return "", str(error)
    except (aiomqtt.MqttError, OSError) as error:
        return str(error), ""


# ---- judging --------------------------------------------------------------------------------------------------------


def check_network(network: NetworkFacts) -> Iterator[Finding]:
    for where, fault in network.busy_ports:
        yield critical(
            Code.PORT_BUSY,
            f"{where} cannot be listened on: {fault}",
            "end what uses it, or choose another port",
        )
    if network.dashboard_fault:
        yield critical(
            Code.DASHBOARD_UNGUARDED,
            f"the node would not start: {network.dashboard_fault}",
            "name a file of long keys, one a line, in telemetry.key_file, or listen on 127.0.0.1",
        )
    yield from _bootstrap(network.bootstrap)
    if network.lonely:
        yield warning(
            Code.NETWORK_LONELY,
            "network.bootstrap is empty: beyond the local network nobody is found, nor their adapters, until they call",
            "name nodes of your network in network.bootstrap; `openlora status --json` says their addresses",
        )
    if network.kubo_fault:
        yield critical(
            Code.KUBO_DOWN,
            f"the Kubo of storage.kubo_rpc does not answer: {network.kubo_fault}",
            'start it, or set kubo_rpc = "" to use the node\'s own block store',
        )
    if network.broker_fault:
        yield warning(
            Code.BROKER_DOWN,
            f"the broker of telemetry.mqtt does not answer: {network.broker_fault}",
            "start it, or correct host, port, tls and ca_file",
        )
    if network.broker_refusal:
        yield warning(
            Code.BROKER_REFUSES,
            f"the broker of telemetry.mqtt refuses this node: {network.broker_refusal}",
            "correct username and password_file, or add the node to the broker's passwords",
        )


def _bootstrap(reached: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    faults = [(multiaddr, fault) for multiaddr, fault in reached if fault]
    severe = critical if len(faults) == len(reached) else warning
    for multiaddr, fault in faults:
        yield severe(
            Code.BOOTSTRAP_UNREACHABLE,
            f"the peer {multiaddr} was not reached: {fault}",
            "ask its operator, or name other peers in network.bootstrap",
        )
