"""Configuration of a node and of a job submitter: strict TOML, read once, passed down in parts.

Every problem of a file is reported at once. Paths are relative to the file that names them.
"""

import difflib
import re
import tomllib
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from openlora.node.errors import ConfigError

HTTP: Final = ("http://", "https://")
MAX_BYTES: Final = 1 << 20  # of a file that is read whole
_LARGE: Final = 2**62
Count = Annotated[int, Meta(ge=1, le=_LARGE)]
Seconds = Annotated[int, Meta(ge=0, le=_LARGE)]
Bytes = Annotated[int, Meta(ge=0, le=_LARGE)]
Wei = Annotated[int, Meta(ge=0)]
ADAPTER_CID: Final = re.compile("bafybei[a-z2-7]{52}")  # version 1, dag-pb, sha2-256


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Root of all configuration tables."""


class ChainConfig(Table, frozen=True):
    chain_id: Annotated[int, Meta(ge=1, le=_LARGE)]
    rpc_urls: tuple[str, ...]  # tried in order; all must serve `chain_id`
    deployment: Path  # the JSON file that names the contracts
    confirmations: Count = 1  # blocks, the transaction's own included, before a claim or commit counts
    poll_s: Annotated[float, Meta(ge=0.01, le=3600)] = 0.5  # how often a new head is looked for

    def __post_init__(self) -> None:
        if not self.rpc_urls or not all(map(_is_http_url, self.rpc_urls)):
            raise ValueError("rpc_urls must name one RPC or more, each as http://host:port or https://…")


def _is_http_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return url.startswith(HTTP) and bool(parts.hostname) and parts.port != 0
    except ValueError:  # half an IPv6 address, or a port that is none
        return False


class NodeChainConfig(ChainConfig, frozen=True):
    max_gas_gwei: float = 500.0  # the most that a transaction of the hot key may pay per gas; else it waits
    max_tip_gwei: float = 50.0  # … and the most of it that the tip may be, whatever an RPC suggests

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.max_tip_gwei <= self.max_gas_gwei <= 10**6:
            raise ValueError("max_tip_gwei must be positive and no more than max_gas_gwei, which 1000000 bounds")


class KeyConfig(Table, frozen=True):
    keystore: Path  # keystore v3
    password_file: Path  # or a systemd credential's path


class ModelConfig(Table, frozen=True):
    path: Path  # Hugging Face directory or GGUF file
    dtype: str = "auto"  # auto | bfloat16 | float32
    weights: str = "auto"  # auto: as the checkpoint keeps them | full: all in dtype | int8 | int4: rounded at start


class Backend(StrEnum):
    """Who computes."""

    OPENLORA = "openlora"
    VLLM = "vllm"


# vLLM sets memory aside for the largest rank, and knows these sizes alone.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


class VllmConfig(Table, frozen=True):
    python: str = ""  # the interpreter of the environment that has vLLM; "": the node's own
    max_recipes: Count = 8  # different recipes in one batch; further ones wait
    max_rank: int = 64  # of a recipe: its adapters' ranks added up
    tensor_parallel: Count = 1  # devices that share each layer
    pipeline_parallel: Count = 1  # groups of devices that share the layers
    executor: Literal["auto", "mp", "ray"] = "auto"  # who starts the workers of several devices
    gpu_memory: Annotated[float, Meta(gt=0, le=1)] = 0.9  # share of a device's memory for weights, cache and adapters
    eager: bool = False  # start sooner and run slower: no CUDA graphs, no compiled layers

    def __post_init__(self) -> None:
        if self.max_rank not in VLLM_RANKS:
            raise ValueError(f"max_rank must be one of {', '.join(map(str, VLLM_RANKS))}")

    @property
    def devices(self) -> int:
        return self.tensor_parallel * self.pipeline_parallel


class EngineConfig(Table, frozen=True):
    backend: Backend = Backend.OPENLORA
    devices: tuple[str, ...] = ()  # one engine on each: "cuda:0", or cores as "cpu:0-7"; (): one for the machine
    kv_tokens: Count = 32_768  # capacity of the paged KV cache
    max_running: Count = 64  # requests in one batch
    max_batch_tokens: Count = 512  # tokens of one forward pass
    prefix_cache: bool = True  # compute once what requests of one tenant begin with in common
    speculation: bool = True  # guess tokens ahead from a request's own text (CPU); answers stay the same
    adapter_bytes: Bytes = 2 << 30  # memory for loaded adapters
    vllm: VllmConfig = VllmConfig()


class MarketConfig(Table, frozen=True):
    min_in_price_wei_per_k: Wei = 0  # ask: token wei per 1,000 prompt tokens
    min_out_price_wei_per_k: Wei = 0  # ask: token wei per 1,000 output tokens
    max_live_jobs: Annotated[int, Meta(ge=0, le=_LARGE)] = 8  # claimed and not yet committed
    min_time_left_s: Seconds = 15  # a job whose deadline or lease is nearer is not claimed
    turn_s: Annotated[float, Meta(ge=0, le=3600)] = 4.0  # that each better placed node has to claim a job first
    clients: tuple[str, ...] = ()  # take jobs from these addresses only; (): from everybody
    adapters: tuple[str, ...] = ()  # serve these adapters only, by CID; (): any

    def __post_init__(self) -> None:
        if wrong := _wrong_addresses(self.clients):
            raise ValueError(f"clients: {', '.join(wrong)}: no address with its checksum")
        if wrong := [cid for cid in self.adapters if not ADAPTER_CID.fullmatch(cid)]:
            raise ValueError(f"adapters: {', '.join(wrong)}: no CID of a folder, as `openlora adapter list` shows it")


def _wrong_addresses(addresses: tuple[str, ...]) -> list[str]:
    if not addresses:  # vLLM's process reads this file too, and has no package for them
        return []
    from eth_utils.address import is_checksum_address

    return [address for address in addresses if not is_checksum_address(address)]


class SessionsConfig(Table, frozen=True):
    """The signed lane: orders that clients send directly, against a deposit for this node."""

    max_orders: Annotated[int, Meta(ge=0, le=_LARGE)] = 4  # answered at the same time, over all sessions
    max_unpaid_wei: Wei = 0  # the most that a session may owe, a new order included; one is always taken
    settle_at_wei: Wei = 10**18  # a session's payments are settled once they come to this …
    settle_every_s: Seconds = 86_400  # … and smaller ones this long after the first of them


class StorageConfig(Table, frozen=True):
    content_dir: Path  # the block store
    max_content_bytes: Bytes = 50 << 30  # blocks: what jobs needed, what the node made, what it keeps for others
    max_adapter_bytes: Bytes = 20 << 30  # verified adapters on disk
    min_free_bytes: Bytes = 2 << 30  # below this no job is claimed
    kubo_rpc: str = ""  # multiaddr of a Kubo's RPC to fetch and publish through, instead of the node's own bitswap


class NetworkConfig(Table, frozen=True):
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/4001",)  # multiaddrs
    bootstrap: tuple[str, ...] = ()  # multiaddrs of peers to join by, each ending in /p2p/<peer id>
    announce: tuple[str, ...] = ()  # multiaddrs to tell others, where they differ from `listen`
    mdns: bool = True  # look for peers on the local network
    nat: bool = True  # ask the router for a port
    memory_bytes: Bytes = 768 << 20  # limit of the process that speaks with strangers


class MqttConfig(Table, frozen=True):
    host: str = ""  # of the broker; "": none
    port: Annotated[int, Meta(ge=1, le=65535)] = 8883
    tls: bool = True
    ca_file: str = ""  # full path of the authority that vouches for the broker; "": those that the system trusts
    username: str = ""  # "": the operator's address in lower case
    password_file: str = ""  # full path, or a systemd credential's
    prefix: str = "openlora/v1"  # of all topics
    websocket_path: str = ""  # speak MQTT over WebSocket, at this path; "": plain MQTT


class TelemetryConfig(Table, frozen=True):
    listen: str = ""  # host:port of the dashboard, of /v1 and of /metrics; "": none, and /v1 on agent.sock only
    key_file: str = ""  # full path of API keys, one a line; needed where others can reach `listen`
    mqtt: MqttConfig = MqttConfig()


class LogConfig(Table, frozen=True):
    format: Literal["auto", "text", "json"] = "auto"  # auto: text, or the journal's own fields under systemd
    level: Literal["debug", "info", "warning", "error"] = "info"  # of what the node itself says


class ClientNetworkConfig(Table, frozen=True):
    bootstrap: tuple[str, ...] = ()  # multiaddrs of peers to join by, each ending in /p2p/<peer id>


class NodeConfig(Table, frozen=True):
    """`node.toml`: all a node operator decides."""

    state_dir: Path
    chain: NodeChainConfig
    hot_key: KeyConfig
    model: ModelConfig
    storage: StorageConfig
    engine: EngineConfig = EngineConfig()
    market: MarketConfig = MarketConfig()
    sessions: SessionsConfig = SessionsConfig()
    network: NetworkConfig = NetworkConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    log: LogConfig = LogConfig()

    @property
    def socket(self) -> Path:
        return self.state_dir / "agent.sock"


class ClientConfig(Table, frozen=True):
    """`client.toml`: what a submitter, an adapter developer or a payee needs."""

    chain: ChainConfig
    key: KeyConfig
    content_dir: Path
    network: ClientNetworkConfig = ClientNetworkConfig()


Config = TypeVar("Config", NodeConfig, ClientConfig)


def load(path: Path, kind: type[Config], base: Path | None = None) -> Config:
    """Reads a TOML file, whose paths are relative to `base`, by default its own folder.

    Raises ConfigError naming every unknown, missing or ill-typed key of the file.
    """
    try:
        raw = tomllib.loads(small_text(path))
    except FileNotFoundError:
        maker = "init" if kind is NodeConfig else "account"
        raise ConfigError(f"{path} does not exist; make one with `openlora {maker}`") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    problems = list(_problems(raw, kind, prefix=""))
    if problems:
        raise ConfigError(f"{path}: " + "; ".join(problems))
    base = base or path.resolve().parent

    def from_toml(target: type, value: object) -> object:
        return (base / Path(str(value)).expanduser()) if target is Path else value

    return msgspec.convert(raw, kind, dec_hook=from_toml)


def small_text(path: Path) -> str:
    """A file of at most 1 MiB. Raises OSError, and ValueError for a larger one or what is not UTF-8."""
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    return content.decode()


def _problems(raw: dict[str, Any], kind: type[Table], prefix: str) -> Iterator[str]:
    """Of each key; and where every key is good by itself, of what they are together."""
    found = list(_key_problems(raw, kind, prefix))
    yield from found
    if not found:
        try:
            msgspec.convert(raw, kind, dec_hook=_check_path)
        except msgspec.ValidationError as error:
            yield f"{prefix.rstrip('.') or 'the file'}: {error}"


def _key_problems(raw: dict[str, Any], kind: type[Table], prefix: str) -> Iterator[str]:
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    for key in (key for key in raw if key not in fields):
        likely = difflib.get_close_matches(key, [name for name in fields if name not in raw], n=1)
        yield f"unknown key {prefix}{key}" + "".join(f" (is it {prefix}{name}?)" for name in likely)
    for name, field in fields.items():
        if name not in raw:
            if field.required:
                yield f"missing key {prefix}{name}"
        elif isinstance(field.type, type) and issubclass(field.type, Table):
            if isinstance(raw[name], dict):
                yield from _problems(raw[name], field.type, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name} must be a table"
        else:
            try:
                msgspec.convert(raw[name], field.type, dec_hook=_check_path)
            except msgspec.ValidationError as error:
                yield f"{prefix}{name}: {error}"


def _check_path(target: type, value: object) -> object:
    if target is Path and isinstance(value, str) and value and "\0" not in value:
        try:
            return Path(value).expanduser()
        except RuntimeError:
            raise msgspec.ValidationError(f"the home of {value!r} is not known; write the path in full") from None
    raise msgspec.ValidationError(f"expected a path, got {value!r}")
