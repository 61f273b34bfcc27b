"""Seeds faults into src/, one at a time, and asks whether the tests notice: every one of them must.

    python script/mutants.py             all of them, in a copy of the project; a minute or two each
    python script/mutants.py escrow …    those whose names contain one of the words

A mutant that does not compile or whose text is gone is an error: it would prove nothing. Ends with 1 if one survives.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from openlora.contracts.toolchain import find_tool

CONTRACTS = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Mutant:
    """`old`, which src/<file> has exactly once, becomes `new`; `test` alone must notice, if it is named."""

    name: str
    file: str
    old: str
    new: str
    test: str = ""


# What others got wrong: each is caught by the one test that is about it.
MISTAKES = (
    Mutant(
        "the payer alone may finish",
        "JobQueue.sol",
        "if (state == State.Finalized || state >= State.Held) return;",
        "if (state == State.Finalized || state >= State.Held) return;\n"
        "        if (msg.sender != settlement.client) revert NotTheClient(msg.sender);",
        "test_anyone_finalizes",
    ),
    Mutant(
        "live parameters change a running job",
        "JobQueue.sol",
        "uint16 version = self.paramsVersion;\n        if (version != batch",
        "uint16 version = paramsVersion;\n        if (version != batch",
        "test_setParams_leaves_running_jobs_alone",
    ),
    Mutant(
        "a payee is called in a settlement",
        "Vault.sol",
        "            _credits[accounts[i]] += amounts[i];\n",
        '            (bool ok,) = accounts[i].call("");\n            require(ok);\n'
        "            _credits[accounts[i]] += amounts[i];\n",
        "test_a_payee_that_refuses_calls_holds_up_nobody",
    ),
    Mutant(
        "tx.origin has the node's authority",
        "JobQueue.sol",
        "nodes.lockBond(msg.sender, current",
        "nodes.lockBond(tx.origin, current",
        "test_claim_revertsWhen_only_the_origin_is_a_hot_key",
    ),
    Mutant(
        "vouchers without chain and contract",
        "Sessions.sol",
        "return _hashTypedDataV4(keccak256(abi.encode(VOUCHER_TYPEHASH, voucher)));",
        "return keccak256(abi.encode(VOUCHER_TYPEHASH, voucher));",
        "test_settle_revertsWhen_signed_for_another_chain_or_contract",
    ),
    Mutant(
        "slashing misses stake in withdrawal",
        "NodeRegistry.sol",
        "amount = (uint256(free) + self.unstaking) / parts;",
        "amount = uint256(free) / parts;",
        "test_stake_in_withdrawal_is_slashed",
    ),
)

FAULTS = (
    # Vault
    Mutant("fee on transfer", "Vault.sol", "if (received < amount) revert TransferFellShort(amount, received);", ""),
    Mutant("credits claimed twice", "Vault.sol", "        _credits[msg.sender] = 0;\n", ""),
    Mutant("anyone moves pots", "Vault.sol", "if (!isModule(msg.sender)) revert NotAModule(msg.sender);", ""),
    Mutant("locked money stays", "Vault.sol", "        _debit(account, amount);\n        _pots", "        _pots"),
    Mutant("released money multiplies", "Vault.sol", "        _takeFromPot(amount);\n", ""),
    Mutant("credited money multiplies", "Vault.sol", "        _takeFromPot(total);\n", ""),
    Mutant(
        "deposits re-enter",
        "Vault.sol",
        "amount) external nonReentrant {\n        _deposit",
        "amount) external {\n        _deposit",
    ),
    # NodeRegistry
    Mutant(
        "bonds without stake",
        "NodeRegistry.sol",
        "if (free < amount) revert InsufficientStake(operator, free, amount);",
        "",
    ),
    Mutant(
        "no cap on claims",
        "NodeRegistry.sol",
        "if (self.liveClaims >= maxLiveClaims) revert",
        "if (self.liveClaims > maxLiveClaims) revert",
    ),
    Mutant("claims never end", "NodeRegistry.sol", "        self.liveClaims -= claims.toUint24();\n", ""),
    Mutant(
        "bonds stay locked",
        "NodeRegistry.sol",
        "        self.bonded -= amount.toUint96();\n        self.liveClaims -= claims",
        "        self.liveClaims -= claims",
    ),
    Mutant("a lost bond stays stake", "NodeRegistry.sol", "        self.active -= lost.toUint96();\n", ""),
    Mutant(
        "the exit has no delay",
        "NodeRegistry.sol",
        "if (block.timestamp < self.unstakeAt) revert UnstakeNotReady(self.unstakeAt);",
        "",
    ),
    Mutant("stake leaves twice", "NodeRegistry.sol", "        self.unstaking = 0;\n", ""),
    Mutant(
        "hot keys are taken",
        "NodeRegistry.sol",
        "if (!PartySignature.isValid(hotKey, digest, consent.signature)) revert NoConsent(hotKey);",
        "",
    ),
    Mutant(
        "consent for ever",
        "NodeRegistry.sol",
        "if (block.timestamp > consent.deadline) revert ConsentExpired(consent.deadline);",
        "",
    ),
    Mutant("a former key still claims", "NodeRegistry.sol", "        delete operatorOf[self.hotKey];\n", ""),
    Mutant(
        "a former key answers for nothing",
        "NodeRegistry.sol",
        "= uint40(block.timestamp) + unstakeDelaySecs;\n        _assign",
        "= 0;\n        _assign",
    ),
    Mutant("anyone slashes", "NodeRegistry.sol", "if (msg.sender != disputes) revert NotDisputes(msg.sender);", ""),
    # JobQueue
    Mutant(
        "another's money in escrow",
        "JobQueue.sol",
        "if (spec.client != msg.sender) revert NotTheClient(msg.sender);",
        "",
    ),
    Mutant(
        "any document", "JobQueue.sol", "if (computed != spec.inputDigest) revert InputDigestMismatch(computed);", ""
    ),
    Mutant(
        "a lease ends a second early",
        "JobQueue.sol",
        "if (state == State.Claimed && block.timestamp > self.moment)",
        "if (state == State.Claimed && block.timestamp >= self.moment)",
    ),
    Mutant(
        "commits after the lease",
        "JobQueue.sol",
        "if (block.timestamp > self.moment) revert LeaseExpired(self.moment);",
        "",
    ),
    Mutant(
        "another node's commit",
        "JobQueue.sol",
        "if (nodes.operatorOf(msg.sender) != self.node) revert NotTheNode(msg.sender);",
        "",
    ),
    Mutant("a lease past the deadline", "JobQueue.sol", "return a < b ? a : b;", "return a;"),
    Mutant(
        "a lapsed bond is kept",
        "JobQueue.sol",
        "_endClaim(jobId, self, bond, bond);",
        "_endClaim(jobId, self, bond, 0);",
    ),
    Mutant("free releases", "JobQueue.sol", "uint96 lost = bond / RELEASE_PARTS;", "uint96 lost = 0;"),
    Mutant(
        "forfeits are paid twice",
        "JobQueue.sol",
        "        self.hasForfeits = false;\n        delete _forfeits[jobId];\n",
        "",
    ),
    Mutant(
        "a spec is not looked at",
        "JobQueue.sol",
        "if (hashSpec(spec) != expected) revert SpecMismatch(jobId, expected);",
        "",
    ),
    Mutant(
        "over the limits", "JobQueue.sol", "answer.inTokens > spec.maxInTokens || answer.outTokens", "answer.outTokens"
    ),
    Mutant("any seed", "JobQueue.sol", "if (seed != expected) revert WrongSeed(expected);", ""),
    Mutant(
        "commits in the claim's block",
        "JobQueue.sol",
        "if (block.number <= claimBlock) revert TooEarly(claimBlock);",
        "",
    ),
    Mutant(
        "no window",
        "JobQueue.sol",
        "if (block.timestamp < finalizableAt) {\n            batch.waiting = jobId;\n            return;\n        }\n",
        "",
    ),
    Mutant(
        "any settlement",
        "JobQueue.sol",
        "if (settlement.digest() != self.digest) revert SettlementMismatch(jobId);\n\n",
        "",
    ),
    Mutant(
        "any settlement of a held job",
        "JobQueue.sol",
        "if (settlement.digest() != self.digest) revert SettlementMismatch(jobId);\n        self.state = end;",
        "self.state = end;",
    ),
    Mutant("jobs settle twice", "JobQueue.sol", "        self.state = State.Finalized;\n", ""),
    Mutant("early expiry", "JobQueue.sol", "if (block.timestamp <= spec.deadline) revert NotExpired(jobId);", ""),
    Mutant("anyone cancels", "JobQueue.sol", "if (msg.sender != spec.client) revert NotTheClient(msg.sender);", ""),
    Mutant(
        "pausing keeps clients in",
        "JobQueue.sol",
        "function cancel(uint64 jobId, JobSpec calldata spec) external {",
        "function cancel(uint64 jobId, JobSpec calldata spec) external whenNotPaused {",
    ),
    Mutant(
        "claims while paused",
        "JobQueue.sol",
        "function claim(uint64 jobId, JobSpec calldata spec) external whenNotPaused {",
        "function claim(uint64 jobId, JobSpec calldata spec) external {",
    ),
    Mutant(
        "windows longer than exits",
        "JobQueue.sol",
        "\n                || newParams.windowSecs >= registry.unstakeDelaySecs()",
        "",
    ),
    # Libraries
    Mutant(
        "escrow rounds down",
        "libraries/JobPrice.sol",
        "Math.ceilDiv(_weigh(spec, spec.maxInTokens, spec.maxOutTokens), TOKENS_PER_PRICE)",
        "(_weigh(spec, spec.maxInTokens, spec.maxOutTokens) / TOKENS_PER_PRICE)",
    ),
    Mutant(
        "legs owe more than the fee",
        "libraries/Royalties.sol",
        "Math.min(left, cumAfter * legs[i].bps / BPS - cumBefore * legs[i].bps / BPS)",
        "(cumAfter * legs[i].bps / BPS - cumBefore * legs[i].bps / BPS)",
    ),
    Mutant(
        "dust is lost",
        "libraries/Royalties.sol",
        "cumAfter * legs[i].bps / BPS - cumBefore * legs[i].bps / BPS",
        "fee * legs[i].bps / BPS",
    ),
    # Sessions
    Mutant(
        "vouchers again and again",
        "Sessions.sol",
        "if (voucher.cumulativeFee <= settled) revert VoucherNotNewer(settled);",
        "",
    ),
    Mutant("over the deposit", "Sessions.sol", "if (voucher.cumulativeFee > deposit) revert OverDeposit(deposit);", ""),
    Mutant(
        "late vouchers",
        "Sessions.sol",
        "if (block.timestamp > voucher.deadline) revert VoucherExpired(voucher.deadline);",
        "",
    ),
    Mutant(
        "unsigned vouchers",
        "Sessions.sol",
        "if (!PartySignature.isValid(self.client, hashVoucher(voucher), signature)) revert BadSignature();",
        "",
    ),
    Mutant(
        "lines that nobody signed",
        "Sessions.sol",
        "if (keccak256(abi.encode(lines)) != voucher.receiptsRoot) revert LinesMismatch();",
        "",
    ),
    Mutant(
        "lines that do not add up",
        "Sessions.sol",
        "if (_divide(credits, voucher.sessionId, node, lines) != fee) revert LinesMismatch();",
        "_divide(credits, voucher.sessionId, node, lines);",
    ),
    Mutant(
        "the client leaves at once",
        "Sessions.sol",
        "if (block.timestamp < self.closeAt) revert CannotCloseYet(self.closeAt);",
        "",
    ),
    Mutant("a closed session pays", "Sessions.sol", "        self.deposit = self.settled;\n", ""),
    Mutant("a session is closed twice", "Sessions.sol", "        self.closed = true;\n", ""),
    # Disputes
    Mutant("one offence, many slashings", "Disputes.sol", "        proven[node][workId] = true;\n", ""),
    Mutant(
        "another's client",
        "Disputes.sol",
        "if (specHash != receipt.specHash) revert SpecMismatch(receipt.specHash);",
        "",
    ),
    Mutant(
        "strangers' signatures",
        "Disputes.sol",
        "if (block.timestamp >= nodes.liableUntil(receipt.node, hotKey)) revert NotLiable(hotKey);",
        "",
    ),
    Mutant(
        "dust of a slashing is lost",
        "libraries/Spoils.sol",
        "uint256 left = slashed - challengers - clients;",
        "uint256 left = slashed / CLIENT_PART;",
    ),
)
MUTANTS = MISTAKES + FAULTS


def mutated(mutant: Mutant, source: Path) -> str:
    """The file's faulty text; SystemExit when the place is not there exactly once."""
    text = (source / mutant.file).read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise SystemExit(
            f"{mutant.name}: src/{mutant.file} has its text {text.count(mutant.old)} times; mend the mutant"
        )
    return text.replace(mutant.old, mutant.new)


def survives(mutant: Mutant, project: Path, forge: Path) -> bool:
    """Runs the tests in `project`, a copy, with the mutant in place of the sound source."""
    faulty, sound = mutated(mutant, CONTRACTS / "src"), (CONTRACTS / "src" / mutant.file).read_text(encoding="utf-8")
    target = project / "src" / mutant.file
    target.write_text(faulty, encoding="utf-8")
    command = [str(forge), "test", "--fail-fast"] + (["--match-test", f"^{mutant.test}"] if mutant.test else [])
    environment = os.environ | {"FOUNDRY_PROFILE": "lite"}
    result = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    target.write_text(sound, encoding="utf-8")
    if "Compiler run failed" in result.stdout + result.stderr:
        raise SystemExit(f"{mutant.name} does not compile:\n{result.stdout}{result.stderr}")
    if "No tests" in result.stdout + result.stderr:
        raise SystemExit(f"{mutant.name}: there is no {mutant.test}")
    return result.returncode == 0


def main(words: list[str]) -> int:
    forge = find_tool("forge")
    if forge is None:
        raise SystemExit("there is no forge: run `npm ci --ignore-scripts` in contracts/")
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "contracts"
        shutil.copytree(CONTRACTS, project, ignore=shutil.ignore_patterns("node_modules", "out", "openlora"))
        (project / "node_modules").symlink_to((CONTRACTS / "node_modules").resolve())
        for mutant in chosen:
            alive = survives(mutant, project, forge)
            survivors += alive
            print(f"{'SURVIVES' if alive else 'killed  '}  {mutant.file:24} {mutant.name}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} killed")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
