"""A node that is being set up: what its machine can do, what the chain will want of it, and its folder."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import msgspec

from openlora.contracts import JobQueue
from openlora.node.admission import CLAIM_AND_COMMIT_GAS
from openlora.node.chain.client import ChainClient
from openlora.node.config import HTTP, ChainConfig, EngineConfig, NetworkConfig
from openlora.node.config_files import ChainEntry, write_client_config, write_node_config
from openlora.node.deployment import load_deployment
from openlora.node.engine.models.config import DecoderConfig
from openlora.node.errors import ChainError, ConfigError, ModelError, WrongChain
from openlora.node.keys import create_key
from openlora.node.known_models import CATALOGUE, Say, pull

FILES: Final = ("node.toml", "operator.toml", "hot.json", "hot.password", "operator.json", "operator.password")
ACCOUNT_FILES: Final = ("client.toml", "client.json", "client.password")
PATIENCE_S: Final = 5.0
FUNDED_JOBS: Final = 100  # that the hot key should be able to pay for at first
KV_STEP_TOKENS: Final = 1024
OVERHEAD_BYTES: Final = 1 << 30  # of the node's processes, beside weights, cache and adapters


@dataclass(frozen=True, slots=True)
class Plan:
    """What the operator decides; all else has a default that the written file explains."""

    state: Path
    rpc_url: str
    chain_id: int
    deployment: Path
    model: Path
    in_price_wei_per_k: int
    out_price_wei_per_k: int
    engine: EngineConfig
    network: NetworkConfig
    dashboard: str  # telemetry.listen


@dataclass(frozen=True, slots=True)
class Made:
    config: Path
    operator_config: Path
    hot_key: str
    operator: str


@dataclass(frozen=True, slots=True)
class Needs:
    """What the node's keys need, in wei: of the chain's coin, and of the token for the bond of each job at once."""

    hot_key_gas_wei: int
    bond_wei: int


def write(plan: Plan) -> Made:
    """Configurations and keys into the plan's folder: all of them, or none where the disk refuses with OSError.

    Overwrites nothing: raises ConfigError for what is there.
    """
    with _new_files(plan.state, FILES) as (node_file, operator_file, *_):
        return _write(plan, node_file, operator_file)


def write_account(
    state: Path, rpc_url: str, chain_id: int, deployment: Path, bootstrap: Sequence[str]
) -> tuple[Path, str]:
    """A client's configuration, and the address of its new key. Writes and raises as `write` does, and ConfigError for
    the deployment file."""
    load_deployment(ChainConfig(chain_id=chain_id, rpc_urls=(rpc_url,), deployment=deployment))
    with _new_files(state, ACCOUNT_FILES) as (file, *_):
        key, address = create_key(state, "client")
        chain = ChainEntry(chain_id, rpc_url, deployment.resolve())
        write_client_config(file, chain, key=key, content_dir=state / "content", bootstrap=bootstrap)
        return file, address


@contextmanager
def _new_files(folder: Path, names: Sequence[str]) -> Iterator[Sequence[Path]]:
    """Files that are not there yet: all of them are written, or none."""
    files = [folder / name for name in names]
    for path in files:
        if path.exists():
            raise ConfigError(f"{path} exists already; choose another --state, or move it away")
    try:
        yield files
    except OSError:
        for path in files:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        raise


def _write(plan: Plan, node_file: Path, operator_file: Path) -> Made:
    hot_config, hot_key = create_key(plan.state, "hot")
    operator_config, operator = create_key(plan.state, "operator")
    chain, content_dir = ChainEntry(plan.chain_id, plan.rpc_url, plan.deployment.resolve()), plan.state / "content"
    write_node_config(
        node_file,
        chain,
        model=plan.model.resolve(),
        key=hot_config,
        state_dir=plan.state,
        content_dir=content_dir,
        in_price_wei_per_k=plan.in_price_wei_per_k,
        out_price_wei_per_k=plan.out_price_wei_per_k,
        engine=plan.engine,
        network=plan.network,
        dashboard=plan.dashboard,
    )
    bootstrap = plan.network.bootstrap
    write_client_config(operator_file, chain, key=operator_config, content_dir=content_dir, bootstrap=bootstrap)
    return Made(node_file, operator_file, hot_key, operator)


def served_chain(rpc_url: str) -> int | None:
    """The id of the chain that an RPC serves; None if it does not answer. Raises ConfigError for what is no URL."""
    if not rpc_url.startswith(HTTP):
        raise ConfigError(f"{rpc_url} is no RPC's URL; write http://host:port, or https://…")
    body = {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []}
    with suppress(httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
        return int(httpx.post(rpc_url, json=body, timeout=PATIENCE_S, trust_env=False).json()["result"], 16)
    return None


def found_model(model: str, models: Path, say: Say) -> Path:
    """A directory, a GGUF file, or a known name, which is fetched into `models`. Raises ConfigError, ModelError."""
    path = Path(model)
    if path.exists():
        return path
    if model in CATALOGUE:
        return pull(model, models, say)
    raise ConfigError(
        f"{model} does not exist; --model must name a directory, a GGUF file, or one of {', '.join(CATALOGUE)}"
    )


def fitting_engine(engine: EngineConfig, model: Path, ram_available_bytes: int) -> EngineConfig:
    """With a smaller KV cache where the default's would not fit beside the model. Raises ModelError."""
    decoder = DecoderConfig.from_path(model)
    token_bytes = 4 * decoder.layers * decoder.kv_heads * decoder.head_size  # keys and values, two bytes each
    files = [model] if model.is_file() else model.glob("*.safetensors")
    room = ram_available_bytes - sum(file.stat().st_size for file in files) - OVERHEAD_BYTES
    steps = room // (token_bytes * KV_STEP_TOKENS)
    if not ram_available_bytes or steps * KV_STEP_TOKENS >= engine.kv_tokens:
        return engine
    if steps < 1:
        raise ModelError(f"{model} does not fit the {ram_available_bytes >> 20:,} MiB of RAM that are available")
    return msgspec.structs.replace(engine, kv_tokens=steps * KV_STEP_TOKENS)


async def needs(chain: ChainConfig) -> Needs | None:
    """As of the newest block; None where nobody answers. Raises WrongChain, and ConfigError for the deployment file."""
    deployment = load_deployment(chain)
    try:
        client = await ChainClient.connect(chain.rpc_urls, chain.chain_id, deployment, patience_s=PATIENCE_S)
    except WrongChain:
        raise
    except ChainError:
        return None
    try:
        gas_price_wei = (await client.block("latest")).base_fee_wei + await client.suggested_tip()
        queue = JobQueue(deployment.job_queue)
        params = await client.call(queue.params(await client.call(queue.params_version())))
    except ChainError:
        return None
    finally:
        await client.close()
    return Needs(
        hot_key_gas_wei=FUNDED_JOBS * CLAIM_AND_COMMIT_GAS * gas_price_wei,
        bond_wei=params.bond,
    )
