"""The configuration files that `openlora init` and the dev network write: every key, with its unit and default."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from openlora.node.config import EngineConfig, KeyConfig, MqttConfig, NetworkConfig

NODE_TOML = """\
# A node operator's configuration. Paths are relative to this file; an unknown key is an error.
state_dir = {state_dir}                 # journal, adapters, agent.sock; one agent a folder

[chain]
chain_id = {chain_id}
rpc_urls = [{rpc_url}]                  # tried in order; each must serve this chain id
deployment = {deployment}               # the JSON file that names the contracts
confirmations = {confirmations}         # blocks before a claim or commit counts, its own included
poll_s = {poll_s}                       # how often a new head is looked for
max_gas_gwei = 500.0                    # the most that a transaction may pay per gas; else it waits
max_tip_gwei = 50.0                     # the most of it that the tip may be, whatever an RPC suggests

[hot_key]                               # claims, commits and signs; can never move stake
keystore = {keystore}                   # keystore v3
password_file = {password_file}         # or a systemd credential

[model]
path = {model}                          # a Hugging Face directory or a GGUF file
dtype = "auto"                          # auto: bfloat16, unless the file is float32 | bfloat16 | float32
weights = "auto"                        # auto: as the file keeps them | full: in dtype | int8 | int4: rounded at start

[engine]
backend = {backend}                     # openlora: our own | vllm: several GPUs; nobody can verify its answers
devices = []                            # one engine on each: "cuda:0", or cores as "cpu:0-7"; []: one for the machine
kv_tokens = {kv_tokens}                 # capacity of the paged KV cache, in tokens
max_running = 64                        # requests in one batch
max_batch_tokens = 512                  # tokens of one forward pass
prefix_cache = true                     # compute once what requests of one tenant begin with in common
speculation = true                      # guess tokens ahead from a request's own text (CPU); answers stay the same
adapter_bytes = 2147483648              # memory for loaded adapters

[engine.vllm]                           # read where backend is "vllm"
python = {vllm_python}                  # the interpreter of the environment that has vLLM; "": the node's own
max_recipes = 8                         # different recipes in one batch; further ones wait
max_rank = 64                           # of a recipe: its adapters' ranks added up
tensor_parallel = 1                     # devices that share each layer
pipeline_parallel = 1                   # groups of devices that share the layers
executor = "auto"                       # who starts the workers of several devices: auto, mp, ray
gpu_memory = 0.9                        # share of a device's memory for weights, cache and adapters
eager = {vllm_eager}                    # start sooner and run slower: no CUDA graphs, no compiled layers

[market]                                # `openlora reload` brings changes here to a running node
min_in_price_wei_per_k = {in_price}     # ask: token wei per 1,000 prompt tokens
min_out_price_wei_per_k = {out_price}   # ask: token wei per 1,000 output tokens
max_live_jobs = {max_live_jobs}         # claimed and not yet committed
min_time_left_s = 15                    # a job whose deadline or lease ends sooner is not claimed
turn_s = {turn_s}                       # seconds that each better placed node has to claim a job first
clients = []                            # take jobs from these addresses only; []: from everybody
adapters = []                           # serve these adapters only, by CID; []: any

[sessions]                              # orders that clients send directly, against a deposit for this node
max_orders = 4                          # answered at the same time, over all sessions
max_unpaid_wei = 0                      # the most that a session may owe, a new order included; one is always taken
settle_at_wei = 1000000000000000000     # a session's payments are settled once they come to this
settle_every_s = 86400                  # smaller ones are settled this long after the first of them

[network]
listen = {listen}  # multiaddrs
bootstrap = {bootstrap}                 # multiaddrs of peers to join by, each ending in /p2p/<peer id>
announce = {announce}                   # multiaddrs to tell others, where they differ from `listen`
mdns = {mdns}                           # look for peers on the local network
nat = {nat}                             # ask the router for a port
memory_bytes = 805306368                # limit of the process that speaks with strangers

[storage]
content_dir = {content_dir}             # the block store
max_content_bytes = 53687091200         # blocks: what jobs needed, what the node made, what it keeps for others
max_adapter_bytes = 21474836480         # verified adapters on disk
min_free_bytes = 2147483648             # below this, no job is claimed
kubo_rpc = ""                           # multiaddr of a Kubo's RPC to fetch and publish through, if any

[telemetry]
listen = {dashboard}                    # host:port of the dashboard, /v1 and /metrics; "": /v1 on agent.sock only
key_file = ""                           # full path of API keys, one a line; needed where others can reach `listen`

[telemetry.mqtt]
host = {mqtt_host}                      # the broker to publish to; "": none
port = {mqtt_port}
tls = {mqtt_tls}                        # without it, a password is sent to a broker on this machine only
ca_file = ""                            # full path of the authority that vouches for the broker; "": the system's
username = ""                           # "": the operator's address in lower case
password_file = {mqtt_password_file}    # full path, or a systemd credential's
prefix = "openlora/v1"                  # of all topics
websocket_path = ""                     # speak MQTT over WebSocket, at this path; "": plain MQTT

[log]
format = "auto"                         # auto: text, or the journal's own fields under systemd | text | json
level = "info"                          # of what the node itself says: debug | info | warning | error
"""

CLIENT_TOML = """\
# A job submitter's, adapter developer's or payee's configuration. Paths are relative to this file.
content_dir = {content_dir}             # the block store that inputs, adapters and outputs travel through

[network]
bootstrap = {bootstrap}                 # multiaddrs of nodes to join by, each ending in /p2p/<peer id>

[chain]
chain_id = {chain_id}
rpc_urls = [{rpc_url}]
deployment = {deployment}
poll_s = {poll_s}

[key]
keystore = {keystore}
password_file = {password_file}
"""


ENGINE, NETWORK, MQTT = EngineConfig(), NetworkConfig(), MqttConfig()


@dataclass(frozen=True, slots=True)
class ChainEntry:
    """The `[chain]` table."""

    chain_id: int
    rpc_url: str
    deployment: Path
    poll_s: float = 1.0


def write_node_config(
    path: Path,
    chain: ChainEntry,
    *,
    model: Path,
    key: KeyConfig,
    state_dir: Path,
    content_dir: Path,
    confirmations: int = 2,
    in_price_wei_per_k: int = 0,
    out_price_wei_per_k: int = 0,
    max_live_jobs: int = 8,
    turn_s: float = 4.0,
    engine: EngineConfig = ENGINE,
    network: NetworkConfig = NETWORK,
    dashboard: str = "",
    mqtt: MqttConfig = MQTT,
) -> None:
    """Writes a complete `node.toml`. `dashboard` is telemetry.listen."""
    _write(
        path,
        NODE_TOML,
        chain,
        key,
        model=model,
        state_dir=state_dir,
        content_dir=content_dir,
        confirmations=confirmations,
        in_price=in_price_wei_per_k,
        out_price=out_price_wei_per_k,
        max_live_jobs=max_live_jobs,
        turn_s=turn_s,
        backend=engine.backend,
        kv_tokens=engine.kv_tokens,
        vllm_python=engine.vllm.python,
        vllm_eager=engine.vllm.eager,
        listen=network.listen,
        bootstrap=network.bootstrap,
        announce=network.announce,
        mdns=network.mdns,
        nat=network.nat,
        dashboard=dashboard,
        mqtt_host=mqtt.host,
        mqtt_port=mqtt.port,
        mqtt_tls=mqtt.tls,
        mqtt_password_file=mqtt.password_file,
    )


def write_client_config(
    path: Path, chain: ChainEntry, *, key: KeyConfig, content_dir: Path, bootstrap: Sequence[str] = ()
) -> None:
    """Writes a complete `client.toml`."""
    _write(path, CLIENT_TOML, chain, key, content_dir=content_dir, bootstrap=tuple(bootstrap))


def _write(path: Path, template: str, chain: ChainEntry, key: KeyConfig, **values: object) -> None:
    values |= asdict(chain) | {"keystore": key.keystore, "password_file": key.password_file}
    filled = {name: _toml(value, path.parent) for name, value in values.items()}
    lines = []
    for line in template.splitlines():
        setting, mark, comment = line.partition("  #")
        setting = setting.rstrip().format(**filled)
        lines.append(f"{setting:<38}  #{comment}" if mark else setting)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def _toml(value: object, folder: Path) -> str:
    """A value as TOML; a path below the file's own folder is written relative to it, any other one in full."""
    if isinstance(value, Path):
        path, folder = value.absolute(), folder.absolute()
        value = path.relative_to(folder) if path.is_relative_to(folder) else path
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item, folder) for item in value) + "]"
    if isinstance(value, Path | str):
        return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)
