// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {Blockhash} from "@openzeppelin/contracts/utils/Blockhash.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";

import {IDisputes} from "./interfaces/IDisputes.sol";
import {IJobQueue} from "./interfaces/IJobQueue.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {ISessions} from "./interfaces/ISessions.sol";
import {IVault} from "./interfaces/IVault.sol";
import {JobFlags} from "./libraries/JobFlags.sol";
import {Panel} from "./libraries/Panel.sol";
import {PartySignature} from "./libraries/PartySignature.sol";
import {Spoils} from "./libraries/Spoils.sol";

/// @title Implementation of IDisputes.
contract Disputes is IDisputes, AccessManaged {
    using JobFlags for uint32;

    uint256 private constant SLASHED_PART = 2; // one of two
    uint256 private constant MAX_VERIFIERS = 128;
    uint256 private constant EXCLUDED = 2; // from a panel: the node and the challenger
    uint256 private constant FAIL_VOTES = 4;
    uint256 private constant PASS_VOTES = 3;
    uint256 private constant QUORUM = 3;
    uint64 private constant DRAW_BLOCKS = 2;
    uint256 private constant BPS = 10_000;
    bytes32 private constant REVEALED = bytes32(uint256(1)); // what no commitment is

    /// @inheritdoc IDisputes
    INodeRegistry public immutable nodes;
    /// @inheritdoc IDisputes
    IJobQueue public immutable queue;
    /// @inheritdoc IDisputes
    ISessions public immutable sessions;
    /// @inheritdoc IDisputes
    IVault public immutable vault;

    /// @inheritdoc IDisputes
    mapping(address node => mapping(bytes32 workId => bool)) public proven;
    /// @inheritdoc IDisputes
    uint64 public roundCount;
    /// @inheritdoc IDisputes
    uint256 public auditFund;
    mapping(uint64 number => Round) private _rounds;
    DisputeTerms private _terms;
    address[] private _verifierList;
    mapping(address account => Verifier) private _verifiers;
    mapping(uint64 jobId => Dispute) private _disputes;
    mapping(uint64 jobId => mapping(address verifier => bytes32)) private _votes; // a commitment, or REVEALED

    constructor(
        INodeRegistry nodes_,
        IJobQueue queue_,
        ISessions sessions_,
        address authority_,
        DisputeTerms memory terms_
    ) AccessManaged(authority_) {
        (nodes, queue, sessions, vault) = (nodes_, queue_, sessions_, nodes_.vault());
        bool wired = nodes_.disputes() == address(this) && nodes_.queue() == address(queue_);
        if (!wired || !vault.isModule(address(this))) revert NotAModule(address(this));
        _setTerms(nodes_, terms_);
    }

    // Objective fraud

    /// @inheritdoc IDisputes
    function proveEquivocation(
        Lane lane,
        IJobQueue.JobSpec calldata spec,
        SignedReceipt calldata first,
        SignedReceipt calldata second,
        address hotKey
    ) external {
        (address node, bytes32 workId) = (first.receipt.node, first.receipt.workId);
        _checkLiable(lane, spec, first.receipt, hotKey);
        bool sameWork = second.receipt.node == node && second.receipt.workId == workId;
        if (!sameWork || _checked(lane, hotKey, first) == _checked(lane, hotKey, second)) revert NotEquivocation();
        emit EquivocationProven(node, workId, msg.sender, spec.client, _slash(node, workId, spec.client));
    }

    /// @inheritdoc IDisputes
    function proveContradiction(
        uint64 jobId,
        IJobQueue.JobSpec calldata spec,
        IJobQueue.Settlement calldata settlement,
        IJobQueue.Receipt calldata committed,
        SignedReceipt calldata signed,
        address hotKey
    ) external {
        (address node, bytes32 workId) = (committed.node, committed.workId);
        _checkReceipt(jobId, spec, settlement, committed);
        _checkLiable(Lane.Queue, spec, committed, hotKey);
        bool sameWork = signed.receipt.node == node && signed.receipt.workId == workId;
        if (!sameWork || _checked(Lane.Queue, hotKey, signed) == settlement.receiptHash) revert NotEquivocation();
        emit EquivocationProven(node, workId, msg.sender, spec.client, _slash(node, workId, spec.client));
    }

    /// @inheritdoc IDisputes
    function proveFalseReceipt(
        Lane lane,
        IJobQueue.JobSpec calldata spec,
        SignedReceipt calldata signed,
        address hotKey
    ) external {
        (address node, bytes32 workId) = (signed.receipt.node, signed.receipt.workId);
        _checkLiable(lane, spec, signed.receipt, hotKey);
        _checked(lane, hotKey, signed);
        if (!_isFalse(lane, spec, signed.receipt)) revert NotFalse();
        emit FalseReceiptProven(node, workId, msg.sender, spec.client, _slash(node, workId, spec.client));
    }

    // Numeric disputes

    /// @inheritdoc IDisputes
    function challenge(
        uint64 jobId,
        IJobQueue.JobSpec calldata spec,
        IJobQueue.Settlement calldata settlement,
        IJobQueue.Receipt calldata receipt
    ) external {
        _checkReceipt(jobId, spec, settlement, receipt);
        uint96 bond = _terms.challengeBond;
        _openDispute(jobId, spec, bond);
        vault.lock(msg.sender, bond);
    }

    /// @inheritdoc IDisputes
    // The queue, which is fixed at deployment, calls nobody when it holds a job.
    // slither-disable-next-line reentrancy-no-eth
    function audit(
        uint64 jobId,
        uint64 number,
        IJobQueue.JobSpec calldata spec,
        IJobQueue.Settlement calldata settlement,
        IJobQueue.Receipt calldata receipt
    ) external {
        _checkReceipt(jobId, spec, settlement, receipt);
        if (!isSelected(jobId, number)) revert NotSelected(jobId, number);
        uint40 committedAt = _openDispute(jobId, spec, 0);
        if (committedAt >= _rounds[number].begunAt) revert NotSelected(jobId, number);
        uint96 pay = uint96(Math.min(settlement.fee, auditFund));
        auditFund -= pay;
        _disputes[jobId].pay = pay;
    }

    /// @inheritdoc IDisputes
    function fundAudits(uint256 amount) external {
        auditFund += amount;
        emit AuditsFunded(msg.sender, amount);
        vault.lock(msg.sender, amount);
    }

    /// @inheritdoc IDisputes
    function beginRound() external returns (uint64 number) {
        uint256 from = roundCount == 0 ? 0 : uint256(_rounds[roundCount].begunAt) + _terms.roundSecs;
        if (block.timestamp < from) revert NotYet(from);
        number = ++roundCount;
        uint64 drawBlock = uint64(block.number) + DRAW_BLOCKS;
        _rounds[number] = Round(uint40(block.timestamp), drawBlock, 0);
        emit RoundBegun(number, drawBlock);
    }

    /// @inheritdoc IDisputes
    function seal() external {
        Round storage self = _rounds[roundCount];
        bytes32 drawn = Blockhash.blockHash(self.drawBlock);
        // Zero stands for a block that the chain does not know.
        // slither-disable-next-line incorrect-equality
        if (self.seed != 0 || drawn == 0) revert NotYet(self.drawBlock);
        self.seed = drawn;
        emit RoundSealed(roundCount, drawn);
    }

    /// @inheritdoc IDisputes
    function draw(uint64 jobId) external {
        Dispute storage self = _openOf(jobId);
        if (self.panel.length != 0) revert AlreadyDrawn(jobId);
        if (block.timestamp > self.drawBy) revert TooLate(self.drawBy);
        if (block.number <= self.drawBlock) revert NotYet(self.drawBlock);
        bytes32 seed = Blockhash.blockHash(self.drawBlock);
        if (seed == 0) {
            self.drawBlock = uint64(block.number) + DRAW_BLOCKS;
            emit DrawMoved(jobId, self.drawBlock);
            return;
        }
        Panel.Lot memory lot = Panel.create(keccak256(abi.encode(seed, jobId)));
        address[] memory candidates = _verifierList;
        for (uint256 i = 0; i < candidates.length; i++) {
            if (_isEligible(self, candidates[i])) Panel.enter(lot, candidates[i]);
        }
        if (lot.count < Panel.SIZE) revert TooFewVerifiers(lot.count);
        for (uint256 i = 0; i < Panel.SIZE; i++) {
            self.panel.push(lot.accounts[i]);
            _verifiers[lot.accounts[i]].duties++;
        }
        emit PanelDrawn(jobId, self.panel, self.commitBy, self.revealBy);
    }

    /// @inheritdoc IDisputes
    function commitVote(uint64 jobId, bytes32 commitment) external {
        Dispute storage self = _openOf(jobId);
        if (block.timestamp > self.commitBy) revert TooLate(self.commitBy);
        if (!_sitsOn(self, msg.sender)) revert NotOnPanel(msg.sender);
        if (commitment == REVEALED) revert VoteMismatch();
        if (_votes[jobId][msg.sender] != 0) revert AlreadyVoted(msg.sender);
        _votes[jobId][msg.sender] = commitment;
        emit VoteCommitted(jobId, msg.sender);
    }

    /// @inheritdoc IDisputes
    function revealVote(uint64 jobId, Verdict verdict, bytes32 salt) external {
        Dispute storage self = _openOf(jobId);
        if (block.timestamp <= self.commitBy) revert NotYet(self.commitBy);
        if (block.timestamp > self.revealBy) revert TooLate(self.revealBy);
        bytes32 commitment = keccak256(abi.encode(block.chainid, address(this), jobId, msg.sender, verdict, salt));
        if (verdict == Verdict.None || _votes[jobId][msg.sender] != commitment) revert VoteMismatch();
        _votes[jobId][msg.sender] = REVEALED;
        self.revealed++;
        if (verdict == Verdict.Pass) self.passes++;
        if (verdict == Verdict.Fail) self.fails++;
        emit VoteRevealed(jobId, msg.sender, verdict);
    }

    /// @inheritdoc IDisputes
    function resolve(uint64 jobId, IJobQueue.Settlement calldata settlement) external {
        Dispute storage self = _openOf(jobId);
        if (block.timestamp <= self.revealBy) revert NotYet(self.revealBy);
        Verdict verdict = _verdictOf(self);
        (self.resolved, self.verdict) = (true, verdict);
        address[] memory voters = _dismissPanel(jobId, self);
        if (verdict != Verdict.Pass && self.bond > 0) vault.release(self.challenger, self.bond);
        uint256 slashed = 0;
        if (verdict == Verdict.Fail) {
            slashed = queue.condemn(jobId, settlement);
            slashed += nodes.slash(self.node, SLASHED_PART);
            Spoils.divide(nodes, slashed, self.challenger, settlement.client, voters);
        } else if (verdict == Verdict.Ambiguous) {
            queue.annul(jobId, settlement);
        } else {
            queue.resume(jobId, uint40(block.timestamp) - self.openedAt);
        }
        emit DisputeResolved(jobId, verdict, slashed);
    }

    // Verifiers

    /// @inheritdoc IDisputes
    function enlist() external {
        if (_verifiers[msg.sender].enlistedAt != 0) revert AlreadyVerifier(msg.sender);
        if (_verifierList.length == MAX_VERIFIERS) revert TooManyVerifiers(MAX_VERIFIERS);
        uint96 stake = _terms.verifierStake;
        _verifiers[msg.sender] = Verifier(stake, uint40(block.timestamp), 0, 0);
        _verifierList.push(msg.sender);
        emit VerifierEnlisted(msg.sender, stake);
        vault.lock(msg.sender, stake);
    }

    /// @inheritdoc IDisputes
    function retire() external {
        Verifier storage self = _enlisted(msg.sender);
        if (self.leavesAt != 0) revert NotAVerifier(msg.sender);
        self.leavesAt = uint40(block.timestamp) + nodes.unstakeDelaySecs();
        emit VerifierRetired(msg.sender, self.leavesAt);
    }

    /// @inheritdoc IDisputes
    function withdraw(address account) external {
        Verifier storage self = _enlisted(account);
        if (self.leavesAt == 0 || block.timestamp < self.leavesAt) revert NotYet(self.leavesAt);
        if (self.duties > 0) revert StillOnDuty(account);
        uint96 stake = self.stake;
        delete _verifiers[account];
        uint256 last = _verifierList.length - 1;
        for (uint256 i = 0; i < last; i++) {
            if (_verifierList[i] != account) continue;
            _verifierList[i] = _verifierList[last];
            break;
        }
        _verifierList.pop();
        emit VerifierLeft(account, stake);
        vault.release(account, stake);
    }

    /// @inheritdoc IDisputes
    function setTerms(DisputeTerms calldata newTerms) external restricted {
        _setTerms(nodes, newTerms);
    }

    // Views

    /// @inheritdoc IDisputes
    function terms() external view returns (DisputeTerms memory) {
        return _terms;
    }

    /// @inheritdoc IDisputes
    function dispute(uint64 jobId) external view returns (Dispute memory) {
        return _disputes[jobId];
    }

    /// @inheritdoc IDisputes
    function verifier(address account) external view returns (Verifier memory) {
        return _verifiers[account];
    }

    /// @inheritdoc IDisputes
    function verifiers() external view returns (address[] memory) {
        return _verifierList;
    }

    /// @inheritdoc IDisputes
    function round(uint64 number) external view returns (Round memory) {
        return _rounds[number];
    }

    /// @inheritdoc IDisputes
    function isSelected(uint64 jobId, uint64 number) public view returns (bool) {
        bytes32 seed = _rounds[number].seed;
        // A block's proposer may withhold it and so move the draw, at the price of the block.
        // slither-disable-next-line weak-prng
        return seed != 0 && uint256(keccak256(abi.encode(seed, jobId))) % BPS < _terms.auditBps;
    }

    // Objective fraud, inside

    function _checkLiable(
        Lane lane,
        IJobQueue.JobSpec calldata spec,
        IJobQueue.Receipt calldata receipt,
        address hotKey
    ) private view {
        if (proven[receipt.node][receipt.workId]) revert AlreadyProven(receipt.node, receipt.workId);
        bytes32 specHash = lane == Lane.Queue ? queue.hashSpec(spec) : sessions.hashOrder(spec);
        if (specHash != receipt.specHash) revert SpecMismatch(receipt.specHash);
        if (block.timestamp >= nodes.liableUntil(receipt.node, hotKey)) revert NotLiable(hotKey);
    }

    /// @dev The receipt's digest, which the hot key must have signed.
    function _checked(Lane lane, address hotKey, SignedReceipt calldata signed) private view returns (bytes32 digest) {
        digest = lane == Lane.Queue ? queue.hashReceipt(signed.receipt) : sessions.hashReceipt(signed.receipt);
        if (!PartySignature.isValid(hotKey, digest, signed.signature)) revert BadSignature();
    }

    /// @dev The fee is asked for only within the limits, where it fits.
    function _isFalse(Lane lane, IJobQueue.JobSpec calldata spec, IJobQueue.Receipt calldata receipt)
        private
        view
        returns (bool)
    {
        if (receipt.inTokens > spec.maxInTokens || receipt.outTokens > spec.maxOutTokens) return true;
        if (receipt.recipeId != spec.recipeId || receipt.inputDigest != spec.inputDigest) return true;
        if (receipt.fee != queue.feeOf(spec, receipt.inTokens, receipt.outTokens)) return true;
        if (lane == Lane.Queue) return false;
        return receipt.workId != receipt.specHash || receipt.seed != uint64(bytes8(receipt.specHash));
    }

    function _slash(address node, bytes32 workId, address client) private returns (uint256 slashed) {
        proven[node][workId] = true;
        slashed = nodes.slash(node, SLASHED_PART);
        Spoils.divide(nodes, slashed, msg.sender, client, new address[](0));
    }

    // Numeric disputes, inside

    function _checkReceipt(
        uint64 jobId,
        IJobQueue.JobSpec calldata spec,
        IJobQueue.Settlement calldata settlement,
        IJobQueue.Receipt calldata receipt
    ) private view {
        bool ofTheJob = keccak256(abi.encode(settlement)) == queue.job(jobId).settlementHash
            && queue.hashReceipt(receipt) == settlement.receiptHash && queue.hashSpec(spec) == receipt.specHash;
        if (!ofTheJob) revert ReceiptMismatch(jobId);
    }

    function _openDispute(uint64 jobId, IJobQueue.JobSpec calldata spec, uint96 bond)
        private
        returns (uint40 committedAt)
    {
        if (spec.flags.has(JobFlags.PRIVATE) && !spec.flags.has(JobFlags.AUDITABLE)) {
            revert NumericAuditWaived(jobId);
        }
        Dispute storage self = _disputes[jobId];
        if (self.openedAt != 0) revert AlreadyDisputed(jobId);
        uint256 enlisted = _verifierList.length;
        if (enlisted < Panel.SIZE + EXCLUDED) revert TooFewVerifiers(enlisted);
        (self.challenger, self.bond, self.missPenalty) = (msg.sender, bond, _terms.missPenalty);
        self.openedAt = uint40(block.timestamp);
        self.drawBy = self.openedAt + _terms.drawSecs;
        self.commitBy = self.drawBy + _terms.commitSecs;
        self.revealBy = self.commitBy + _terms.revealSecs;
        self.drawBlock = uint64(block.number) + DRAW_BLOCKS;
        (self.node, committedAt) = queue.hold(jobId);
        emit DisputeOpened(jobId, self.node, msg.sender, bond, self.drawBlock);
    }

    /// @dev A set that is fixed when the dispute begins: an exit begun later ends after it.
    function _isEligible(Dispute storage self, address account) private view returns (bool) {
        if (account == self.node || account == self.challenger) return false;
        Verifier storage candidate = _verifiers[account];
        bool stays = candidate.leavesAt == 0 || candidate.leavesAt > self.revealBy;
        return stays && candidate.enlistedAt < self.openedAt;
    }

    function _sitsOn(Dispute storage self, address account) private view returns (bool) {
        address[] memory panel = self.panel;
        for (uint256 i = 0; i < panel.length; i++) {
            if (panel[i] == account) return true;
        }
        return false;
    }

    function _verdictOf(Dispute storage self) private view returns (Verdict) {
        if (self.revealed < QUORUM) return Verdict.None;
        if (self.fails >= FAIL_VOTES) return Verdict.Fail;
        return self.passes >= PASS_VOTES ? Verdict.Pass : Verdict.Ambiguous;
    }

    /// @dev Takes the penalty from those who did not reveal; gives it, an audit's pay, and their part of a lost challenge's
    /// bond, to those who did; what cannot be shared is burnt. The rest of a lost challenge's bond is the node's.
    /// @return voters Who revealed.
    function _dismissPanel(uint64 jobId, Dispute storage self) private returns (address[] memory voters) {
        address[] memory panel = self.panel;
        voters = new address[](self.revealed);
        uint256 voted = 0;
        bool lost = self.verdict == Verdict.Pass;
        uint256 pool = lost ? self.bond / 2 : 0;
        if (self.verdict == Verdict.None) auditFund += self.pay;
        else pool += self.pay;
        for (uint256 i = 0; i < panel.length; i++) {
            _verifiers[panel[i]].duties--;
            if (_votes[jobId][panel[i]] == REVEALED) voters[voted++] = panel[i];
            else pool += _penalise(jobId, panel[i], self.missPenalty);
        }
        address[] memory accounts = new address[](voted + 2);
        uint256[] memory amounts = new uint256[](voted + 2);
        uint256 share = voted == 0 ? 0 : pool / voted;
        for (uint256 i = 0; i < voted; i++) {
            (accounts[i], amounts[i]) = (voters[i], share);
        }
        // What the division leaves, exactly.
        // slither-disable-next-line divide-before-multiply
        (accounts[voted], amounts[voted]) = (Spoils.BURNT, pool - share * voted);
        (accounts[voted + 1], amounts[voted + 1]) = (self.node, lost ? self.bond - self.bond / 2 : 0);
        vault.credit(accounts, amounts);
    }

    /// @dev A verifier that can no longer pay for a duty gets none: it may leave at once.
    function _penalise(uint64 jobId, address account, uint96 missPenalty) private returns (uint96 penalty) {
        Verifier storage self = _verifiers[account];
        penalty = uint96(Math.min(missPenalty, self.stake));
        self.stake -= penalty;
        if (self.stake < missPenalty) self.leavesAt = uint40(block.timestamp);
        emit VerifierMissed(jobId, account, penalty);
    }

    function _openOf(uint64 jobId) private view returns (Dispute storage self) {
        self = _disputes[jobId];
        if (self.openedAt == 0 || self.resolved) revert NoDispute(jobId);
    }

    function _enlisted(address account) private view returns (Verifier storage self) {
        self = _verifiers[account];
        if (self.enlistedAt == 0) revert NotAVerifier(account);
    }

    /// @dev A verifier that retires as a dispute begins is still bound when it ends.
    function _setTerms(INodeRegistry registry, DisputeTerms memory newTerms) private {
        uint256 life = uint256(newTerms.drawSecs) + newTerms.commitSecs + newTerms.revealSecs;
        bool hurried = newTerms.drawSecs == 0 || newTerms.commitSecs == 0 || newTerms.revealSecs == 0;
        bool unpayable = newTerms.missPenalty > newTerms.verifierStake || newTerms.auditBps > BPS;
        if (hurried || unpayable || life >= registry.unstakeDelaySecs()) revert BadTerms();
        _terms = newTerms;
        emit DisputeTermsSet(newTerms);
    }
}
