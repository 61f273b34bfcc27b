"""`openlora devnet` and `openlora demo`: a market on this machine."""

import asyncio
import dataclasses
import signal
from pathlib import Path
from typing import Annotated

import typer

from openlora.node.cli.engine_choice import EngineChoice, VllmPython, chosen_engine
from openlora.node.cli.output import JsonFlag, Output
from openlora.node.config import Backend
from openlora.node.errors import ConfigError

StateFolder = Annotated[Path, typer.Option(help="Folder for everything it makes; nothing is written outside it.")]
ModelPath = Annotated[Path | None, typer.Option(help="Base model; SmolLM2-135M-Instruct is fetched if none is given.")]


def demo(
    state: StateFolder = Path("openlora-demo"),
    model: ModelPath = None,
    port: Annotated[int, typer.Option(help="The chain's port; 0 picks a free one.")] = 0,
    engine: EngineChoice = Backend.OPENLORA,
    vllm_python: VllmPython = "",
    json: JsonFlag = False,
) -> None:
    """Watch three nodes claim jobs from a real chain, answer them, be killed, take over, and be paid."""
    from openlora.node.cli.demo_screen import DemoScreen, show_books
    from openlora.node.demo import run_demo
    from openlora.node.demo_nodes import DemoFailed

    output = Output(json)
    screen = DemoScreen(output)
    with screen:
        result, ledger = asyncio.run(run_demo(state, model, screen, port, chosen_engine(engine, vllm_python)))
    show_books(output, result, ledger)
    output.result(dataclasses.asdict(result))
    if not result.ok:
        raise DemoFailed("a job did not end as it should, or the books do not balance; the figures above say which")


def devnet(
    state: StateFolder = Path("openlora-devnet"),
    model: ModelPath = None,
    port: Annotated[int, typer.Option(help="The chain's port; 0 picks a free one.")] = 8545,
    mqtt_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Run an MQTT broker for dashboards; 0 picks a free port.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Run a chain with the market deployed and people in it, until Ctrl-C; nodes and jobs are yours to start."""
    from openlora.node import devnet as networks
    from openlora.node.known_models import pull

    output = Output(json)
    if state.exists() and any(state.iterdir()):
        raise ConfigError(f"{state} is not empty; remove it, or choose another --state")

    async def run() -> None:
        path = model
        if path is None:
            path = await asyncio.to_thread(pull, networks.MODEL_NAME, state.with_name("models"), output.say)
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        async with networks.devnet(state, path, port=port, mqtt_port=mqtt_port) as net:
            output.say(f"chain {net.chain.chain_id} runs at {net.chain.rpc_url}. Now, in other terminals:")
            for node in net.nodes:
                output.say(f"  openlora run --config {node.config}    # its page: http://{node.dashboard}")
            output.say(
                f"  openlora job submit --client {net.client_config} --adapter pirate --watch 'Why is the sky blue?'"
            )
            output.say(f"  openlora network --client {net.client_config}")
            output.say(f"  openlora earnings --client {net.nodes[0].operator_config}")
            places = f"--rpc {net.chain.rpc_url} --deployment {net.folder / 'deployment.json'}"
            joining = f"{places} --bootstrap {net.nodes[0].address}"
            output.say("To add an account or a node of your own, whose keys `openlora faucet` funds:")
            output.say(f"  openlora account {joining}")
            output.say(f"  openlora init {joining} --model {path}")
            if net.mqtt is not None:
                output.say(
                    f"MQTT for dashboards at 127.0.0.1:{net.mqtt.port}, over WebSocket at {net.mqtt.websocket_port}:"
                )
                output.say(f"  the user is dashboard, the password in {net.mqtt.token_file()}")
            output.result(
                {
                    "rpc_url": net.chain.rpc_url,
                    "chain_id": net.chain.chain_id,
                    "node_configs": [str(node.config) for node in net.nodes],
                    "mqtt_port": net.mqtt and net.mqtt.port,
                    "mqtt_websocket_port": net.mqtt and net.mqtt.websocket_port,
                }
            )
            await stopped.wait()

    asyncio.run(run())
