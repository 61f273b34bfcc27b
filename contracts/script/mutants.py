"""Seeds faults into src/, one at a time, and asks whether the tests notice: every one of them must.

    python script/mutants.py             all of them, in a copy of the project; about ten seconds each
    python script/mutants.py 2/3         every third of them, from the second
    python script/mutants.py escrow …    those whose names contain one of the words

A mutant that does not compile or whose text is gone is an error: it would prove nothing. Ends with 1 if one survives.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from openlora.contracts.toolchain import find_tool

CONTRACTS = Path(__file__).resolve().parent.parent
QUICK = ("--no-match-contract", "Invariants")
FEW_FUZZ_RUNS = 16
FUZZ_RUNS = 256


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
        "test_anyone_finalizes_whoever_else_stays_away",
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
        "amount = Math.min(due, free + leaving);",
        "amount = Math.min(due, free);",
        "test_stake_in_withdrawal_is_slashed",
    ),
    Mutant(
        "slashing misses stake that claims hold",
        "NodeRegistry.sol",
        "if (due > amount) self.owed += (due - amount).toUint96();",
        "",
        "test_stake_that_claims_hold_is_slashed_as_they_end",
    ),
    Mutant(
        "slashing spares what a node loses to its accomplices",
        "NodeRegistry.sol",
        "uint256 paid = _takeDebt(self, amount);",
        "uint256 paid = _takeDebt(self, amount - lost);",
        "test_bonds_that_are_lost_pay_what_a_slashing_is_owed_first",
    ),
    Mutant(
        "a string is an identity",
        "AdapterRegistry.sol",
        "        if (_adapters[digest].owner != address(0)) revert AlreadyRegistered(digest);\n",
        "        digest = keccak256(bytes(name));\n"
        "        if (_adapters[digest].owner != address(0)) revert AlreadyRegistered(digest);\n",
        "test_a_name_is_nobodys_identity",
    ),
    Mutant(
        "a question moves a job out of an audit",
        "JobQueue.sol",
        "return (self.node, self.moment - _heldSecs[jobId]);",
        "return (self.node, self.moment);",
        "test_a_question_is_no_way_out_of_an_audit",
    ),
    Mutant(
        "quorum counts slots",
        "Disputes.sol",
        "        _votes[jobId][msg.sender] = REVEALED;\n",
        "",
        "test_a_verifier_has_one_vote",
    ),
    Mutant(
        "a view without bound",
        "Disputes.sol",
        "if (_verifierList.length == MAX_VERIFIERS) revert TooManyVerifiers(MAX_VERIFIERS);",
        "",
        "test_enlist_revertsWhen_full",
    ),
    Mutant(
        "live terms change an open question",
        "Outputs.sol",
        "if (block.timestamp > asked_.answerBy) revert TooLate(asked_.answerBy);",
        "if (block.timestamp > asked_.askedAt + _terms.answerSecs) revert TooLate(asked_.answerBy);",
        "test_live_terms_leave_an_open_question_alone",
    ),
    Mutant(
        "stake leaves before the verdict",
        "NodeRegistry.sol",
        "if (self.liveClaims > 0) revert ClaimsLive(msg.sender, self.liveClaims);",
        "",
        "test_stake_does_not_leave_while_a_job_may_be_disputed",
    ),
    Mutant(
        "a client's contract blocks the publication",
        "Outputs.sol",
        "received := call(callbackGas, client, 0, add(message, 0x20), mload(message), 0, 0)\n",
        "received := call(callbackGas, client, 0, add(message, 0x20), mload(message), 0, 0)\n"
        "            if iszero(received) { revert(0, 0) }\n",
        "test_no_callback_blocks_a_publication",
    ),
    Mutant(
        "a callback starved of gas",
        "Outputs.sol",
        "if (gasleft() < needed) revert NotEnoughGas(needed);",
        "",
        "testFuzz_a_callback_has_all_its_gas_or_the_publication_reverts",
    ),
    Mutant(
        "a held job stops its batch",
        "JobQueue.sol",
        "if (state == State.Finalized || state >= State.Held) return;",
        "if (state == State.Finalized || state > State.Held) return;",
        "test_a_held_job_leaves_the_rest_of_a_batch_alone",
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
    Mutant("a lost bond stays stake", "NodeRegistry.sol", "        self.active -= forfeited;\n", ""),
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
    Mutant("free releases", "JobQueue.sol", "uint96 lost = bond / BOND_PARTS;", "uint96 lost = 0;"),
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
        "any seed for a forgotten claim",
        "JobQueue.sol",
        "if (claimHash == 0) revert ClaimForgotten(claimBlock);",
        "if (claimHash == 0) return;",
    ),
    Mutant(
        "a claim's history is not asked", "JobQueue.sol", "Blockhash.blockHash(claimBlock)", "blockhash(claimBlock)"
    ),
    Mutant(
        "whoever claims again has all of the bond back",
        "JobQueue.sol",
        "uint256 burnt = Math.min(forfeited, bond / BOND_PARTS);",
        "uint256 burnt = 0;",
    ),
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
    # Governance
    Mutant(
        "no timelock",
        "Governance.sol",
        "_grantRole(ADMIN_ROLE, owner, 0, timelockSecs);",
        "_grantRole(ADMIN_ROLE, owner, 0, 0);",
    ),
    Mutant(
        "anyone says what is too old",
        "Governance.sol",
        "uint16 patch) external onlyAuthorized {",
        "uint16 patch) external {",
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
    # Outputs
    Mutant("anyone expects", "Outputs.sol", "if (msg.sender != address(queue)) revert NotTheQueue(msg.sender);", ""),
    Mutant("any output will do", "Outputs.sol", "if (computed != asked_.digest) revert DigestMismatch(computed);", ""),
    Mutant(
        "any chunk will do",
        "Outputs.sol",
        "proof.length > MAX_PROOF || !MerkleProof.verifyCalldata(proof, asked_.digest, leaf)",
        "proof.length > MAX_PROOF",
    ),
    Mutant("proofs of any length", "Outputs.sol", "proof.length > MAX_PROOF || ", ""),
    Mutant("a leaf without its place", "Outputs.sol", "abi.encode(asked_.chunk, data)", "abi.encode(uint32(0), data)"),
    Mutant(
        "chunks that are not there",
        "Outputs.sol",
        "if (chunk >= count) revert NoSuchChunk(chunk, count.toUint32());",
        "",
    ),
    Mutant(
        "condemned in time",
        "Outputs.sol",
        "if (block.timestamp <= asked_.answerBy) revert StillTime(asked_.answerBy);",
        "",
    ),
    Mutant(
        "answers too late", "Outputs.sol", "if (block.timestamp > asked_.answerBy) revert TooLate(asked_.answerBy);", ""
    ),
    Mutant("questions without end", "Outputs.sol", "        _asked[jobId][kind][asked_.chunk] = true;\n", ""),
    Mutant(
        "one chunk opened spares the others",
        "Outputs.sol",
        "_asked[jobId][kind][asked_.chunk])",
        "_asked[jobId][kind][0])",
    ),
    Mutant(
        "a question stays open",
        "Outputs.sol",
        "        if (block.timestamp > asked_.answerBy) revert TooLate(asked_.answerBy);\n"
        "        delete _questions[jobId];",
        "        if (block.timestamp > asked_.answerBy) revert TooLate(asked_.answerBy);",
    ),
    Mutant(
        "a demander loses its bond",
        "Outputs.sol",
        "        if (asked_.bond > 0) vault.release(asked_.asker, asked_.bond);\n",
        "",
    ),
    Mutant(
        "publishing is not paid",
        "Outputs.sol",
        "(accounts[0], amounts[0]) = (asked_.node, asked_.bond);",
        "(accounts[0], amounts[0]) = (asked_.asker, asked_.bond);",
    ),
    Mutant(
        "another's receipt", "Outputs.sol", "\n            && queue.hashReceipt(receipt) == settlement.receiptHash", ""
    ),
    Mutant("too long to publish", "Outputs.sol", "if (receipt.outTokens > _terms.maxOutTokens) {", "if (false) {"),
    Mutant(
        "demands are called back",
        "Outputs.sol",
        "asked_.kind == Kind.Publication && asked_.asker.code.length > 0",
        "asked_.asker.code.length > 0",
    ),
    # Holding
    Mutant(
        "anyone judges",
        "JobQueue.sol",
        "if (msg.sender != address(_outputs) && msg.sender != _disputes) revert NotAJudge(msg.sender);",
        "",
    ),
    Mutant(
        "held after the window",
        "JobQueue.sol",
        "if (block.timestamp >= finalizableAt) revert WindowOver(finalizableAt);",
        "",
    ),
    Mutant("the window runs while held", "JobQueue.sol", "self.moment = moment.toUint32();", " "),
    Mutant(
        "a condemned bond is free",
        "JobQueue.sol",
        "nodes.forfeitBond(node, bond, bond);",
        "nodes.forfeitBond(node, bond, 0);",
    ),
    Mutant(
        "an annulled bond is lost",
        "JobQueue.sol",
        "nodes.unlockBonds(node, _params[self.paramsVersion].bond, 1);",
        "nodes.forfeitBond(node, _params[self.paramsVersion].bond, 1);",
    ),
    Mutant(
        "published or not",
        "JobQueue.sol",
        "            self.state = State.Held;\n            emit JobHeld(jobId, address(_outputs));",
        "            emit JobHeld(jobId, address(_outputs));",
    ),
    # Access
    Mutant(
        "flags that mean nothing", "JobQueue.sol", "if (spec.flags > JobFlags.ALL) revert BadFlags(spec.flags);", ""
    ),
    Mutant(
        "guarded recipes for all",
        "JobQueue.sol",
        "else if (gate == IAdapterRegistry.Gate.Guarded) revert GuardedRecipe(spec.recipeId);",
        "",
    ),
    Mutant(
        "claims after a revocation",
        "JobQueue.sol",
        "        if (spec.flags.has(JobFlags.GUARDED)) adapters.checkUse(spec.recipeId, spec.client);\n"
        "        _endLapsedLease",
        "        _endLapsedLease",
    ),
    Mutant("a use fee is not escrowed", "JobQueue.sol", "toLock = spec.escrow() + useFee;", "toLock = spec.escrow();"),
    Mutant(
        "a use fee is kept",
        "JobQueue.sol",
        "vault.release(spec.client, escrow + _useFeeOf(spec.recipeId));",
        "vault.release(spec.client, escrow);",
    ),
    Mutant(
        "a condemned job keeps its use fee",
        "JobQueue.sol",
        "settlement.fee + settlement.refund + _useFeeOf(settlement.recipeId)",
        "settlement.fee + settlement.refund",
    ),
    Mutant("one use fee a batch", "libraries/Royalties.sol", "jobs * legs[i].perUse", "legs[i].perUse"),
    Mutant(
        "sessions without use fees",
        "libraries/Royalties.sol",
        "if (jobs == 0) revert ISessions.PayPerUse(recipeId);",
        "",
    ),
    Mutant(
        "allow-lists for show",
        "AdapterRegistry.sol",
        "if (!canUse(digests[i], account)) revert NotAllowed(digests[i], account);",
        "",
    ),
    Mutant(
        "stale use fees", "AdapterRegistry.sol", "if (!_isCurrent(recipeId, pinned)) revert TermsChanged(recipeId);", ""
    ),
    Mutant(
        "anyone sets terms",
        "AdapterRegistry.sol",
        "        known = _known(digest);\n        if (known.owner != msg.sender) revert NotOwner(msg.sender);",
        "        known = _known(digest);",
    ),
    Mutant(
        "versions in a ring",
        "AdapterRegistry.sol",
        "bool lone = later.predecessor == 0 && later.successor == 0;",
        "bool lone = later.predecessor == 0;",
    ),
    Mutant(
        "taken down for show",
        "AdapterRegistry.sol",
        "if (used.takenDown || used.access != Access.Public)",
        "if (used.access != Access.Public)",
    ),
    # Numeric disputes
    Mutant("three FAIL suffice", "Disputes.sol", "FAIL_VOTES = 4", "FAIL_VOTES = 3"),
    Mutant("two PASS suffice", "Disputes.sol", "PASS_VOTES = 3", "PASS_VOTES = 2"),
    Mutant("two are a quorum", "Disputes.sol", "QUORUM = 3", "QUORUM = 2"),
    Mutant(
        "a challenger loses a good bond",
        "Disputes.sol",
        "if (verdict != Verdict.Pass && self.bond > 0)",
        "if (verdict == Verdict.Fail && self.bond > 0)",
    ),
    Mutant(
        "a lost bond returns", "Disputes.sol", "if (verdict != Verdict.Pass && self.bond > 0)", "if (self.bond > 0)"
    ),
    Mutant("silence is free", "Disputes.sol", "else pool += _penalise(jobId, panel[i], self.missPenalty);", ""),
    Mutant("panels stay on duty", "Disputes.sol", "            _verifiers[panel[i]].duties--;\n", ""),
    Mutant("a mark for a vote", "Disputes.sol", "        if (commitment == REVEALED) revert VoteMismatch();\n", ""),
    Mutant("copied votes", "Disputes.sol", "jobId, msg.sender, verdict, salt)", "jobId, verdict, salt)"),
    Mutant(
        "votes while they are revealed",
        "Disputes.sol",
        "if (block.timestamp > self.commitBy) revert TooLate(self.commitBy);",
        "",
    ),
    Mutant(
        "reveals while votes are cast",
        "Disputes.sol",
        "if (block.timestamp <= self.commitBy) revert NotYet(self.commitBy);",
        "",
    ),
    Mutant("anyone votes", "Disputes.sol", "if (!_sitsOn(self, msg.sender)) revert NotOnPanel(msg.sender);", ""),
    Mutant(
        "a panel known beforehand",
        "Disputes.sol",
        "if (block.number <= self.drawBlock) revert NotYet(self.drawBlock);",
        "",
    ),
    Mutant(
        "the node judges itself",
        "Disputes.sol",
        "if (account == self.node || account == self.challenger) return false;",
        "",
    ),
    Mutant(
        "verifiers who come for it",
        "Disputes.sol",
        "return stays && candidate.enlistedAt < self.openedAt;",
        "return stays;",
    ),
    Mutant(
        "verifiers who will be gone",
        "Disputes.sol",
        "return stays && candidate.enlistedAt < self.openedAt;",
        "return candidate.enlistedAt < self.openedAt;",
    ),
    Mutant("challenged again", "Disputes.sol", "if (self.openedAt != 0) revert AlreadyDisputed(jobId);", ""),
    Mutant(
        "resolved at once",
        "Disputes.sol",
        "        if (block.timestamp <= self.revealBy) revert NotYet(self.revealBy);\n        Verdict",
        "        Verdict",
    ),
    Mutant(
        "resolved again", "Disputes.sol", "(self.resolved, self.verdict) = (true, verdict);", "self.verdict = verdict;"
    ),
    Mutant(
        "audits of later jobs",
        "Disputes.sol",
        "if (committedAt >= _rounds[number].begunAt) revert NotSelected(jobId, number);",
        "",
    ),
    Mutant(
        "every job is audited", "Disputes.sol", "if (!isSelected(jobId, number)) revert NotSelected(jobId, number);", ""
    ),
    Mutant(
        "a verifier that retired keeps its place",
        "Disputes.sol",
        "Verifier storage self = _enlisted(account);\n        if (self.leavesAt == 0 ||",
        "Verifier storage self = _enlisted(msg.sender);\n        if (self.leavesAt == 0 ||",
    ),
    Mutant(
        "a round's history is not asked",
        "Disputes.sol",
        "bytes32 drawn = Blockhash.blockHash(self.drawBlock);",
        "bytes32 drawn = blockhash(self.drawBlock);",
    ),
    Mutant(
        "a draw's history is not asked",
        "Disputes.sol",
        "bytes32 seed = Blockhash.blockHash(self.drawBlock);",
        "bytes32 seed = blockhash(self.drawBlock);",
    ),
    Mutant("a round is drawn twice", "Disputes.sol", "if (self.seed != 0 || drawn == 0)", "if (drawn == 0)"),
    Mutant("verifiers leave on duty", "Disputes.sol", "if (self.duties > 0) revert StillOnDuty(account);", ""),
    Mutant(
        "verifiers leave at once",
        "Disputes.sol",
        "if (self.leavesAt == 0 || block.timestamp < self.leavesAt) revert NotYet(self.leavesAt);",
        "",
    ),
    Mutant(
        "waived and challenged",
        "Disputes.sol",
        "if (spec.flags.has(JobFlags.PRIVATE) && !spec.flags.has(JobFlags.AUDITABLE)) {",
        "if (false) {",
    ),
    Mutant(
        "honest receipts are false", "Disputes.sol", "if (!_isFalse(lane, spec, signed.receipt)) revert NotFalse();", ""
    ),
    Mutant(
        "false fees",
        "Disputes.sol",
        "if (receipt.fee != queue.feeOf(spec, receipt.inTokens, receipt.outTokens)) return true;",
        "",
    ),
    Mutant("another's papers", "Disputes.sol", " && queue.hashSpec(spec) == receipt.specHash", ""),
    Mutant("lots without order", "libraries/Panel.sol", "lot.lots[place - 1] > drawn", "lot.lots[place - 1] < drawn"),
    Mutant(
        "debts are paid twice",
        "NodeRegistry.sol",
        "        self.owed = owed_ - paid;\n",
        "",
    ),
    Mutant("debts are burnt and kept", "NodeRegistry.sol", "        self.active -= paid;\n", ""),
    Mutant(
        "a question that never ends",
        "Outputs.sol",
        " || newTerms.answerSecs >= nodes.unstakeDelaySecs()",
        "",
    ),
    Mutant(
        "debts count twice",
        "NodeRegistry.sol",
        "(self.active + leaving - self.owed) / parts",
        "(self.active + leaving) / parts",
    ),
    Mutant(
        "audits are paid for nothing",
        "Disputes.sol",
        "if (self.verdict == Verdict.None) auditFund += self.pay;\n        else pool",
        "pool",
    ),
    Mutant("the fund is paid out twice", "Disputes.sol", "        auditFund -= pay;\n", ""),
    Mutant("gifts from nobody", "Disputes.sol", "        vault.lock(msg.sender, amount);\n", ""),
    Mutant("a voucher that no transaction can settle", "Sessions.sol", "MAX_LINES = 12;", "MAX_LINES = 32;"),
    Mutant("verifiers' dust is lost", "libraries/Spoils.sol", "            left -= share;\n", ""),
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


def forge_test(project: Path, forge: Path, *arguments: str, fuzz_runs: int) -> subprocess.CompletedProcess[str]:
    """Tests link the contracts when they run, so that a changed one is compiled alone."""
    command = [str(forge), "test", "--fail-fast", "--dynamic-test-linking", *arguments]
    environment = os.environ | {"FOUNDRY_PROFILE": "lite", "FOUNDRY_FUZZ_RUNS": str(fuzz_runs)}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)


def stages(mutant: Mutant, project: Path) -> list[tuple[list[str], int]]:
    """Arguments and fuzz runs: the named test alone; else the contract's own tests, what is quick, and everything."""
    if mutant.test:
        return [(["--match-test", f"^{mutant.test}\\("], FUZZ_RUNS)]
    own = Path(mutant.file).stem
    first = [(["--match-contract", f"^{own}Test$"], FEW_FUZZ_RUNS)] if (project / f"test/{own}.t.sol").exists() else []
    return [*first, ([*QUICK], FEW_FUZZ_RUNS), ([], FUZZ_RUNS)]


def passes(project: Path, forge: Path, mutant: Mutant) -> bool:
    for arguments, fuzz_runs in stages(mutant, project):
        result = forge_test(project, forge, *arguments, fuzz_runs=fuzz_runs)
        if not re.search(r"^Ran \d+ test suites? in ", result.stdout, re.MULTILINE):
            raise SystemExit(f"{mutant.name}: no test ran\n{result.stdout}{result.stderr}")
        if result.returncode != 0:
            return False
    return True


def survives(mutant: Mutant, project: Path, forge: Path) -> bool:
    """Runs the tests in `project`, a copy, with the mutant in place of the sound source."""
    target = project / "src" / mutant.file
    sound, faulty = target.read_text(encoding="utf-8"), mutated(mutant, project / "src")
    target.write_text(faulty, encoding="utf-8")
    try:
        return passes(project, forge, mutant)
    finally:
        target.write_text(sound, encoding="utf-8")


def choose(words: list[str]) -> list[Mutant]:
    if len(words) == 1 and (share := re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", words[0])):
        return list(MUTANTS[int(share[1]) - 1 :: int(share[2])])
    return [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]


def main(words: list[str]) -> int:
    forge = find_tool("forge")
    if forge is None:
        raise SystemExit("there is no forge: run `npm ci --ignore-scripts` in contracts/")
    chosen = choose(words)
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "contracts"
        shutil.copytree(CONTRACTS, project, ignore=shutil.ignore_patterns("node_modules", "out", "openlora"))
        (project / "node_modules").symlink_to((CONTRACTS / "node_modules").resolve())
        sound = forge_test(project, forge, *QUICK, fuzz_runs=FEW_FUZZ_RUNS)
        if sound.returncode != 0:
            raise SystemExit(f"the tests fail without a mutant:\n{sound.stdout}{sound.stderr}")
        for mutant in chosen:
            alive = survives(mutant, project, forge)
            survivors += alive
            print(f"{'SURVIVES' if alive else 'killed  '}  {mutant.file:24} {mutant.name}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} killed")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
