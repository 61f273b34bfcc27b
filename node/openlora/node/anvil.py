"""A private dev chain: anvil as a child process on loopback, gone when its parent is."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from eth_account.hdaccount import key_from_seed, seed_from_mnemonic

from openlora.contracts.toolchain import find_tool
from openlora.node.children import die_with_parent, stop
from openlora.node.errors import ChainError, ConfigError

CHAIN_ID = 31337  # by default, as anvil's own
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 5.0
MNEMONIC = "test test test test test test test test test test test junk"  # anvil's own; worthless everywhere else


@dataclass(frozen=True, slots=True)
class Anvil:
    """A running chain. `private_keys` are its funded accounts."""

    rpc_url: str
    chain_id: int
    private_keys: tuple[bytes, ...]

    async def rpc(self, method: str, *params: object) -> object:
        """One JSON-RPC call, for what only a dev chain offers (evm_*, anvil_*). Raises ChainError."""
        async with httpx.AsyncClient(timeout=10, trust_env=False) as http:
            body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            answer = (await http.post(self.rpc_url, json=body)).json()
        if "error" in answer:
            raise ChainError(f"{method}: {answer['error'].get('message')}")
        return answer["result"]


@asynccontextmanager
async def anvil(
    log: Path, *, chain_id: int = CHAIN_ID, port: int = 0, block_time_s: float | None = None, accounts: int = 10
) -> AsyncIterator[Anvil]:
    """Runs anvil until the block ends; mines on every transaction, or every `block_time_s` seconds.

    Raises ConfigError when anvil is not installed or the port is busy.
    """
    binary = find_tool("anvil")
    if binary is None:
        raise ConfigError("anvil is not installed: run `make setup`, or put Foundry's anvil on the PATH")
    port = _claim_port(port)
    command = [str(binary), "--host", "127.0.0.1", "--port", str(port), "--chain-id", str(chain_id)]
    command += ["--mnemonic", MNEMONIC, "--accounts", str(accounts), "--prune-history", "64"]
    if block_time_s is not None:
        command += ["--block-time", str(block_time_s)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, preexec_fn=die_with_parent
        )
    chain = Anvil(f"http://127.0.0.1:{port}", chain_id, _private_keys(accounts))
    try:
        await _until_ready(chain, process, log)
        yield chain
    finally:
        if process.returncode is None:
            process.terminate()
        await stop(process, STOP_TIMEOUT_S)


async def _until_ready(chain: Anvil, process: asyncio.subprocess.Process, log: Path) -> None:
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while process.returncode is None:
                try:
                    await chain.rpc("eth_chainId")
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
                else:
                    return
    except TimeoutError:
        pass
    raise ChainError(f"anvil did not start; its output is in {log}")


def _claim_port(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise ConfigError(f"port {port} is in use; choose another with --port") from None
        return int(probe.getsockname()[1])


def _private_keys(accounts: int) -> tuple[bytes, ...]:
    seed = seed_from_mnemonic(MNEMONIC, "")
    return tuple(key_from_seed(seed, f"m/44'/60'/0'/0/{index}") for index in range(accounts))
