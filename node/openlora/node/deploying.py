"""A market put on a chain, from a file that says who governs it and on what terms."""

import dataclasses
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
from eth_account.signers.local import LocalAccount
from eth_utils.address import is_checksum_address

from openlora.contracts import Deployment, MarketSettings, deployment_of, deployment_steps
from openlora.node.chain.client import ChainClient
from openlora.node.chain.transact import create
from openlora.node.errors import ChainError, ConfigError

ADDRESSES = ("owner", "guardian", "treasury", "token")


def load_settings(path: Path) -> MarketSettings:
    """Strict TOML: every field of MarketSettings, and no other. Raises ConfigError naming every fault."""
    try:
        raw = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; configs/market.example.toml is one to begin with") from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    faults = [*_unknown(raw, MarketSettings), *(f"{name}: no checksummed address" for name in _mistyped(raw))]
    if not faults:
        try:
            return msgspec.convert(raw, MarketSettings)
        except msgspec.ValidationError as error:
            faults.append(str(error))
    raise ConfigError(f"{path}: " + "; ".join(faults))


async def deploy(
    client: ChainClient, deployer: LocalAccount, settings: MarketSettings, told: Callable[[str], None] = lambda _: None
) -> Deployment:
    """Creates the contracts one by one, and checks that each has code where the others expect it.

    `told` hears of each. Nothing that is created before a failure is of use: begin again. Raises ChainError, Reverted.
    """
    head = await client.block("latest")
    steps = deployment_steps(deployer.address, await client.nonce(deployer.address), settings)
    for step in steps:
        await create(client, deployer, step.data, name=step.name)
        if not await client.code(step.address):
            raise ChainError(
                f"{step.name} is not at {step.address}: the deployer's nonce was used by others; begin again"
            )
        told(f"{step.name} {step.address}")
    return deployment_of(steps, settings, chain_id=client.chain_id, block=head.number)


def _unknown(raw: dict[str, Any], kind: type[Any], prefix: str = "") -> Iterator[str]:
    """Keys that no field has, in nested tables too."""
    hints = get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    for key, value in raw.items():
        if key not in names:
            yield f"unknown key {prefix}{key}"
        elif isinstance(value, dict) and dataclasses.is_dataclass(hints[key]):
            yield from _unknown(value, hints[key], f"{prefix}{key}.")


def _mistyped(raw: dict[str, Any]) -> Iterator[str]:
    return (name for name in ADDRESSES if name in raw and not is_checksum_address(raw[name]))
