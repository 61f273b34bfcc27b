"""What the doctor says: one fault, what it does, and how it is mended."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import msgspec

from openlora.node.telemetry.snapshot import Severity


class Code(StrEnum):
    """Stable, for scripts and for the documentation."""

    CONFIG_MISSING = "config_missing"
    CONFIG_INVALID = "config_invalid"
    DEPLOYMENT_MISSING = "deployment_missing"
    DEPLOYMENT_INVALID = "deployment_invalid"
    DEPLOYMENT_OTHER_CHAIN = "deployment_other_chain"
    KEYSTORE_MISSING = "keystore_missing"
    KEYSTORE_UNREADABLE = "keystore_unreadable"
    KEYSTORE_EXPOSED = "keystore_exposed"
    PASSWORD_MISSING = "password_missing"  # noqa: S105  # the code of a fault
    PASSWORD_WRONG = "password_wrong"  # noqa: S105  # the code of a fault
    RPC_DOWN = "rpc_down"
    RPC_WRONG_CHAIN = "rpc_wrong_chain"
    RPC_BEHIND = "rpc_behind"
    CLOCK_OFF = "clock_off"
    CONTRACTS_MISSING = "contracts_missing"
    CONTRACTS_FOREIGN = "contracts_foreign"
    PROGRAM_OUTDATED = "program_outdated"
    MARKET_PAUSED = "market_paused"
    NOT_REGISTERED = "not_registered"
    HOT_KEY_UNAUTHORISED = "hot_key_unauthorised"
    HOT_KEY_UNFUNDED = "hot_key_unfunded"
    ENCRYPTION_KEY_UNTOLD = "encryption_key_untold"
    STAKE_TOO_LOW = "stake_too_low"
    STAKE_EXITING = "stake_exiting"
    MODEL_MISSING = "model_missing"
    MODEL_UNREADABLE = "model_unreadable"
    TOKENIZER_MISSING = "tokenizer_missing"
    MODEL_UNKNOWN = "model_unknown"
    DEVICE_MISSING = "device_missing"
    BACKEND_MISSING = "backend_missing"
    COMPILER_MISSING = "compiler_missing"
    MEMORY_TOO_SMALL = "memory_too_small"
    STATE_UNWRITABLE = "state_unwritable"
    DISK_LOW = "disk_low"
    JOURNAL_FOREIGN = "journal_foreign"
    JOURNAL_CORRUPT = "journal_corrupt"
    JOURNAL_NEWER = "journal_newer"
    JOURNAL_BEHIND = "journal_behind"
    AGENT_SECOND = "agent_second"
    PORT_BUSY = "port_busy"
    DASHBOARD_UNGUARDED = "dashboard_unguarded"
    BOOTSTRAP_UNREACHABLE = "bootstrap_unreachable"
    NETWORK_LONELY = "network_lonely"
    KUBO_DOWN = "kubo_down"
    BROKER_DOWN = "broker_down"
    BROKER_REFUSES = "broker_refuses"
    ASK_IS_ZERO = "ask_is_zero"
    CLAIMS_OFF = "claims_off"
    PART_DOWN = "part_down"
    NOT_CHECKED = "not_checked"


EXPLAINED: Final[Mapping[Code, str]] = {
    Code.CONFIG_MISSING: "there is no configuration where it was looked for",
    Code.CONFIG_INVALID: "the configuration has unknown, missing or ill-typed keys; all are named",
    Code.DEPLOYMENT_MISSING: "the file that names the contracts is not there",
    Code.DEPLOYMENT_INVALID: "the file that names the contracts is malformed",
    Code.DEPLOYMENT_OTHER_CHAIN: "the contracts' file is of another chain than the configuration",
    Code.KEYSTORE_MISSING: "the hot key's keystore is not there",
    Code.KEYSTORE_UNREADABLE: "the hot key's keystore cannot be read, or is none",
    Code.KEYSTORE_EXPOSED: "other users of the machine can read the key or its password",
    Code.PASSWORD_MISSING: "the password file or systemd credential is not there",
    Code.PASSWORD_WRONG: "the password does not open the keystore",
    Code.RPC_DOWN: "no RPC answers, or one of several does not",
    Code.RPC_WRONG_CHAIN: "an RPC serves another chain",
    Code.RPC_BEHIND: "an RPC's newest block is old, or behind the others'",
    Code.CLOCK_OFF: "this machine's clock is wrong: deadlines and leases are misjudged",
    Code.CONTRACTS_MISSING: "no contract is deployed at an address that the contracts' file names",
    Code.CONTRACTS_FOREIGN: "what is deployed there is not this market",
    Code.PROGRAM_OUTDATED: "the network's governance wants a newer version of this program",
    Code.MARKET_PAUSED: "the market's guardian has paused claims",
    Code.NOT_REGISTERED: "the operator key is no registered operator",
    Code.HOT_KEY_UNAUTHORISED: "no operator has authorised the hot key",
    Code.HOT_KEY_UNFUNDED: "the hot key cannot pay for claims, or soon cannot",
    Code.ENCRYPTION_KEY_UNTOLD: "clients cannot bring the node private jobs: the registry lacks its key for them",
    Code.STAKE_TOO_LOW: "the free stake does not cover the bond of a claim",
    Code.STAKE_EXITING: "stake is on its way out",
    Code.MODEL_MISSING: "the base model is not where the configuration says",
    Code.MODEL_UNREADABLE: "the base model is incomplete, damaged or not supported",
    Code.TOKENIZER_MISSING: "the base model has no tokenizer",
    Code.MODEL_UNKNOWN: "nobody registered this base model here: no job's recipe names it",
    Code.DEVICE_MISSING: "a GPU or core that the configuration names is not there",
    Code.BACKEND_MISSING: "the engine that the configuration names is not installed",
    Code.COMPILER_MISSING: "no C++ compiler: the slow reference engine serves",
    Code.MEMORY_TOO_SMALL: "model, cache and adapters do not fit the memory",
    Code.STATE_UNWRITABLE: "the state folder cannot be written",
    Code.DISK_LOW: "less disk is free than claims need",
    Code.JOURNAL_FOREIGN: "the journal belongs to another key, chain or set of contracts",
    Code.JOURNAL_CORRUPT: "the journal is damaged",
    Code.JOURNAL_NEWER: "a newer version wrote the journal",
    Code.JOURNAL_BEHIND: "the hot key has sent transactions that the journal does not know",
    Code.AGENT_SECOND: "another agent, or one that starts or hangs, holds the state folder",
    Code.PORT_BUSY: "a port that the node listens on is taken",
    Code.DASHBOARD_UNGUARDED: "the dashboard can be reached from elsewhere and has no keys, or none that are good",
    Code.BOOTSTRAP_UNREACHABLE: "peers to join by do not answer",
    Code.NETWORK_LONELY: "no peer to join by is configured",
    Code.KUBO_DOWN: "the configured Kubo does not answer",
    Code.BROKER_DOWN: "the configured MQTT broker does not answer",
    Code.BROKER_REFUSES: "the configured MQTT broker refuses the node",
    Code.ASK_IS_ZERO: "the node asks nothing for its work",
    Code.CLAIMS_OFF: "the node is told to claim nothing",
    Code.PART_DOWN: "the running agent says that a part of it is down",
    Code.NOT_CHECKED: "a check took too long, or needs what another one found missing",
}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """CRITICAL: the node earns nothing, or loses money; WARNING: it earns less, or will."""

    code: Code
    severity: Severity
    cause: str
    fix: str


def critical(code: Code, cause: str, fix: str) -> Finding:
    return Finding(code=code, severity=Severity.CRITICAL, cause=cause, fix=fix)


def warning(code: Code, cause: str, fix: str) -> Finding:
    return Finding(code=code, severity=Severity.WARNING, cause=cause, fix=fix)
