"""A contract call as data: what to send where, and how to read the answer. Nothing here talks to a chain."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from eth_abi.abi import encode
from eth_abi.codec import ABIDecoder
from eth_abi.decoding import StringDecoder
from eth_abi.exceptions import DecodingError
from eth_abi.registry import BaseEquals, registry
from eth_typing import ChecksumAddress

T = TypeVar("T")


def _lenient() -> ABIDecoder:
    """The EVM does not check that a string is UTF-8, so a stranger's name may be anything: it is read all the same."""
    lenient = registry.copy()
    lenient.unregister_decoder("string")
    text = StringDecoder(handle_string_errors="replace")
    lenient.register_decoder(BaseEquals("string", with_sub=False), text, label="string")
    return ABIDecoder(lenient)


_decoder = _lenient()


class AbiMismatch(ValueError):
    """Bytes that are not what the ABI promises: another contract, another version, or a lying RPC."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """`data` goes to `to`, as a transaction or an `eth_call`; `decode` reads what the latter returns."""

    to: ChecksumAddress
    data: bytes
    name: str  # "JobQueue.claim"
    decode: Callable[[bytes], T]


@dataclass(frozen=True, slots=True)
class ErrorType:
    """A custom error of a contract's ABI."""

    name: str
    selector: bytes
    fields: tuple[str, ...]  # snake_case
    types: tuple[str, ...]


def encode_call(selector: bytes, types: Sequence[str], values: Sequence[Any]) -> bytes:
    """Calldata: the selector, then the ABI-encoded arguments. Raises eth_abi's EncodingError out of range."""
    return selector + encode(types, values)


def decode_values(types: Sequence[str], data: bytes) -> tuple[Any, ...]:
    """The ABI-decoded values; bytes that are not UTF-8 become U+FFFD in strings. Raises AbiMismatch."""
    try:
        return _decoder.decode(types, data)
    except (DecodingError, OverflowError) as error:
        raise AbiMismatch(f"{len(data)} bytes are not ({','.join(types)}): {error}") from error


def decode_one(abi_type: str, data: bytes) -> Any:
    """A call's single return value."""
    return decode_values([abi_type], data)[0]


def decode_nothing(_data: bytes) -> None:
    """For calls that return nothing."""


def decode_topics(types: Sequence[str], topics: Sequence[bytes]) -> tuple[Any, ...]:
    """An event's indexed values: the topics after the first, one word each; raises AbiMismatch."""
    if len(topics) != len(types) + 1:
        raise AbiMismatch(f"{len(topics)} topics where the event has {len(types) + 1}")
    return decode_values(types, b"".join(topics[1:]))
