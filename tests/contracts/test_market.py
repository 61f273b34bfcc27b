"""One job from Python, end to end on a real EVM: what the bindings send, the contracts understand."""

import json
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from threading import Thread
from typing import Any, TypeVar

import pytest
from eth_abi.abi import encode
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_typing import ChecksumAddress
from eth_utils.crypto import keccak

from openlora.contracts import (
    AdapterRegistry,
    Answer,
    Call,
    Deployment,
    DevToken,
    Disputes,
    DisputeTerms,
    Event,
    JobFinalized,
    JobQueue,
    JobSpec,
    JobState,
    JobSubmitted,
    Lane,
    Line,
    MarketSettings,
    NodeRegistry,
    OutputTerms,
    Paid,
    Params,
    Receipt,
    SessionClosed,
    SessionOpened,
    Sessions,
    SessionState,
    Settlement,
    SignedReceipt,
    Slashed,
    Vault,
    decode_log,
    decode_revert,
    deployment_of,
    deployment_steps,
    eip712,
)
from openlora.contracts.toolchain import find_tool
from openlora.typed_data import Domain, sign_digest

pytestmark = pytest.mark.slow

T = TypeVar("T")
PARAMS = Params(bond=10**18, max_live_claims=4, window_secs=30, max_lease_secs=600, max_duration_secs=3600)
OUTPUT_TERMS = OutputTerms(answer_secs=10, bond=10**18, bond_per_token=10**18 // 1_000, max_out_tokens=8_192)
DISPUTE_TERMS = DisputeTerms(
    challenge_bond=20 * 10**18,
    verifier_stake=100 * 10**18,
    miss_penalty=10 * 10**18,
    draw_secs=10,
    commit_secs=20,
    reveal_secs=20,
    round_secs=3,
    audit_bps=500,
)
BASE_ID = b"\x0b" * 32


def settings_of(deployer: LocalAccount) -> MarketSettings:
    return MarketSettings(
        owner=deployer.address,
        guardian=deployer.address,
        treasury=deployer.address,
        params=PARAMS,
        timelock_s=0,
        close_delay_s=60,
        unstake_delay_s=60,
        output_terms=OUTPUT_TERMS,
        dispute_terms=DISPUTE_TERMS,
    )


class CallReverted(Exception):
    def __init__(self, data: bytes) -> None:
        self.reason = decode_revert(data)
        super().__init__(self.reason.sentence)


@dataclass
class Chain:
    """JSON-RPC to an anvil that mines each transaction at once; one account a person."""

    url: str
    nonces: dict[str, int] = field(default_factory=dict)

    def rpc(self, method: str, *params: Any) -> Any:
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        request = urllib.request.Request(self.url, body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as response:
            answer = json.load(response)
        if "error" in answer:
            raise CallReverted(bytes.fromhex(answer["error"].get("data", "0x")[2:]))
        return answer["result"]

    def call(self, call: Call[T], sender: str | None = None) -> T:
        request = {"to": call.to, "data": "0x" + call.data.hex()} | ({"from": sender} if sender else {})
        return call.decode(bytes.fromhex(self.rpc("eth_call", request, "latest")[2:]))

    def send(self, key: LocalAccount, call: Call[Any]) -> list[Event]:
        """Sends a call that must succeed; its decoded events."""
        return self.transact(key, call.to, call.data)

    def transact(self, key: LocalAccount, to: ChecksumAddress | None, data: bytes) -> list[Event]:
        nonce = self.nonces.get(key.address, 0)
        fields: dict[str, Any] = {
            "type": 2,
            "chainId": 31337,
            "nonce": nonce,
            "gas": 8_000_000,
            "value": 0,
            "data": data,
        }
        fields |= {"maxFeePerGas": 10**10, "maxPriorityFeePerGas": 1} | ({"to": to} if to else {})
        signed = key.sign_transaction(fields)
        receipt = self.rpc("eth_sendRawTransactionSync", "0x" + signed.raw_transaction.hex())
        self.nonces[key.address] = nonce + 1
        assert receipt["status"] == "0x1"
        logs = [
            decode_log([bytes.fromhex(topic[2:]) for topic in log["topics"]], bytes.fromhex(log["data"][2:]))
            for log in receipt["logs"]
        ]
        return [log for log in logs if log is not None]

    def now(self) -> int:
        return int(self.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    anvil = find_tool("anvil")
    assert anvil is not None, "run `npm ci --ignore-scripts` in contracts/"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(anvil), "--port", str(port), "--prune-history", "64"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert any("Listening on" in line for line in process.stdout)
            Thread(target=process.stdout.read).start()  # a full pipe would stop it
            yield Chain(f"http://127.0.0.1:{port}")
        finally:
            process.terminate()


@dataclass(frozen=True, slots=True)
class Market:
    deployment: Deployment
    client: LocalAccount
    operator: LocalAccount
    hot: LocalAccount


@pytest.fixture(scope="module")
def market(chain: Chain) -> Market:
    """A deployed market with a funded client and a staked node."""
    deployer, client, operator, hot = (Account.from_key(bytes([i]) * 32) for i in (1, 2, 3, 4))
    for key in (deployer, client, operator, hot):
        chain.rpc("anvil_setBalance", key.address, hex(10**20))
    settings = settings_of(deployer)
    steps = deployment_steps(deployer.address, 0, settings)
    for step in steps:
        chain.transact(deployer, None, step.data)
        assert chain.rpc("eth_getCode", step.address, "latest") != "0x"
    deployed = deployment_of(steps, settings, chain_id=31337, block=0)
    token, vault = DevToken(deployed.token), Vault(deployed.vault)
    for key in (client, operator):
        chain.send(key, token.mint(key.address, 10**21))
        chain.send(key, token.approve(vault.address, 10**21))
        chain.send(key, vault.deposit(key.address, 10**21))
    nodes = NodeRegistry(deployed.node_registry)
    domain = Domain(31337, nodes.address)
    consent = eip712.hot_key_consent(bytes(hot.key), domain, operator.address, chain.now() + 60)
    assert chain.call(nodes.hash_consent(operator.address, consent.deadline)) == eip712.hot_key_digest(
        domain, operator.address, consent.deadline
    )
    chain.send(operator, nodes.register(consent, bytes(32), bytes(32), b"\x00\x24"))
    chain.send(operator, nodes.stake(10**20))
    registry = AdapterRegistry(deployed.adapter_registry)
    chain.send(deployer, registry.register_base(BASE_ID, deployer.address, "base"))
    chain.send(deployer, registry.register_recipe(BASE_ID, [], []))
    return Market(deployed, client, operator, hot)


def test_a_job_from_submission_to_payment(chain: Chain, market: Market) -> None:
    queue, vault = JobQueue(market.deployment.job_queue), Vault(market.deployment.vault)
    domain = Domain(31337, queue.address)
    spec = JobSpec(market.client.address, 1, b"\x01" * 32, 100, 100, 10**18, 2 * 10**18, chain.now() + 600, 120, 0, 9)
    submitted = chain.send(market.client, queue.submit(spec, b""))
    spec_hash = eip712.spec_digest(domain, spec)
    assert submitted == [JobSubmitted(1, market.client.address, spec_hash, spec, b"")]
    assert chain.call(vault.pot_of(queue.address)) == eip712.escrow_wei(spec)

    chain.send(market.hot, queue.claim(1, spec))
    claimed = chain.call(queue.job(1))
    assert claimed.state is JobState.CLAIMED
    chain.rpc("evm_mine")
    claim_block = chain.rpc("eth_getBlockByNumber", hex(claimed.claim_block), False)
    receipt = Receipt(
        work_id=eip712.work_id(queue.address, 1),
        node=market.operator.address,
        recipe_id=1,
        spec_hash=spec_hash,
        input_digest=spec.input_digest,
        output_digest=b"\x02" * 32,
        in_tokens=40,
        out_tokens=7,
        seed=eip712.job_seed(spec_hash, bytes.fromhex(claim_block["hash"][2:])),
        fingerprint_root=bytes(32),
        data_attr_root=bytes(32),
        engine_profile=1,
        finish_reason=0,
        finished_at=chain.now(),
        fee=eip712.fee_wei(spec, 40, 7),
    )
    digest = eip712.receipt_digest(domain, receipt)
    assert chain.call(queue.hash_receipt(receipt)) == digest
    chain.send(market.hot, queue.commit(1, spec, eip712.answer_of(receipt)))
    settlement = eip712.settlement_of(spec, receipt, digest)
    assert chain.call(queue.job(1)).settlement_hash == keccak(encode([Settlement.ABI], [settlement.to_abi()]))

    with pytest.raises(CallReverted, match="the challenge window is open until"):
        chain.call(queue.finalize_batch([1], [settlement]))
    chain.rpc("evm_increaseTime", PARAMS.window_secs)
    events = chain.send(market.client, queue.finalize_batch([1], [settlement]))
    (final,) = [event for event in events if isinstance(event, JobFinalized)]
    assert (final.fee, final.refund) == (receipt.fee, eip712.escrow_wei(spec) - receipt.fee)
    assert sum(event.amount for event in events if isinstance(event, Paid)) == receipt.fee
    assert chain.call(vault.credits_of(market.operator.address)) == receipt.fee * 8_500 // 10_000


def test_a_seed_is_checked_when_blockhash_has_forgotten_the_claim(chain: Chain, market: Market) -> None:
    queue = JobQueue(market.deployment.job_queue)
    spec = JobSpec(market.client.address, 1, bytes(32), 10, 10, 1, 1, chain.now() + 900, 600, 0, 13)
    (submitted,) = chain.send(market.client, queue.submit(spec, b""))
    assert isinstance(submitted, JobSubmitted)
    job_id = submitted.job_id
    chain.send(market.hot, queue.claim(job_id, spec))
    chain.rpc("anvil_mine", hex(300), "0x1")
    claim_block = chain.rpc("eth_getBlockByNumber", hex(chain.call(queue.job(job_id)).claim_block), False)
    seed = eip712.job_seed(submitted.spec_hash, bytes.fromhex(claim_block["hash"][2:]))
    answer = Answer(bytes(32), 1, 1, seed, bytes(32), bytes(32), 1, 0, chain.now())
    with pytest.raises(CallReverted, match=f"the seed must be {seed}"):
        chain.call(queue.commit(job_id, spec, replace(answer, seed=seed ^ 1)), sender=market.hot.address)
    chain.send(market.hot, queue.commit(job_id, spec, answer))
    assert chain.call(queue.job(job_id)).state is JobState.COMMITTED


def test_a_session_is_settled_by_its_last_voucher(chain: Chain, market: Market) -> None:
    sessions, vault = Sessions(market.deployment.sessions), Vault(market.deployment.vault)
    domain = Domain(31337, sessions.address)
    client, node = market.client.address, market.operator.address
    session_id = eip712.session_id(domain, client, node, 7)
    opened = chain.send(market.client, sessions.open(node, 10**18, 7))
    assert opened == [SessionOpened(session_id, client, node, 10**18)]
    earlier = chain.call(vault.credits_of(node))
    for fee in (10**16, 3 * 10**16):
        lines = [Line(1, fee, bytes(32))]
        voucher = eip712.voucher_for(session_id, lines, chain.now() + 60)
        digest = eip712.voucher_digest(domain, voucher)
        assert chain.call(sessions.hash_voucher(voucher)) == digest
        chain.send(market.hot, sessions.settle(voucher, lines, sign_digest(bytes(market.client.key), digest)))
    assert chain.call(vault.credits_of(node)) - earlier == 3 * 10**16 * 8_500 // 10_000
    with pytest.raises(CallReverted, match="only a voucher for more pays anything"):
        chain.call(sessions.settle(voucher, lines, sign_digest(bytes(market.client.key), digest)))
    (closed,) = chain.send(market.operator, sessions.close(session_id))
    assert closed == SessionClosed(session_id, 10**18 - 3 * 10**16)
    assert chain.call(sessions.session(session_id)).state is SessionState.CLOSED


def test_an_order_has_its_own_domain(chain: Chain, market: Market) -> None:
    sessions, queue = Sessions(market.deployment.sessions), JobQueue(market.deployment.job_queue)
    spec = JobSpec(market.client.address, 1, bytes(32), 10, 10, 1, 1, chain.now() + 600, 120, 0, 11)
    order = chain.call(sessions.hash_order(spec))
    assert order == eip712.spec_digest(Domain(31337, sessions.address), spec) != chain.call(queue.hash_spec(spec))


def test_two_receipts_for_one_work_are_proven_and_cost_stake(chain: Chain, market: Market) -> None:
    at = market.deployment
    disputes, nodes, vault = Disputes(at.disputes), NodeRegistry(at.node_registry), Vault(at.vault)
    domain = Domain(31337, at.job_queue)
    spec = JobSpec(market.client.address, 1, bytes(32), 10, 10, 1, 1, chain.now() + 600, 120, 0, 12)
    receipts = [
        Receipt(
            work_id=b"\x09" * 32,
            node=market.operator.address,
            recipe_id=1,
            spec_hash=eip712.spec_digest(domain, spec),
            input_digest=bytes(32),
            output_digest=bytes([answer]) * 32,
            in_tokens=1,
            out_tokens=1,
            seed=1,
            fingerprint_root=bytes(32),
            data_attr_root=bytes(32),
            engine_profile=1,
            finish_reason=0,
            finished_at=1,
            fee=0,
        )
        for answer in (1, 2)
    ]
    signatures = [sign_digest(bytes(market.hot.key), eip712.receipt_digest(domain, receipt)) for receipt in receipts]
    stake = chain.call(nodes.node(market.operator.address))
    slashed = stake.stake // 2
    first, second = (SignedReceipt(*pair) for pair in zip(receipts, signatures, strict=True))
    proof = disputes.prove_equivocation(Lane.QUEUE, spec, first, second, market.hot.address)
    events = chain.send(market.client, proof)
    assert Slashed(market.operator.address, slashed) in events
    assert chain.call(vault.credits_of(market.client.address)) == slashed // 2 + slashed // 4  # challenger and client
    with pytest.raises(CallReverted, match="was slashed over"):
        chain.call(proof)


def test_reverts_come_back_as_sentences(chain: Chain, market: Market) -> None:
    queue = JobQueue(market.deployment.job_queue)
    spec = JobSpec(market.client.address, 1, bytes(32), 10, 10, 1, 1, chain.now() + 600, 120, 0, 10)
    with pytest.raises(CallReverted, match="is not the job's client"):
        chain.call(queue.submit(spec, b""), sender=market.hot.address)
    with pytest.raises(CallReverted, match="there is no recipe 9: register it first"):
        chain.call(queue.submit(replace(spec, recipe_id=9), b""), sender=market.client.address)
    with pytest.raises(CallReverted, match="job 77 is none"):
        chain.call(queue.claim(77, spec), sender=market.hot.address)


def test_a_deployment_from_the_wrong_nonce_fails(chain: Chain) -> None:
    deployer = Account.from_key(b"\x05" * 32)
    chain.rpc("anvil_setBalance", deployer.address, hex(10**20))
    settings = settings_of(deployer)
    steps = {step.name: step for step in deployment_steps(deployer.address, 0, settings)}
    creation = {"from": deployer.address, "data": "0x" + steps["NodeRegistry"].data.hex()}
    with pytest.raises(CallReverted):
        chain.rpc("eth_call", creation, "latest")
