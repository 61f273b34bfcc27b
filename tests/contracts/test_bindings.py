"""Calls, events and the generator that writes them."""

import runpy
from pathlib import Path

import pytest
from eth_abi.abi import decode, encode
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from openlora.contracts import (
    AbiMismatch,
    AdapterRegistered,
    JobQueue,
    JobSpec,
    JobState,
    JobSubmitted,
    NodeRegistered,
    Paid,
    Recipe,
    Role,
    Vault,
    bindings,
    decode_log,
)
from openlora.contracts.artifact import NAMES, load_artifact
from openlora.contracts.bindings.adapter_registry import AdapterRegistry

CONTRACTS = Path(__file__).parents[2] / "contracts"
QUEUE = to_checksum_address("0x" + "aa" * 20)
CLIENT = to_checksum_address("0x" + "c1" * 20)
SPEC = JobSpec(CLIENT, 3, b"\x11" * 32, 512, 256, 10**18, 2 * 10**18, 1_900_000_000, 120, 0, 2**255)


def word(value: int | str) -> bytes:
    return encode(["address" if isinstance(value, str) else "uint256"], [value])


def test_the_committed_bindings_are_what_the_generator_writes() -> None:
    written = runpy.run_path(str(CONTRACTS / "script" / "bind.py"))["generate"]()
    folder = CONTRACTS / "openlora" / "contracts" / "bindings"
    assert {path.name for path in folder.glob("*.py")} == set(written)
    for name, text in written.items():
        assert (folder / name).read_text(encoding="utf-8") == text, name


def test_a_call_is_selector_and_arguments() -> None:
    call = JobQueue(QUEUE).claim(job_id=7, spec=SPEC)
    assert (call.to, call.name) == (QUEUE, "JobQueue.claim")
    assert call.data[:4] == keccak(text=f"claim(uint64,{JobSpec.ABI})")[:4]
    job_id, spec = decode(["uint64", JobSpec.ABI], call.data[4:])
    assert (job_id, JobSpec.from_abi(spec)) == (7, SPEC)
    assert call.decode(b"") is None


def test_results_become_dataclasses() -> None:
    job = JobQueue(QUEUE).job(7)
    abi = "(bytes32,bytes32,address,uint8,uint16,uint40,uint40,uint64,uint96)"
    found = job.decode(encode([abi], [(b"\1" * 32, bytes(32), CLIENT.lower(), 2, 1, 9, 0, 5, 4)]))
    assert (found.state, found.node, found.lease_deadline, found.forfeited) == (JobState.CLAIMED, CLIENT, 9, 4)


def test_nested_lists_of_structs_decode() -> None:
    call = AdapterRegistry(QUEUE).recipe(1)
    legs = [(CLIENT, 3, 1_000, 0), (QUEUE, 4, 500, 0)]
    recipe = call.decode(encode([Recipe.ABI], [(b"\2" * 32, [b"\3" * 32], [-7], legs, 0, 1)]))
    assert recipe.weights == (-7,)
    assert [(leg.payee, leg.role, leg.bps) for leg in recipe.legs] == [
        (CLIENT, Role.BASE, 1_000),
        (QUEUE, Role.PROTOCOL, 500),
    ]
    assert Recipe.from_abi(recipe.to_abi()) == recipe


def test_lists_of_structs_encode() -> None:
    call = JobQueue(QUEUE).submit_many(specs=[SPEC, SPEC], documents=[b"", b"x"])
    specs, documents = decode([f"{JobSpec.ABI}[]", "bytes[]"], call.data[4:])
    assert [JobSpec.from_abi(spec) for spec in specs] == [SPEC, SPEC]
    assert documents == (b"", b"x")


@pytest.mark.parametrize("output", [b"", b"\0" * 31, b"\xff" * 32])
def test_an_answer_of_another_shape_is_a_mismatch(output: bytes) -> None:
    with pytest.raises(AbiMismatch):
        JobQueue(QUEUE).job_count().decode(output)


def test_logs_decode_by_their_first_topic() -> None:
    topics = [JobSubmitted.TOPIC, word(7), word(CLIENT)]
    data = encode(["bytes32", JobSpec.ABI, "bytes"], [b"\4" * 32, SPEC.to_abi(), b"doc"])
    assert decode_log(topics, data) == JobSubmitted(7, CLIENT, b"\4" * 32, SPEC, b"doc")
    paid = decode_log([Paid.TOPIC, word(CLIENT), word(2), word(9)], word(5))
    assert paid == Paid(payee=CLIENT, role=Role.DATANET, recipe_id=9, amount=5)


def test_a_name_that_is_not_utf_8_is_read_all_the_same() -> None:
    """Anybody may register one, and nobody's reading of the registry may end with it."""
    data = encode(["string"], ["ab"]).replace(b"ab", b"\xff\xfe")
    event = decode_log([AdapterRegistered.TOPIC, word(1), word(2), word(CLIENT)], data)
    assert isinstance(event, AdapterRegistered)
    assert event.name == "\ufffd\ufffd"


def test_foreign_logs_are_none() -> None:
    assert decode_log([], b"") is None
    assert decode_log([b"\7" * 32, word(1)], b"data") is None


@pytest.mark.parametrize(
    ("topics", "data"),
    [
        ([NodeRegistered.TOPIC], b""),
        ([Paid.TOPIC, word(CLIENT), word(2), word(9)], b""),
        ([Paid.TOPIC, word(CLIENT), word(2), b"\xff" * 32], word(5)),
        ([JobSubmitted.TOPIC, word(7), word(CLIENT)], b"\xff" * 512),
    ],
)
def test_a_log_that_contradicts_its_topic_is_a_mismatch(topics: list[bytes], data: bytes) -> None:
    with pytest.raises(AbiMismatch):
        decode_log(topics, data)


def test_a_role_out_of_range_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="9 is not a valid Role"):
        decode_log([Paid.TOPIC, word(CLIENT), word(9), word(9)], word(5))


@pytest.mark.parametrize("name", NAMES)
def test_every_event_of_every_abi_has_a_binding(name: str) -> None:
    known = {kind.__name__ for kind in bindings.Event.__args__}
    assert {entry["name"] for entry in load_artifact(name).abi if entry["type"] == "event"} <= known


def test_only_our_artefacts_load() -> None:
    assert load_artifact("Vault").bytecode[0] in (0x60, 0x61)  # PUSH1 or PUSH2
    with pytest.raises(KeyError, match="no contract named"):
        load_artifact("../../secrets")
    assert Vault(QUEUE).token().name == "Vault.token"
