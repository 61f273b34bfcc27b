"""Addresses, steps, and the strict deployment file."""

import json
from dataclasses import replace

import pytest
from eth_abi.abi import decode
from eth_utils.address import to_checksum_address

from openlora.contracts import (
    Deployment,
    DisputeTerms,
    MarketSettings,
    OutputTerms,
    Params,
    create_address,
    deployment_of,
    deployment_steps,
)
from openlora.contracts.artifact import load_artifact

DEPLOYER = to_checksum_address("0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266")
TOKEN = to_checksum_address("0x" + "aa" * 20)
SETTINGS = MarketSettings(
    owner=DEPLOYER,
    guardian=DEPLOYER,
    treasury=DEPLOYER,
    params=Params(10**18, 8, 60, 600, 3600),
    timelock_s=3_600,
    close_delay_s=600,
    unstake_delay_s=600,
    output_terms=OutputTerms(answer_secs=600, bond=1, bond_per_token=0, max_out_tokens=8_192),
    dispute_terms=DisputeTerms(20, 100, 10, 100, 200, 200, 60, 500),
)


@pytest.mark.parametrize(
    ("nonce", "address"),
    [
        (0, "0x5FbDB2315678afecb367f032d93F642f64180aa3"),
        (1, "0xe7f1725E7734CE288F8367e1Bb143E90bb3F0512"),
        (2, "0x9fE46736679d2D9a65F0992F2272dE9f3c7fa6e0"),
    ],
)
def test_create_addresses(nonce: int, address: str) -> None:
    assert create_address(DEPLOYER, nonce) == address


def test_create_addresses_differ_where_rlp_changes_length() -> None:
    nonces = (0, 1, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 0x10000, 2**63)
    assert len({create_address(DEPLOYER, nonce) for nonce in nonces}) == len(nonces)


def test_steps_are_consecutive_and_name_each_other() -> None:
    steps = deployment_steps(DEPLOYER, 5, SETTINGS)
    assert [(step.name, step.nonce) for step in steps] == [
        ("DevToken", 5),
        ("Vault", 6),
        ("AdapterRegistry", 7),
        ("NodeRegistry", 8),
        ("JobQueue", 9),
        ("Sessions", 10),
        ("Outputs", 11),
        ("Disputes", 12),
        ("Governance", 13),
    ]
    at = {step.name: step for step in steps}
    arguments = at["Vault"].data[len(load_artifact("Vault").bytecode) :]
    token, modules = decode(["address", "(address,address,address,address,address)"], arguments)
    assert token == at["DevToken"].address.lower()
    holders = ("NodeRegistry", "JobQueue", "Sessions", "Outputs", "Disputes")
    assert modules == tuple(at[name].address.lower() for name in holders)


def test_an_existing_token_is_used() -> None:
    settings = replace(SETTINGS, token=TOKEN)
    steps = deployment_steps(DEPLOYER, 0, settings)
    assert [step.name for step in steps] == [
        "Vault",
        "AdapterRegistry",
        "NodeRegistry",
        "JobQueue",
        "Sessions",
        "Outputs",
        "Disputes",
        "Governance",
    ]
    assert deployment_of(steps, settings, chain_id=1, block=2).token == TOKEN


def a_deployment() -> Deployment:
    return deployment_of(deployment_steps(DEPLOYER, 0, SETTINGS), SETTINGS, chain_id=31337, block=12)


def test_a_deployment_survives_json() -> None:
    assert Deployment.from_json(a_deployment().to_json()) == a_deployment()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"vault": "0x12"}, "vault: not a checksummed address"),
        ({"vault": 5}, "vault: not a checksummed address"),
        ({"vault": DEPLOYER.lower()}, "vault: not a checksummed address"),
        ({"block": -1}, "block: not a non-negative integer"),
        ({"chain_id": True}, "chain_id: not a non-negative integer"),
        ({"chain_id": "1"}, "chain_id: not a non-negative integer"),
        ({"extra": 1}, "extra: unknown key"),
        ({"token": None, "block": 1.5}, "block: not a non-negative integer; token: not a checksummed address"),
    ],
)
def test_a_wrong_file_names_its_fault(change: dict[str, object], fault: str) -> None:
    document = json.loads(a_deployment().to_json()) | change
    with pytest.raises(ValueError, match=fault):
        Deployment.from_json(json.dumps(document))


def test_of_many_faults_the_first_are_named() -> None:
    with pytest.raises(ValueError, match=r"^name: unknown key; chain_id: missing; block: missing; and \d+ more$"):
        Deployment.from_json('{"name": "another kind of file"}')


@pytest.mark.parametrize("text", ["{}", "[]", "null", "not json"])
def test_what_is_no_deployment_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"missing|object|Expecting"):
        Deployment.from_json(text)
