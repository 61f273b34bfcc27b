"""Whose hand signs a command's transactions: a configuration's key, an operator's keystore, or somebody elsewhere."""

import asyncio
import functools
import getpass
import inspect
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openlora.node.cli.output import ClientFile, Output
from openlora.node.errors import ChainError, ConfigError

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount
    from eth_typing import ChecksumAddress

    from openlora.node.deeds import Deed, Desk

OperatorKeystore = Annotated[
    Path | None, typer.Option(help="Keystore v3 file to sign with, in place of the configuration's key.")
]
PasswordFile = Annotated[Path | None, typer.Option(help="File with its password; if not given, the terminal is asked.")]
UnsignedFlag = Annotated[
    bool, typer.Option("--unsigned", help="Print the transactions as JSON, to be signed elsewhere; send nothing.")
]
FromAddress = Annotated[
    str | None,
    typer.Option("--from", help="With --unsigned: the address that will send them; the keystore's by default."),
]

Drawn = Callable[["Desk"], Awaitable[Sequence["Deed"]]]


@dataclass(frozen=True, slots=True)
class Hand:
    """The options that every money command takes: see `signed`."""

    client: ClientFile
    operator_keystore: OperatorKeystore = None
    password_file: PasswordFile = None
    unsigned: UnsignedFlag = False
    sender: FromAddress = None

    def carry_out(self, draw: Drawn, output: Output, said: Mapping[str, Any] | None = None) -> None:
        """Has the deeds that `draw` draws up sent one after another, or prints them unsigned.

        `said` goes into the JSON of what was sent, as it is by then. Raises ConfigError, ChainError, Reverted.
        """
        asyncio.run(self._carry_out(draw, output, {} if said is None else said))

    async def _carry_out(self, draw: Drawn, output: Output, said: Mapping[str, Any]) -> None:
        from openlora.node.chain.transact import transact
        from openlora.node.deeds import stopped

        async with self.desk() as (desk, key):
            deeds = await draw(desk)
            if key is None:
                Output(as_json=True).result([draft.as_json() for draft in await desk.unsigned(deeds)])
                return
            sent: list[dict[str, Any]] = []
            for deed in deeds:
                try:
                    receipt = await transact(desk.chain, key, deed.call)
                except ChainError as error:
                    raise stopped(error, deeds[: len(sent)]) from error.__cause__
                output.say(f"done: {deed.does}")
                sent.append({"hash": receipt.tx_hash, "block": receipt.block.number, "does": deed.does})
            if not deeds:
                output.say("there is nothing to do")
            output.result({"address": desk.address, **said, "transactions": sent})

    @asynccontextmanager
    async def desk(self) -> AsyncIterator[tuple["Desk", "LocalAccount | None"]]:
        """The desk of the address that acts, and its key unless it is elsewhere."""
        from openlora.node.chain.client import ChainClient
        from openlora.node.config import ClientConfig, load
        from openlora.node.deeds import Desk
        from openlora.node.deployment import load_deployment

        config = load(self.client, ClientConfig)
        if self.sender is not None and not self.unsigned:
            raise ConfigError("--from goes with --unsigned: whoever signs here acts for its own address")
        key = None if self.unsigned else self._key(config.key)
        address = self._address(config.key) if key is None else key.address
        deployment = load_deployment(config.chain)
        chain = await ChainClient.connect(config.chain.rpc_urls, config.chain.chain_id, deployment)
        try:
            yield Desk(chain, deployment, address), key
        finally:
            await chain.close()

    def _key(self, configured: Any) -> "LocalAccount":
        from openlora.node.keys import load_key

        if self.operator_keystore is None:
            return load_key(configured)
        return unlocked(self.operator_keystore, self.password_file)

    def _address(self, configured: Any) -> "ChecksumAddress":
        from openlora.node.keys import address_in

        return parse_address(self.sender) if self.sender else address_in(self.operator_keystore or configured.keystore)


def signed(client: Path) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command, whose first parameter is a Hand, the options that make one; they are shown before its last.

    `client` is the configuration that acts unless another is named. typer reads options from a function's signature.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        _, *own, last = inspect.signature(command).parameters.values()
        configuration, *others = inspect.signature(Hand).parameters.values()
        options = [configuration.replace(default=client), *others]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            hand = Hand(**{option.name: given.pop(option.name) for option in options})
            command(hand, **given)

        signature = inspect.Signature([*own, *options, last])
        vars(run)["__signature__"] = signature
        run.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
        return run

    return decorate


def unlocked(keystore: Path, password_file: Path | None) -> "LocalAccount":
    """The key in a keystore, its password from a file or else from the terminal. Raises ConfigError."""
    from openlora.node.keys import read_password, unlock

    if password_file is not None:
        return unlock(keystore, read_password(password_file), f"the password in {password_file}")
    if not sys.stdin.isatty():
        raise ConfigError(f"no terminal to ask for the password of {keystore} on; give --password-file")
    return unlock(keystore, _asked(f"password of {keystore}: "))


def _asked(prompt: str) -> str:
    """Ctrl-C ends it at once; a running event loop would only pass the first one on at its next await."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return getpass.getpass(prompt)
    finally:
        signal.signal(signal.SIGINT, former)


def parse_address(text: str) -> "ChecksumAddress":
    """An address whose checksum, if it has one, is right: money sent to a mistyped one is gone. Raises ConfigError."""
    from eth_utils.address import is_checksum_address, is_hex_address, to_checksum_address

    digits = text.removeprefix("0x")
    unmarked = digits in (digits.lower(), digits.upper())
    if not is_hex_address(text) or not (unmarked or is_checksum_address(text)):
        raise ConfigError(f"{text} is no address, or is mistyped: its checksum does not fit")
    return to_checksum_address(text)
