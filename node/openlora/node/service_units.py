"""A node's services on a machine that systemd runs: their files, and the commands that make them known."""

import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from openlora.node.config import NodeConfig

TARGET: Final = "openlora.target"
UNITS: Final = (TARGET, "openlora-agent.service", "openlora-p2p.service", "openlora-engine@.service")
CONFIG: Final = Path("/etc/openlora/node.toml")
STATE: Final = Path("/var/lib/openlora")
PASSWORD: Final = Path("/run/credentials/openlora-agent.service/hot.password")
SHIPPED_BIN: Final = "/opt/openlora/bin/"
HIDDEN: Final = (Path("/home"), Path("/root"), Path("/run/user"), Path("/tmp"))  # noqa: S108 - what the units cannot see

_PLACES: Final = {
    **{unit: f"etc/systemd/system/{unit}" for unit in UNITS},
    "openlora.sysusers": "etc/sysusers.d/openlora.conf",
    "openlora.tmpfiles": "etc/tmpfiles.d/openlora.conf",
    "openlora.logrotate": "etc/logrotate.d/openlora",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What would be done. `commands` are run in order after `files` are written, or `gone` removed."""

    files: dict[Path, str]
    gone: tuple[Path, ...]
    before: Sequence[Sequence[str]]
    commands: Sequence[Sequence[str]]


def to_install(prefix: Path, bin_dir: Path) -> Plan:
    """The services run what is in `bin_dir`, and lie below `prefix`, where / is this machine."""
    files = {
        prefix / place: (shipped() / name).read_text().replace(SHIPPED_BIN, f"{bin_dir}/")
        for name, place in _PLACES.items()
    }
    made = (
        ("systemd-sysusers", "/" + _PLACES["openlora.sysusers"]),
        ("systemd-tmpfiles", "--create", "/" + _PLACES["openlora.tmpfiles"]),
        ("systemctl", "daemon-reload"),
    )
    return Plan(files, (), (), made if prefix == Path("/") else ())


def to_uninstall(prefix: Path) -> Plan:
    """Stops the node and forgets its services. Users, keys, journal and adapters stay: they are money."""
    gone = tuple(path for place in _PLACES.values() if (path := prefix / place).exists())
    if prefix != Path("/"):
        return Plan({}, gone, (), ())
    stopped = ("systemctl", "disable", "--now", *UNITS[:-1], "openlora-engine@*.service")
    return Plan({}, gone, (stopped,) if gone else (), (("systemctl", "daemon-reload"),))


def shipped() -> Path:
    """The folder of the files: this source tree's, or what the package brought."""
    sources = Path(__file__).resolve().parents[3] / "systemd"
    return sources if sources.is_dir() else Path(sysconfig.get_path("data")) / "share/openlora/systemd"


def own_bin_dir() -> Path:
    """Where the running `openlora` and its Python are; not what a virtual environment's links point to."""
    return Path(sys.executable).parent


def is_hidden(bin_dir: Path) -> bool:
    """Whether the units' sandboxes have no such folder."""
    return any(bin_dir.is_relative_to(folder) for folder in HIDDEN)


def misfits(config: NodeConfig) -> Iterator[str]:
    """What in a configuration the services would stumble over."""
    if config.state_dir != STATE:
        yield f'state_dir should be "{STATE}": the agent may write nowhere else'
    if config.storage.content_dir != STATE / "content":
        yield f'storage.content_dir should be "{STATE / "content"}": agent and network process share it'
    if config.hot_key.password_file != PASSWORD:
        yield f'hot_key.password_file should be "{PASSWORD}": there the credential is'
    if not config.model.path.is_relative_to(STATE / "models"):
        yield f"model.path should be below {STATE / 'models'}, or openlora-engine@.service needs a drop-in for it"
    for number in range(1, len(config.engine.devices)):
        yield f"engine.devices has a device {number}: systemctl enable openlora-engine@{number}"
