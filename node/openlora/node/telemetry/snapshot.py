"""What a node says of itself at one moment: the one source of /v1/state, of the metrics and of the MQTT topics.

Every number has its unit in its name; `_total` counts since the agent's start. Amounts are decimal text, since JSON
numbers of that size lose digits in browsers: `_wei` of the token, but for gas, where it is the chain's own coin. Times
are unix seconds. Nothing in here is secret: no prompt, no answer, no key but its address.
"""

from enum import StrEnum
from typing import Annotated, Final

import msgspec

SCHEMA_VERSION: Final = 1  # rises when a key changes its meaning or goes; new keys may come without

Wei = Annotated[str, msgspec.Meta(pattern="^[0-9]+$", description="a whole number, in decimal")]
MAX_DIGESTS: Final = 64  # of one tier of adapters: those used last
MAX_LIVE_JOBS: Final = 256


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Root of all parts."""


class Node(Part, frozen=True):
    """Who it is."""

    operator: str
    hot_key: str  # its address
    peer_id: str
    addresses: tuple[str, ...]  # multiaddrs
    version: str
    started_at_s: float


class Chain(Part, frozen=True):
    chain_id: int
    block_number: int | None  # up to which events have been applied
    answers: bool  # whether the last question to an RPC was answered
    clock_ahead_s: int = 0  # this machine's, of the chain's, where new blocks show it wrong; 0: it is right


class Model(Part, frozen=True):
    name: str
    base_id: str
    dtype: str
    max_context_tokens: int


class Stake(Part, frozen=True):
    """What the node can put up, as the chain said at `read_at_s`."""

    stake_wei: Wei
    bonded_wei: Wei
    free_wei: Wei
    bond_wei: Wei  # of one claim
    gas_wei: Wei  # the hot key's balance
    gas_price_wei: Wei
    payable_jobs: int  # how many more the hot key can claim and commit at this price; at most 1,000,000
    withdrawable_wei: Wei  # earned and not yet withdrawn
    read_at_s: float


class Engine(Part, frozen=True):
    """Figures of an engine that restarts or does not answer are zero."""

    alive: bool
    backend: str
    profile: int  # what receipts say of it
    running_requests: int
    waiting_requests: int
    kv_capacity_tokens: int
    kv_free_tokens: int
    kv_cached_tokens: int
    cache_hit_tokens: int  # prompt tokens that were not computed, since the engine's start
    preemptions_total: int
    drafted_tokens: int  # computed ahead on a guess, since the engine's start
    accepted_tokens: int  # of them, those that were right
    generated_tokens: int  # since the engine's start
    steps_total: int


class LiveJob(Part, frozen=True):
    """A job that this node has a claim on, or is making one."""

    job_id: int
    state: str
    recipe_id: int
    changed_at_s: float
    lease_ends_at_s: float | None  # of a claim that is not committed yet


class Queue(Part, frozen=True):
    waiting_jobs: int  # submitted and undecided
    active_jobs: int  # under way here
    capacity_jobs: int
    draining: bool  # its operator told it to claim nothing
    skipped_jobs: dict[str, int]  # by skip code
    live: tuple[LiveJob, ...]  # at most 256


class Tier(Part, frozen=True):
    total_adapters: int
    digests: tuple[str, ...]  # used last first; at most 64


class Adapters(Part, frozen=True):
    slots: Tier  # loaded in the engine
    disk: Tier  # verified
    disk_bytes: int


class Gpu(Part, frozen=True):
    index: int  # as the driver counts
    name: str
    driver: str
    memory_bytes: int
    memory_used_bytes: int
    busy_percent: int | None = None  # of the time just before; None where the driver does not tell


class Machine(Part, frozen=True):
    cpu: str
    cpu_cores: int
    load_1m_processes: float
    ram_bytes: int
    ram_available_bytes: int
    disk_free_bytes: int  # where the state folder lies
    gpus: tuple[Gpu, ...]


class Network(Part, frozen=True):
    """Byte counts are the network process's, since its start; zero while it restarts."""

    alive: bool
    seen_nodes: int  # this one included
    connected_peers: int
    fetched_bytes: int
    served_bytes: int
    refused_messages: dict[str, int]  # by code


class Earnings(Part, frozen=True):
    """What the chain has paid the operator, as far as this journal has followed it; what a reorganisation takes back
    is gone from here too."""

    paid_wei: Wei
    paid_by_role_wei: dict[str, Wei]
    payments_total: int


class Severity(StrEnum):
    WARNING = "warning"  # will cost something if nobody looks
    CRITICAL = "critical"  # the node earns nothing, or loses a bond


class AlertCode(StrEnum):
    """Stable, for rules and for the documentation."""

    ENGINE_DOWN = "engine_down"
    NETWORK_DOWN = "network_down"
    CHAIN_SILENT = "chain_silent"
    LEASE_ENDING = "lease_ending"
    LOW_GAS = "low_gas"
    LOW_STAKE = "low_stake"
    LOW_DISK = "low_disk"
    CLOCK_OFF = "clock_off"
    BROKER_REFUSES = "broker_refuses"


class Alert(Part, frozen=True):
    code: AlertCode
    severity: Severity
    message: str  # what is wrong and what to do
    job_id: int | None = None
    due_at_s: float | None = None  # when it will cost something


class Snapshot(Part, frozen=True):
    """A node at one moment."""

    node: Node
    chain: Chain
    model: Model
    stake: Stake | None  # None until the chain has been asked
    engine: Engine
    queue: Queue
    jobs_by_state: dict[str, int]
    adapters: Adapters
    machine: Machine
    network: Network
    earnings: Earnings
    alerts: tuple[Alert, ...]
    broker_refusal: str = (
        ""  # why the MQTT broker takes no messages of some kind or other; "": it does, or there is none
    )
    schema_version: int = SCHEMA_VERSION
