"""What the market's calls cost as whole transactions on anvil: intrinsic gas, calldata and its floor, refunds.

Prints one line a path with its gas and its bar, and ends with 1 when the gas is not what snapshots/gas.json says;
`--write` writes that file. Steady state: nobody's first time. The contracts are the committed artefacts, and the clock
of the chain moves a second a block, so the figures are exact. Needs anvil (`npm ci --ignore-scripts`).
"""

import json
import subprocess
import sys
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eth_keys.datatypes import PrivateKey
from eth_typing import ChecksumAddress
from eth_utils.address import to_checksum_address

from openlora.contracts import (
    AdapterRegistry,
    Call,
    DevToken,
    DisputeTerms,
    JobCommitted,
    JobQueue,
    JobSpec,
    Line,
    MarketSettings,
    NodeRegistry,
    OutputTerms,
    Params,
    Receipt,
    Sessions,
    Settlement,
    Share,
    Vault,
    decode_log,
    deployment_of,
    deployment_steps,
    eip712,
)
from openlora.contracts.toolchain import find_tool
from openlora.typed_data import Domain, sign_digest

SNAPSHOT = Path(__file__).resolve().parent.parent / "snapshots" / "gas.json"
BARS = {
    "submit": 85_000,
    "submitMany of 100, a job": 38_000,
    "claim": 70_000,
    "commit": 55_000,
    "finalizeBatch of 64, a job": 18_000,
    "settle 256 receipts, a receipt": 1_000,
}
COIN = 10**18
GENESIS = 1_800_000_000  # unix seconds
PARAMS = Params(bond=COIN, max_live_claims=500, window_secs=1_800, max_lease_secs=3_600, max_duration_secs=86_400)
OUTPUT_TERMS = OutputTerms(answer_secs=10, bond=COIN, bond_per_token=COIN // 1_000, max_out_tokens=8_192)
DISPUTE_TERMS = DisputeTerms(
    challenge_bond=20 * COIN,
    verifier_stake=100 * COIN,
    miss_penalty=10 * COIN,
    draw_secs=10,
    commit_secs=20,
    reveal_secs=20,
    round_secs=3,
    audit_bps=500,
)
BASE_ID = b"\x0b" * 32
ADAPTERS = (b"\x0c" * 32, b"\x0d" * 32)
HOT_KEY, PAYER_KEY = b"\x07" * 32, b"\x08" * 32


def person(number: int) -> ChecksumAddress:
    return to_checksum_address("0x" + f"{number:02x}" * 20)


DEPLOYER, CLIENT, OPERATOR, AUTHOR, PROVIDER = (person(number) for number in range(0xA1, 0xA6))
HOT, PAYER = (to_checksum_address(PrivateKey(key).public_key.to_address()) for key in (HOT_KEY, PAYER_KEY))


@dataclass
class Anvil:
    """A chain that mines each transaction at once and takes every sender's word for who it is."""

    url: str

    def rpc(self, method: str, *params: Any) -> Any:
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        request = urllib.request.Request(self.url, body, {"content-type": "application/json"})  # noqa: S310 - loopback
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - loopback
            answer = json.load(response)
        if "error" in answer:
            raise SystemExit(f"{method}: {answer['error']}")
        return answer["result"]

    def transact(self, sender: str, to: str | None, data: bytes) -> dict[str, Any]:
        self.rpc("anvil_setBalance", sender, hex(100 * COIN))
        fields = {"from": sender, "data": "0x" + data.hex(), "gas": hex(16_000_000)} | ({"to": to} if to else {})
        receipt: dict[str, Any] = self.rpc("eth_sendTransactionSync", fields)
        if receipt["status"] != "0x1":
            raise SystemExit(f"a transaction of {sender} reverted")
        return receipt

    def send(self, sender: str, call: Call[Any]) -> dict[str, Any]:
        return self.transact(sender, call.to, call.data)

    def now(self) -> int:
        return int(self.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)


def gas(receipt: dict[str, Any], jobs: int = 1) -> int:
    return int(receipt["gasUsed"], 16) // jobs


class Market:
    """A deployed market with a funded client, a staked node, and two recipes: one adapter each, with a datanet."""

    def __init__(self, chain: Anvil) -> None:
        self.chain = chain
        settings = MarketSettings(
            owner=DEPLOYER,
            guardian=DEPLOYER,
            treasury=DEPLOYER,
            params=PARAMS,
            timelock_s=0,
            close_delay_s=3_600,
            unstake_delay_s=86_400,
            output_terms=OUTPUT_TERMS,
            dispute_terms=DISPUTE_TERMS,
        )
        steps = deployment_steps(DEPLOYER, 0, settings)
        for step in steps:
            chain.transact(DEPLOYER, None, step.data)
        at = deployment_of(steps, settings, chain_id=31337, block=0)
        self.token, self.sessions = DevToken(at.token), Sessions(at.sessions)
        self.queue, self.vault = JobQueue(at.job_queue), Vault(at.vault)
        self.nodes, self.registry = NodeRegistry(at.node_registry), AdapterRegistry(at.adapter_registry)
        self.domain = Domain(31337, at.job_queue)
        self.nonce = 0
        self._populate()

    def _populate(self) -> None:
        send, token = self.chain.send, self.token
        for account in (CLIENT, OPERATOR):
            send(account, token.mint(account, 10**6 * COIN))
            send(account, token.approve(self.vault.address, 10**6 * COIN))
            send(account, self.vault.deposit(account, 10**6 * COIN))
        domain = Domain(31337, self.nodes.address)
        consent = eip712.hot_key_consent(HOT_KEY, domain, OPERATOR, self.chain.now() + 3_600)
        send(OPERATOR, self.nodes.register(consent, b"\x01" * 32, b"\x02" * 32, b"\x00\x24"))
        send(OPERATOR, self.nodes.stake(10_000 * COIN))
        send(DEPLOYER, self.registry.register_base(BASE_ID, DEPLOYER, "base"))
        send(PROVIDER, self.registry.create_datanet(b"\x03" * 32, [Share(PROVIDER, 10_000)], "data"))
        for digest in ADAPTERS:
            send(AUTHOR, self.registry.register_adapter(digest, BASE_ID, [1], "adapter"))
            send(AUTHOR, self.registry.register_recipe(BASE_ID, [digest], [10_000]))

    def spec(self, recipe_id: int = 1) -> JobSpec:
        self.nonce += 1
        return JobSpec(
            client=CLIENT,
            recipe_id=recipe_id,
            input_digest=b"\x11" * 32,
            max_in_tokens=512,
            max_out_tokens=256,
            in_price_per_k=COIN // 3,
            out_price_per_k=COIN // 7,
            deadline=self.chain.now() + 3_600,
            lease_secs=600,
            flags=0,
            nonce=2**255 + self.nonce,
        )

    def submit(self, spec: JobSpec) -> dict[str, Any]:
        return self.chain.send(CLIENT, self.queue.submit(spec, b""))

    def claim(self, job_id: int, spec: JobSpec) -> dict[str, Any]:
        return self.chain.send(HOT, self.queue.claim(job_id, spec))

    def commit(self, job_id: int, spec: JobSpec, claim: dict[str, Any]) -> tuple[dict[str, Any], Settlement]:
        spec_hash = eip712.spec_digest(self.domain, spec)
        receipt = Receipt(
            work_id=eip712.work_id(self.queue.address, job_id),
            node=OPERATOR,
            recipe_id=spec.recipe_id,
            spec_hash=spec_hash,
            input_digest=spec.input_digest,
            output_digest=b"\x22" * 32,
            in_tokens=300,
            out_tokens=200,
            seed=eip712.job_seed(spec_hash, bytes.fromhex(claim["blockHash"][2:])),
            fingerprint_root=b"\x33" * 32,
            data_attr_root=b"\x44" * 32,
            engine_profile=1,
            finish_reason=0,
            finished_at=self.chain.now(),
            fee=eip712.fee_wei(spec, 300, 200),
        )
        digest = eip712.receipt_digest(self.domain, receipt)
        call = self.queue.commit(job_id, spec, eip712.answer_of(receipt))
        mined = self.chain.send(HOT, call)
        (log,) = mined["logs"]
        event = decode_log([bytes.fromhex(topic[2:]) for topic in log["topics"]], bytes.fromhex(log["data"][2:]))
        assert isinstance(event, JobCommitted)
        assert event.receipt == receipt
        return mined, eip712.settlement_of(spec, receipt, digest)

    def batch(self, first_id: int, specs: list[JobSpec]) -> dict[str, Any]:
        """Claims, commits and, when the windows have passed, finalizes the jobs together."""
        settlements = []
        for job_id, spec in enumerate(specs, first_id):
            settlements.append(self.commit(job_id, spec, self.claim(job_id, spec))[1])
        self.chain.rpc("evm_setNextBlockTimestamp", self.chain.now() + PARAMS.window_secs)
        return self.chain.send(PROVIDER, self.queue.finalize_batch(range(first_id, first_id + len(specs)), settlements))

    def settled_session(self) -> dict[str, Any]:
        """One voucher for a session's first receipts, under both recipes."""
        domain = Domain(31337, self.sessions.address)
        self.chain.send(DEPLOYER, self.token.mint(PAYER, 10**6 * COIN))
        self.chain.send(PAYER, self.token.approve(self.vault.address, 10**6 * COIN))
        self.chain.send(PAYER, self.vault.deposit(PAYER, 10**6 * COIN))
        self.chain.send(PAYER, self.sessions.open(OPERATOR, 1_000 * COIN, 1))
        lines = [Line(recipe_id, COIN * recipe_id // 3, b"\x55" * 32) for recipe_id in (1, 2)]
        opened = eip712.session_id(domain, PAYER, OPERATOR, 1)
        voucher = eip712.voucher_for(opened, lines, self.chain.now() + 3_600)
        signature = sign_digest(PAYER_KEY, eip712.voucher_digest(domain, voucher))
        return self.chain.send(HOT, self.sessions.settle(voucher, lines, signature))


def measure(market: Market) -> dict[str, int]:
    """Gas by path."""
    warm = [market.spec(1), market.spec(2)]
    for spec in warm:
        market.submit(spec)
    market.batch(1, warm)
    market.submit(market.spec())  # keeps the escrow pot from being empty
    measured = {}
    spec = market.spec()
    measured["submit"] = gas(market.submit(spec))
    claim = market.claim(4, spec)
    measured["claim"] = gas(claim)
    measured["commit"] = gas(market.commit(4, spec, claim)[0])

    hundred = [market.spec(1 + number % 2) for number in range(100)]
    submitted = market.chain.send(CLIENT, market.queue.submit_many(hundred, [b""] * 100))
    measured["submitMany of 100, a job"] = gas(submitted, 100)
    sorted_64 = [replace(market.spec(), recipe_id=1 + number // 32) for number in range(64)]
    market.chain.send(CLIENT, market.queue.submit_many(sorted_64, [b""] * 64))
    measured["finalizeBatch of 64, a job"] = gas(market.batch(105, sorted_64), 64)
    measured["settle 256 receipts, a receipt"] = gas(market.settled_session(), 256)
    return measured


def main() -> int:
    anvil = find_tool("anvil")
    if anvil is None:
        raise SystemExit("there is no anvil: run `npm ci --ignore-scripts` in contracts/")
    command = [str(anvil), "--port", "0", "--prune-history", "64", "--auto-impersonate", "--timestamp", str(GENESIS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            listening = next(line for line in process.stdout if "Listening on" in line)
            chain = Anvil("http://" + listening.split()[-1])
            chain.rpc("anvil_setBlockTimestampInterval", 1)
            measured = measure(Market(chain))
        finally:
            process.terminate()
    for path, used in measured.items():
        print(f"{path:28} {used:>8,}  bar {BARS[path]:>8,}  {'met' if used <= BARS[path] else 'missed'}")
    text = json.dumps(measured, indent=2) + "\n"
    if "--write" in sys.argv:
        SNAPSHOT.write_text(text, encoding="utf-8")
    return int(SNAPSHOT.read_text(encoding="utf-8") != text)


if __name__ == "__main__":
    sys.exit(main())
