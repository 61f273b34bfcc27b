"""The journal in the state folder, and who holds it."""

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from openlora.node import agent_client
from openlora.node.config import NodeConfig
from openlora.node.database import SQL_ERRORS, lock_holder
from openlora.node.doctor.finding import Code, Finding, critical, warning
from openlora.node.errors import AgentUnreachable, RequestError
from openlora.node.journal import Identity
from openlora.node.journal_schema import MIGRATIONS
from openlora.node.journal_view import next_nonce, read_only

AGENT_TIMEOUT_S: Final = 3.0
SQLITE_STEPS: Final = 20_000  # between two looks at the clock


@dataclass(frozen=True, slots=True)
class JournalFacts:
    path: Path
    exists: bool
    holder: int | None = None  # the process that has it open
    state: Mapping[str, Any] | None = None  # /v1/state of the agent that answers
    schema: int = 0
    recorded: Mapping[str, str] | None = None  # whose journal it is, by the names of `Identity.named_parts`
    next_nonce: int | None = None  # one more than any it knows to be used; None in one that never signed
    damage: str = ""


def look_at_journal(config: NodeConfig, deadline_s: float) -> JournalFacts:
    """Blocks until `deadline_s` (monotonic seconds) or a little longer."""
    path = config.state_dir / "journal.sqlite"
    holder = lock_holder(path.with_suffix(".lock"))
    state = _ask_agent(config.socket) if holder is not None else None
    if not path.exists():
        return JournalFacts(path, exists=False, holder=holder, state=state)
    try:
        with closing(read_only(path)) as db:
            schema = int(db.execute("PRAGMA user_version").fetchone()[0])
            if schema > len(MIGRATIONS):
                return JournalFacts(path, True, holder, state, schema)
            damage = "" if holder is not None else _damage(db, deadline_s)
            recorded = dict(db.execute("SELECT key, value FROM meta"))
            return JournalFacts(path, True, holder, state, schema, recorded, next_nonce(db), damage)
    except (*SQL_ERRORS, ValueError) as error:
        return JournalFacts(path, True, holder, state, damage=str(error))


def _damage(db: sqlite3.Connection, deadline_s: float) -> str:
    """What SQLite finds wrong, as far as there is time."""
    db.set_progress_handler(lambda: int(time.monotonic() > deadline_s), SQLITE_STEPS)
    try:
        said = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError as error:
        if "interrupted" in str(error):
            return ""
        raise
    finally:
        db.set_progress_handler(None, 0)
    return "" if said == "ok" else said


def _ask_agent(socket: Path) -> Mapping[str, Any] | None:
    try:
        state: Mapping[str, Any] = agent_client.get(socket, "/v1/state", timeout_s=AGENT_TIMEOUT_S)
    except (AgentUnreachable, RequestError):
        return None
    return state


# ---- judging --------------------------------------------------------------------------------------------------------


def runs(journal: JournalFacts, hot_key: str | None) -> bool:
    """Whether the agent of this hot key runs here and answers."""
    return journal.state is not None and hot_key in (None, journal.state["node"]["hot_key"])


def check_journal(journal: JournalFacts, identity: Identity | None, chain_nonce: int | None) -> Iterator[Finding]:
    """`identity`: whose it should be; `chain_nonce`: how many transactions the hot key has sent."""
    if journal.damage:
        yield critical(
            Code.JOURNAL_CORRUPT,
            f"{journal.path} is damaged: {journal.damage}",
            "stop the node and restore its journal from a backup: `openlora restore`",
        )
    elif journal.schema > len(MIGRATIONS):
        yield critical(
            Code.JOURNAL_NEWER,
            f"{journal.path} has schema {journal.schema}, and this program knows {len(MIGRATIONS)}",
            "upgrade this program",
        )
    elif identity is not None:
        yield from _belonging(journal, identity)
        if not journal.state and chain_nonce is not None:
            yield from _age(journal, identity, chain_nonce)


def _belonging(journal: JournalFacts, identity: Identity) -> Iterator[Finding]:
    recorded = journal.recorded or {}
    if (name := identity.contradicted(recorded)) is not None:
        yield critical(
            Code.JOURNAL_FOREIGN,
            f"{journal.path} belongs to {name} {recorded[name]}, not {identity.named_parts()[name]}",
            "use another state_dir, or the configuration that this journal belongs to",
        )


def _age(journal: JournalFacts, identity: Identity, chain_nonce: int) -> Iterator[Finding]:
    """A hot key that takes over from another one must not have sent anything yet."""
    former = (journal.recorded or {}).get("hot key") not in (None, identity.hot_key.lower())
    known = None if former else journal.next_nonce
    if chain_nonce > (known or 0):
        lacks = f"knows {known}" if known is not None else "knows none of them"
        yield critical(
            Code.JOURNAL_BEHIND,
            f"the hot key has sent {chain_nonce} transactions and this journal {lacks}: nothing would be signed",
            "restore the newest journal, end any other agent with this key, or use a fresh hot key",
        )


def check_agent(journal: JournalFacts, hot_key: str | None) -> Iterator[Finding]:
    if journal.holder is not None and not runs(journal, hot_key):
        does, fix = "does not answer", "wait a minute if it has just been started; otherwise end that process"
        if journal.state is not None:
            does, fix = f"has the hot key {journal.state['node']['hot_key']}", "end that process"
        yield critical(
            Code.AGENT_SECOND,
            f"process {journal.holder} holds {journal.path.parent} and {does}",
            f"{fix}, or use another state_dir",
        )
    if journal.state is not None and runs(journal, hot_key):
        for alert in journal.state["alerts"]:
            if alert["code"] in ("engine_down", "network_down", "chain_silent"):
                yield critical(Code.PART_DOWN, alert["message"], "read `openlora logs`")
            if alert["code"] == "broker_refuses":
                yield warning(Code.BROKER_REFUSES, alert["message"], "see `configs/mosquitto.acl`")
    if journal.state is not None and journal.state.get("queue", {}).get("draining"):
        yield warning(
            Code.CLAIMS_OFF, "the node is being drained: it claims nothing", "restart it, or `openlora drain --undo`"
        )
