"""What an operator does to a running node: drain it, and have it read its configuration again."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from openlora.node.config import NodeConfig, Table, load
from openlora.node.errors import ConfigError
from openlora.node.terms import Terms

log = logging.getLogger(__name__)

LIVE: Final = ("market.", "storage.min_free_bytes")  # what a running node can be told anew


class Reloaded(msgspec.Struct, frozen=True, kw_only=True):
    """Keys whose values differ from those that were in force: taken over, or kept until the node is restarted."""

    changed: tuple[str, ...]
    needs_restart: tuple[str, ...]


@dataclass(slots=True)
class Steering:
    """`config` is what was read from `path` last; `changed` is called whenever the terms have."""

    path: Path
    config: NodeConfig
    terms: Terms
    changed: Callable[[], None]

    def drain(self, draining: bool) -> None:
        """From now on no job is claimed, or jobs are claimed again. What is under way goes on."""
        self.terms.draining = draining
        log.info("event=%s", "draining" if draining else "claiming_again")
        self.changed()

    def reload(self) -> Reloaded:
        """Takes over what may change in a running node. Raises ConfigError for a file with any fault: all stays."""
        new = load(self.path, NodeConfig)
        differing = tuple(differences(self.config, new))
        changed = tuple(key for key in differing if key.startswith(LIVE))
        self.terms.market = new.market
        self.terms.min_free_bytes = new.storage.min_free_bytes
        storage = msgspec.structs.replace(self.config.storage, min_free_bytes=new.storage.min_free_bytes)
        self.config = msgspec.structs.replace(self.config, market=new.market, storage=storage)
        restart = tuple(key for key in differing if key not in changed)
        log.info("event=config_reloaded changed=%s needs_restart=%s", ",".join(changed), ",".join(restart))
        self.changed()
        return Reloaded(changed=changed, needs_restart=restart)

    def reload_quietly(self) -> None:
        """For a signal, which nobody waits for: the log says what became of it."""
        try:
            self.reload()
        except ConfigError as error:
            log.error("event=config_refused reason=%r", str(error))


def differences(old: Table, new: Table, prefix: str = "") -> Iterator[str]:
    """The dotted names of keys whose values differ."""
    for field in msgspec.structs.fields(old):
        was, now = getattr(old, field.name), getattr(new, field.name)
        if isinstance(was, Table):
            yield from differences(was, now, f"{prefix}{field.name}.")
        elif was != now:
            yield prefix + field.name
