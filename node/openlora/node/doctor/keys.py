"""The hot key and the contracts' file, as they lie on this machine."""

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from openlora.contracts import Deployment
from openlora.node.config import ChainConfig, KeyConfig
from openlora.node.deployment import load_deployment
from openlora.node.doctor.finding import Code, Finding, critical, warning
from openlora.node.errors import ConfigError
from openlora.node.keys import address_in, load_key
from openlora.node.private.sealing import public_key

CREDENTIALS: Final = Path("/run/credentials")  # of systemd: there while the unit runs, for it alone


@dataclass(frozen=True, slots=True)
class FileFacts:
    path: Path
    exists: bool
    mode: int = 0


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """`address` is the unlocked key's; where `refusal` says why it cannot be unlocked, what the keystore says it is."""

    keystore: FileFacts
    password: FileFacts
    address: str | None
    refusal: str | None
    encryption_key: bytes | None = None  # to which clients wrap the keys of private jobs; None where it is locked


@dataclass(frozen=True, slots=True)
class DeploymentFacts:
    path: Path
    exists: bool
    deployment: Deployment | None
    refusal: str | None


def look_at_file(path: Path) -> FileFacts:
    try:
        return FileFacts(path, True, stat.S_IMODE(path.stat().st_mode))
    except OSError:
        return FileFacts(path, False)


def look_at_key(config: KeyConfig) -> KeyFacts:
    """Blocks for the second that unlocking takes."""
    files = look_at_file(config.keystore), look_at_file(config.password_file)
    try:
        key = load_key(config)
    except ConfigError as error:
        return KeyFacts(*files, written_address(config.keystore), str(error))
    return KeyFacts(*files, str(key.address), None, public_key(bytes(key.key)))


def look_at_deployment(config: ChainConfig) -> DeploymentFacts:
    try:
        return DeploymentFacts(config.deployment, True, load_deployment(config), None)
    except ConfigError as error:
        return DeploymentFacts(config.deployment, config.deployment.exists(), None, str(error))


def named_operator(operator_toml: Path) -> str | None:
    """The address in the operator's keystore, which needs no password; None where neither is on this machine."""
    from openlora.node.config import ClientConfig, load

    try:
        return written_address(load(operator_toml, ClientConfig).key.keystore)
    except ConfigError:
        return None


def written_address(keystore: Path) -> str | None:
    """The address that a keystore names in the clear; None where there is none."""
    try:
        return str(address_in(keystore))
    except ConfigError:
        return None


def check_key(key: KeyFacts, *, runs: bool) -> Iterator[Finding]:
    """`runs`: the agent has unlocked the key already, perhaps by a credential that we may not see."""
    keystore, password = key.keystore.path, key.password.path
    if not key.keystore.exists:
        yield critical(
            Code.KEYSTORE_MISSING,
            f"the hot key's keystore {keystore} does not exist",
            "restore it with `openlora restore`, or make keys with `openlora init`",
        )
    if not key.password.exists and not runs:
        of_systemd = password.is_relative_to(CREDENTIALS)
        severe, why = (warning, ": systemd makes it when the unit starts") if of_systemd else (critical, "")
        yield severe(
            Code.PASSWORD_MISSING,
            f"the hot key's password {password} does not exist{why}",
            "start the service, and look again" if of_systemd else "put it there, or correct hot_key.password_file",
        )
    if not runs and key.refusal and key.keystore.exists and key.password.exists:
        wrong = "does not open" in key.refusal
        yield critical(
            Code.PASSWORD_WRONG if wrong else Code.KEYSTORE_UNREADABLE,
            key.refusal,
            "put the right password there" if wrong else "give the node's user a readable keystore v3 file",
        )
    exposed = [str(file.path) for file in (key.keystore, key.password) if file.exists and file.mode & stat.S_IRWXO]
    if exposed:
        yield warning(
            Code.KEYSTORE_EXPOSED,
            f"other users of this machine can read {' and '.join(exposed)}",
            f"chmod o= {' '.join(exposed)}",
        )


def check_encryption_key(key: KeyFacts, registered: bytes) -> Iterator[Finding]:
    """`registered`: what the chain tells clients."""
    if key.encryption_key not in (None, registered):
        yield warning(
            Code.ENCRYPTION_KEY_UNTOLD,
            "the registry does not have the encryption key that goes with the hot key: no private job comes",
            "type `openlora register --stake` with what is at stake already, which adds it for gas alone",
        )


def check_deployment(facts: DeploymentFacts, chain_id: int) -> Iterator[Finding]:
    if not facts.exists:
        yield critical(
            Code.DEPLOYMENT_MISSING,
            f"the contracts' file {facts.path} does not exist",
            "get the deployment file of your network and name it in chain.deployment",
        )
    elif facts.deployment is None:
        yield critical(Code.DEPLOYMENT_INVALID, str(facts.refusal), "get the deployment file of your network once more")
    elif facts.deployment.chain_id != chain_id:
        yield critical(
            Code.DEPLOYMENT_OTHER_CHAIN,
            f"{facts.path} is of chain {facts.deployment.chain_id}, and chain.chain_id is {chain_id}",
            "use the chain id and the deployment file of one network",
        )
