"""`openlora init`: a node's folder, from flags or from a few questions."""

import asyncio
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openlora.node.cli.engine_choice import recommended_engine
from openlora.node.cli.job import parse_price
from openlora.node.cli.output import JsonFlag, Output, tokens
from openlora.node.errors import ConfigError, WrongChain

if TYPE_CHECKING:
    from openlora.node.new_node import Made, Needs, Plan

Ask = Callable[[str, str], str]  # question, default → answer

GIB = 1 << 30
LISTEN = "/ip4/0.0.0.0/tcp/4001"
DASHBOARD = "127.0.0.1:9464"
MODEL = "smollm2-135m-instruct"
PRICE = "0.1:0.2"


def init(
    rpc: Annotated[str | None, typer.Option(help="RPC URL of the chain.")] = None,
    chain_id: Annotated[int | None, typer.Option(help="The chain's id; by default the RPC is asked.")] = None,
    deployment: Annotated[Path | None, typer.Option(help="JSON file that names the contracts.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Base model: a Hugging Face directory, a GGUF file, or a name to fetch.")
    ] = None,
    price: Annotated[
        str | None, typer.Option(help=f"Ask IN:OUT, in tokens per 1,000 prompt and output tokens; {PRICE} by default.")
    ] = None,
    state: Annotated[Path, typer.Option(help="Folder for configuration, keys and journal.")] = Path("openlora-node"),
    bootstrap: Annotated[list[str] | None, typer.Option(help="Multiaddr of a peer to join by. Repeatable.")] = None,
    listen: Annotated[str, typer.Option(help="Multiaddr to listen on for peers.")] = LISTEN,
    dashboard: Annotated[
        str, typer.Option(help='Loopback host:port of the dashboard, /v1 and /metrics; "" for none.')
    ] = DASHBOARD,
    json: JsonFlag = False,
) -> None:
    """Write node.toml, the operator's configuration and keys into a folder, and say what to fund.

    Asks for what no flag says, on a terminal. Overwrites nothing.
    """
    from openlora.node.api.agent import DashboardPort
    from openlora.node.config import ChainConfig, NetworkConfig, TelemetryConfig
    from openlora.node.hardware import ram_available_bytes
    from openlora.node.new_node import Plan, fitting_engine, found_model, needs, served_chain, write

    output = Output(json)
    if (state / "node.toml").exists():
        raise ConfigError(f"{state / 'node.toml'} exists already; choose another --state, or edit that file")
    DashboardPort.of(TelemetryConfig(listen=dashboard))
    peers = checked_peers(bootstrap or ())
    ask = _ask if sys.stdin.isatty() and not json else _refuse
    for line in machine_lines(state):
        output.say(line)
    rpc = rpc or ask("RPC URL of the chain (--rpc)", "http://127.0.0.1:8545")
    served = served_chain(rpc)
    chain_id = chosen_chain(rpc, served, chain_id, ask)
    deployment = deployment or Path(ask("file that names the contracts (--deployment)", "deployment.json"))
    if not deployment.exists():
        raise ConfigError(f"{deployment} does not exist; --deployment must name a file that does")
    chain = ChainConfig(chain_id=chain_id, rpc_urls=(rpc,), deployment=deployment)
    wanted = None if served is None else asyncio.run(needs(chain))
    path = found_model(model or ask("base model (--model)", MODEL), state.parent / "models", output.say)
    in_price_wei, out_price_wei = parse_price(price or (PRICE if ask is _refuse else ask("ask (--price)", PRICE)))
    engine, why = recommended_engine()
    plan = Plan(
        state=state,
        rpc_url=rpc,
        chain_id=chain_id,
        deployment=deployment,
        model=path,
        in_price_wei_per_k=in_price_wei,
        out_price_wei_per_k=out_price_wei,
        engine=fitting_engine(engine, path, ram_available_bytes()),
        network=NetworkConfig(listen=(listen,), bootstrap=peers),
        dashboard=dashboard,
    )
    made = write(plan)
    show(output, plan, made, wanted, why)
    funding = {"hot_key_gas_wei": wanted.hot_key_gas_wei, "bond_wei": wanted.bond_wei} if wanted else None
    output.result(
        {
            "config": str(made.config),
            "operator_config": str(made.operator_config),
            "hot_key": made.hot_key,
            "operator": made.operator,
            "engine": str(plan.engine.backend),
            "dashboard": f"http://{dashboard}" if dashboard else None,
            "funding": funding,
        }
    )


def _ask(question: str, default: str) -> str:
    try:
        return str(typer.prompt(question, default=default, err=True))
    except typer.Abort:  # Ctrl-C, or an end of input
        raise KeyboardInterrupt from None


def _refuse(question: str, _default: str) -> str:
    raise ConfigError(f"{question} is missing; on a terminal `openlora init` asks for it")


def chosen_chain(rpc: str, served: int | None, wanted: int | None, ask: Ask) -> int:
    """The chain's id, by the RPC where it answers. Raises WrongChain when that is not the wanted one, ConfigError."""
    if wanted is not None:
        if served not in (None, wanted):
            raise WrongChain(f"{rpc} serves chain {served}, not {wanted}; correct --rpc or --chain-id")
        return wanted
    if served is not None:
        return served
    text = ask(f"{rpc} does not answer; the id of its chain (--chain-id)", "31337")
    if not text.isdigit():
        raise ConfigError(f"{text} is no chain id; give a whole number")
    return int(text)


def checked_peers(bootstrap: Sequence[str]) -> tuple[str, ...]:
    """The multiaddrs to join by. Raises ConfigError for what is none."""
    if not bootstrap:
        return ()
    from openlora.p2p.errors import P2PError
    from openlora.p2p.host.discovery import PeerAddress

    for text in bootstrap:
        try:
            PeerAddress.parse(text)
        except P2PError as error:
            raise ConfigError(f"--bootstrap: {error}; `openlora status --json` on that node has it") from None
    return tuple(bootstrap)


def machine_lines(state: Path) -> list[str]:
    """What the wizard found here."""
    from openlora.node.hardware import link_mbit, ram_available_bytes, read_hardware

    hardware, mbit = read_hardware(), link_mbit()
    folder = next(path for path in (state.absolute(), *state.absolute().parents) if path.is_dir())
    gpus = [f"{gpu.name}, {gpu.memory_bytes / GIB:.0f} GiB" for gpu in hardware.gpus]
    ram = f"{hardware.ram_bytes / GIB:.0f} GiB, {ram_available_bytes() / GIB:.0f} GiB available"
    return [
        f"processor  {hardware.cpu or 'unknown'}, {hardware.cores} cores",
        f"memory     {ram}",
        f"GPU        {'; '.join(gpus) or 'none with an NVIDIA driver'}",
        f"disk       {shutil.disk_usage(folder).free / GIB:.0f} GiB free at {folder}",
        f"network    {f'{mbit:,} Mbit/s' if mbit else 'speed unknown'}",
        "",
    ]


def _coins(wei: int) -> str:
    """Rounded up to 4 decimals."""
    return tokens(-(-wei // 10**14) * 10**14)


def show(output: Output, plan: "Plan", made: "Made", wanted: "Needs | None", why: str) -> None:
    engine = plan.engine
    output.say(f"{made.config} is the node's configuration; every key is explained in it.")
    output.say(f"engine     {engine.backend}, {engine.kv_tokens:,} KV tokens: {why}")
    output.say("")
    output.say("Fund two keys:")
    gas = f"{tokens(wanted.hot_key_gas_wei)} of the chain's coin, for 100 jobs" if wanted else "a little gas money"
    output.say(f"  hot key       {made.hot_key}   {gas}")
    stake = (
        f"gas money, and {tokens(wanted.bond_wei)} OLRA for each job that it holds at once"
        if wanted
        else "gas money and OLRA"
    )
    output.say(f"  operator key  {made.operator}   {stake}")
    output.say("The hot key claims, commits and signs; it can never move stake. The operator key stakes and is paid:")
    output.say(f"once it has staked, move {plan.state / 'operator.json'} and its password to another machine.")
    output.say("")
    if not plan.network.bootstrap:
        output.say("It knows no node to join by: write one into network.bootstrap, or begin again with --bootstrap.")
    output.say("Then:")
    files = f"--config {made.config} --client {made.operator_config}"
    bonds = tokens(8 * wanted.bond_wei) if wanted and wanted.bond_wei else "AMOUNT"
    output.say(f"  openlora register --stake {bonds} {files}")
    output.say(f"  openlora doctor --config {made.config}")
    page = f"    # its page: http://{plan.dashboard}" if plan.dashboard else ""
    output.say(f"  openlora run --config {made.config}{page}")
