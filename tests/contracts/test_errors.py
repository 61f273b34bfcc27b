"""Every error of every ABI has its sentence, and no bytes make the decoder fail."""

from typing import Any

import pytest
from eth_abi.abi import encode
from hypothesis import given
from hypothesis import strategies as st

from openlora.contracts.bindings import (
    adapter_registry,
    disputes,
    governance,
    job_queue,
    node_registry,
    outputs,
    sessions,
    token,
    vault,
)
from openlora.contracts.call import ErrorType
from openlora.contracts.errors import SENTENCES, decode_revert

ERRORS = {
    f"{error.name}({','.join(error.types)})": error
    for module in (vault, node_registry, adapter_registry, job_queue, sessions, outputs, disputes, governance, token)
    for error in module.ERRORS
}


def some(abi_type: str) -> Any:
    return {"address": "0x" + "aa" * 20, "bytes32": b"\x05" * 32, "bytes4": b"\x05" * 4, "string": "text"}.get(
        abi_type, 3
    )


def test_sentences_and_errors_are_the_same_set() -> None:
    assert set(SENTENCES) == set(ERRORS)


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_each_error_is_one_sentence(error: ErrorType) -> None:
    decoded = decode_revert(error.selector + encode(error.types, [some(kind) for kind in error.types]))
    assert decoded.name == error.name
    assert tuple(decoded.args) == error.fields
    assert len(decoded.sentence) > 20
    assert not decoded.sentence.endswith(".")
    assert "{" not in decoded.sentence


def test_a_state_is_named() -> None:
    error = ERRORS["WrongState(uint64,uint8)"]
    assert "job 7 is claimed" in decode_revert(error.selector + encode(error.types, [7, 2])).sentence
    ended = ERRORS["WrongState(bytes32,uint8)"]
    assert "is closed" in decode_revert(ended.selector + encode(ended.types, [bytes(32), 3])).sentence
    assert "unknown state 77" in decode_revert(error.selector + encode(error.types, [7, 77])).sentence


def test_solidity_s_own_reverts() -> None:
    reason = decode_revert(bytes.fromhex("08c379a0") + encode(["string"], ["too late"]))
    assert (reason.name, reason.sentence) == ("Error", "the contract says: too late")
    panic = decode_revert(bytes.fromhex("4e487b71") + encode(["uint256"], [0x11]))
    assert (panic.name, panic.args) == ("Panic", {"code": 0x11})
    assert "overflow" in panic.sentence
    assert decode_revert(b"").name == ""


@given(
    st.sampled_from([b"", *(error.selector for error in ERRORS.values()), bytes.fromhex("08c379a0")]),
    st.binary(max_size=200),
)
def test_no_bytes_make_it_fail(selector: bytes, rest: bytes) -> None:
    assert decode_revert(selector + rest).sentence
