// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {Ownable, Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {Pausable} from "@openzeppelin/contracts/utils/Pausable.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";

import {IAdapterRegistry} from "./interfaces/IAdapterRegistry.sol";
import {IJobQueue} from "./interfaces/IJobQueue.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {IVault} from "./interfaces/IVault.sol";
import {JobHash} from "./libraries/JobHash.sol";
import {JobPrice} from "./libraries/JobPrice.sol";
import {NodeSignature} from "./libraries/NodeSignature.sol";
import {Tally} from "./libraries/Tally.sol";

/// @title Implementation of IJobQueue.
contract JobQueue is IJobQueue, EIP712, Ownable2Step, Pausable {
    using JobHash for JobSpec;
    using JobHash for Receipt;
    using JobPrice for JobSpec;
    using SafeCast for uint256;
    using Tally for Tally.Table;

    uint256 private constant BPS = 10_000;
    uint256 private constant MAX_INPUT_BYTES = 4_096;

    /// @dev Three slots: one written at submit, a second at the first claim, the third only when a lease has lapsed.
    struct Record {
        bytes32 digest; // of the spec until the commit, of the receipt from then on
        address node;
        State state; // None with a digest means Open
        uint16 paramsVersion;
        uint40 until; // end of the lease while claimed, of the window once committed
        uint32 claimBlock;
        uint96 forfeited;
    }

    /// @dev Never back to zero, so that counting stays cheap.
    struct Claims {
        uint64 begun;
        uint64 ended;
    }

    /// @dev What one batch owes. A run is a row of neighbours with one recipe and one node: their legs telescope.
    struct Batch {
        Tally.Table credits;
        Tally.Table refunds;
        Tally.Table bonds;
        uint64 runRecipe;
        address runNode;
        uint256 runFee;
    }

    /// @inheritdoc IJobQueue
    IVault public immutable vault;
    /// @inheritdoc IJobQueue
    INodeRegistry public immutable nodes;
    /// @inheritdoc IJobQueue
    IAdapterRegistry public immutable adapters;

    // These share a slot with Pausable's flag: one read tells submit and claim all they need.
    /// @inheritdoc IJobQueue
    uint64 public jobCount;
    /// @inheritdoc IJobQueue
    uint16 public paramsVersion;

    mapping(uint64 jobId => Record) private _jobs;
    mapping(address node => Claims) private _claims;
    mapping(uint16 version => Params) private _params;
    /// @inheritdoc IJobQueue
    mapping(uint64 recipeId => uint256) public recipeFees;

    constructor(INodeRegistry nodes_, IAdapterRegistry adapters_, address owner_, Params memory params_)
        EIP712("OpenLoRA", "1")
        Ownable(owner_)
    {
        nodes = nodes_;
        adapters = adapters_;
        vault = nodes_.vault();
        if (nodes_.queue() != address(this) || !vault.isModule(address(this))) revert NotAModule(address(this));
        _setParams(params_);
    }

    /// @inheritdoc IJobQueue
    function submit(JobSpec calldata spec, bytes calldata document) external whenNotPaused returns (uint64 jobId) {
        jobId = ++jobCount;
        vault.lock(msg.sender, _open(jobId, spec, document));
    }

    /// @inheritdoc IJobQueue
    function submitMany(JobSpec[] calldata specs, bytes[] calldata documents)
        external
        whenNotPaused
        returns (uint64 firstJobId)
    {
        if (specs.length != documents.length) revert LengthMismatch();
        firstJobId = jobCount + 1;
        jobCount += uint64(specs.length);
        uint256 escrow = 0;
        for (uint64 i = 0; i < specs.length; i++) {
            escrow += _open(firstJobId + i, specs[i], documents[i]);
        }
        vault.lock(msg.sender, escrow);
    }

    /// @inheritdoc IJobQueue
    function claim(uint64 jobId, JobSpec calldata spec) external whenNotPaused {
        Record storage self = _uncommitted(jobId, spec);
        address node = _operatorOf(msg.sender);
        if (block.timestamp > spec.deadline) revert DeadlinePassed(spec.deadline);
        _endLapsedLease(jobId, self);

        uint16 version = paramsVersion;
        Params memory current = _params[version];
        uint40 until = _min(uint40(block.timestamp) + spec.leaseSecs, spec.deadline);
        self.node = node;
        self.state = State.Claimed;
        self.paramsVersion = version;
        self.until = until;
        self.claimBlock = block.number.toUint32();
        Claims storage claims = _claims[node];
        if (++claims.begun - claims.ended > current.maxLiveClaims) {
            revert TooManyLiveClaims(node, current.maxLiveClaims);
        }
        emit JobClaimed(jobId, node, until, version);
        nodes.lockBond(node, current.bond);
    }

    /// @inheritdoc IJobQueue
    function release(uint64 jobId) external {
        Record storage self = _leased(jobId);
        address node = self.node;
        uint96 bond = _params[self.paramsVersion].bond;
        _reopen(self);
        emit JobReleased(jobId, node);
        nodes.unlockBond(node, bond);
    }

    /// @inheritdoc IJobQueue
    function commit(uint64 jobId, JobSpec calldata spec, Receipt calldata receipt, bytes calldata signature) external {
        Record storage self = _leased(jobId);
        _checkSpec(jobId, self.digest, spec);
        _checkReceipt(jobId, self, spec, receipt);
        bytes32 receiptHash = hashReceipt(receipt);
        if (!NodeSignature.isValid(msg.sender, receiptHash, signature)) revert BadSignature();

        self.digest = receiptHash;
        self.state = State.Committed;
        self.until = uint40(block.timestamp) + _params[self.paramsVersion].windowSecs;
        _claims[self.node].ended++;
        emit JobCommitted(jobId, self.node, receiptHash, receipt);
    }

    /// @inheritdoc IJobQueue
    function finalizeBatch(uint64[] calldata jobIds, JobSpec[] calldata specs, Receipt[] calldata receipts) external {
        if (specs.length != jobIds.length || receipts.length != jobIds.length) revert LengthMismatch();
        Batch memory batch;
        (batch.credits, batch.refunds, batch.bonds) = (Tally.create(), Tally.create(), Tally.create());
        for (uint256 i = 0; i < jobIds.length; i++) {
            if (_jobs[jobIds[i]].state == State.Finalized) continue;
            _finalize(batch, jobIds[i], specs[i], receipts[i]);
        }
        _closeRun(batch);
        _payOut(batch);
    }

    /// @inheritdoc IJobQueue
    function expire(uint64 jobId, JobSpec calldata spec) external {
        Record storage self = _uncommitted(jobId, spec);
        if (block.timestamp <= spec.deadline) revert NotExpired(jobId);
        emit JobExpired(jobId, spec.escrow());
        _refund(jobId, self, spec, State.Expired);
    }

    /// @inheritdoc IJobQueue
    function cancel(uint64 jobId, JobSpec calldata spec) external {
        Record storage self = _uncommitted(jobId, spec);
        if (msg.sender != spec.client) revert NotTheClient(msg.sender);
        emit JobCancelled(jobId, spec.escrow());
        _refund(jobId, self, spec, State.Cancelled);
    }

    /// @inheritdoc IJobQueue
    function setParams(Params calldata newParams) external onlyOwner returns (uint16 version) {
        return _setParams(newParams);
    }

    /// @inheritdoc IJobQueue
    function pause() external onlyOwner {
        _pause();
    }

    /// @inheritdoc IJobQueue
    function unpause() external onlyOwner {
        _unpause();
    }

    /// @inheritdoc IJobQueue
    function job(uint64 jobId) external view returns (Job memory found) {
        Record storage self = _jobs[jobId];
        found.state = _stateOf(self);
        found.forfeited = self.forfeited;
        bool committed = self.state == State.Committed || self.state == State.Finalized;
        if (committed) found.receiptHash = self.digest;
        else found.specHash = self.digest;
        if (committed || found.state == State.Claimed) {
            found.node = self.node;
            found.paramsVersion = self.paramsVersion;
            found.claimBlock = self.claimBlock;
            if (committed) found.finalizableAt = self.until;
            else found.leaseDeadline = self.until;
        }
    }

    /// @inheritdoc IJobQueue
    function liveClaims(address node) external view returns (uint64) {
        return _claims[node].begun - _claims[node].ended;
    }

    /// @inheritdoc IJobQueue
    function params(uint16 version) external view returns (Params memory) {
        return _params[version];
    }

    /// @inheritdoc IJobQueue
    function hashSpec(JobSpec calldata spec) public view returns (bytes32) {
        return _hashTypedDataV4(spec.structHash());
    }

    /// @inheritdoc IJobQueue
    function hashReceipt(Receipt calldata receipt) public view returns (bytes32) {
        return _hashTypedDataV4(receipt.structHash());
    }

    /// @inheritdoc IJobQueue
    function escrowOf(JobSpec calldata spec) external pure returns (uint96) {
        return spec.escrow();
    }

    /// @inheritdoc IJobQueue
    function feeOf(JobSpec calldata spec, uint32 inTokens, uint32 outTokens) external pure returns (uint96) {
        return spec.fee(inTokens, outTokens);
    }

    // Opening

    function _open(uint64 jobId, JobSpec calldata spec, bytes calldata document) private returns (uint96 escrow) {
        Params memory current = _params[paramsVersion];
        if (spec.client != msg.sender) revert NotTheClient(msg.sender);
        if (spec.recipeId == 0 || spec.recipeId > adapters.recipeCount()) {
            revert IAdapterRegistry.UnknownRecipe(spec.recipeId);
        }
        if (spec.deadline <= block.timestamp || spec.deadline > block.timestamp + current.maxDurationSecs) {
            revert BadDeadline(spec.deadline);
        }
        if (spec.leaseSecs == 0 || spec.leaseSecs > current.maxLeaseSecs) revert BadLease(spec.leaseSecs);
        if (document.length > 0) _checkDocument(spec, document);

        escrow = spec.escrow();
        bytes32 specHash = hashSpec(spec);
        _jobs[jobId].digest = specHash;
        emit JobSubmitted(jobId, msg.sender, specHash, spec, document);
    }

    function _checkDocument(JobSpec calldata spec, bytes calldata document) private pure {
        if (document.length > MAX_INPUT_BYTES) revert InputTooLarge(document.length);
        bytes32 computed = sha256(document);
        if (computed != spec.inputDigest) revert InputDigestMismatch(computed);
    }

    // Leases

    /// @dev A lease holds through its last second; after it the job reads as Open.
    function _stateOf(Record storage self) private view returns (State) {
        State state = self.state;
        if (state == State.None && self.digest != 0) return State.Open;
        if (state == State.Claimed && block.timestamp > self.until) return State.Open;
        return state;
    }

    /// @dev The job, which must read as Open.
    function _uncommitted(uint64 jobId, JobSpec calldata spec) private view returns (Record storage self) {
        self = _jobs[jobId];
        State state = _stateOf(self);
        if (state != State.Open) revert WrongState(jobId, state);
        _checkSpec(jobId, self.digest, spec);
    }

    /// @dev The job, which must be under a live lease of the caller.
    function _leased(uint64 jobId) private view returns (Record storage self) {
        self = _jobs[jobId];
        if (self.state != State.Claimed) revert WrongState(jobId, _stateOf(self));
        if (block.timestamp > self.until) revert LeaseExpired(self.until);
        if (_operatorOf(msg.sender) != self.node) revert NotTheNode(msg.sender);
    }

    function _operatorOf(address hotKey) private view returns (address operator) {
        operator = nodes.operatorOf(hotKey);
        if (operator == address(0)) revert NotAHotKey(hotKey);
    }

    /// @dev Takes the bond of a claimant who let the lease run out, for whoever finishes or else the client.
    function _endLapsedLease(uint64 jobId, Record storage self) private {
        if (self.state != State.Claimed) return;
        address node = self.node;
        uint96 bond = _params[self.paramsVersion].bond;
        _reopen(self);
        self.forfeited += bond;
        emit LeaseLapsed(jobId, node, bond);
        nodes.forfeitBond(node, bond);
    }

    function _reopen(Record storage self) private {
        _claims[self.node].ended++;
        self.node = address(0);
        self.state = State.None;
        self.paramsVersion = 0;
        self.until = 0;
        self.claimBlock = 0;
    }

    /// @dev Ends an open job without a receipt: the escrow returns to the client, with the bonds forfeited over it.
    function _refund(uint64 jobId, Record storage self, JobSpec calldata spec, State end) private {
        _endLapsedLease(jobId, self);
        self.state = end;
        vault.release(spec.client, spec.escrow());
        _payForfeited(self, spec.client);
    }

    function _payForfeited(Record storage self, address beneficiary) private {
        uint96 forfeited = self.forfeited;
        if (forfeited == 0) return;
        self.forfeited = 0;
        nodes.payForfeit(beneficiary, forfeited);
    }

    // Receipts

    function _checkSpec(uint64 jobId, bytes32 expected, JobSpec calldata spec) private view {
        if (hashSpec(spec) != expected) revert SpecMismatch(jobId, expected);
    }

    function _checkReceipt(uint64 jobId, Record storage self, JobSpec calldata spec, Receipt calldata receipt)
        private
        view
    {
        if (
            receipt.workId != keccak256(abi.encode(address(this), jobId)) || receipt.node != self.node
                || receipt.recipeId != spec.recipeId || receipt.specHash != self.digest
                || receipt.inputDigest != spec.inputDigest
        ) revert ReceiptMismatch(jobId);
        if (receipt.inTokens > spec.maxInTokens || receipt.outTokens > spec.maxOutTokens) {
            revert OverLimit(receipt.inTokens, receipt.outTokens);
        }
        uint96 fee = spec.fee(receipt.inTokens, receipt.outTokens);
        if (receipt.fee != fee) revert WrongFee(fee);
    }

    // Settlement

    function _finalize(Batch memory batch, uint64 jobId, JobSpec calldata spec, Receipt calldata receipt) private {
        Record storage self = _jobs[jobId];
        if (self.state != State.Committed) revert WrongState(jobId, _stateOf(self));
        if (block.timestamp < self.until) revert WindowOpen(self.until);
        if (hashReceipt(receipt) != self.digest) revert ReceiptMismatch(jobId);
        _checkSpec(jobId, receipt.specHash, spec);

        self.state = State.Finalized;
        uint96 refund = spec.escrow() - receipt.fee;
        emit JobFinalized(jobId, receipt.node, receipt.fee, refund);
        if (refund > 0) batch.refunds.add(spec.client, refund);
        batch.bonds.add(receipt.node, _params[self.paramsVersion].bond);
        if (spec.recipeId != batch.runRecipe || receipt.node != batch.runNode) {
            _closeRun(batch);
            (batch.runRecipe, batch.runNode) = (spec.recipeId, receipt.node);
        }
        batch.runFee += receipt.fee;
        _payForfeited(self, receipt.node);
    }

    /// @dev Splits the run's fee: every leg gets floor(cum' * bps / 10,000) - floor(cum * bps / 10,000) of the recipe's
    /// cumulative fee, and the node the rest, so no wei is made or lost however jobs are batched. Several legs may
    /// round up at once, which a fee of a few dozen wei cannot cover: hence the minimum.
    function _closeRun(Batch memory batch) private {
        if (batch.runFee == 0) return;
        uint64 recipeId = batch.runRecipe;
        uint256 cumBefore = recipeFees[recipeId];
        uint256 cumAfter = cumBefore + batch.runFee;
        recipeFees[recipeId] = cumAfter;
        uint256 left = batch.runFee;
        IAdapterRegistry.Leg[] memory legs = adapters.recipeLegs(recipeId);
        for (uint256 i = 0; i < legs.length; i++) {
            uint256 amount = Math.min(left, cumAfter * legs[i].bps / BPS - cumBefore * legs[i].bps / BPS);
            left -= amount;
            _pay(batch, legs[i].payee, legs[i].role, amount);
        }
        _pay(batch, batch.runNode, IAdapterRegistry.Role.Node, left);
        batch.runFee = 0;
    }

    function _pay(Batch memory batch, address payee, IAdapterRegistry.Role role, uint256 amount) private {
        if (amount == 0) return;
        batch.credits.add(payee, amount);
        emit Paid(payee, role, batch.runRecipe, amount.toUint96());
    }

    function _payOut(Batch memory batch) private {
        (address[] memory accounts, uint256[] memory amounts) = batch.credits.entries();
        vault.credit(accounts, amounts);
        (accounts, amounts) = batch.refunds.entries();
        for (uint256 i = 0; i < accounts.length; i++) {
            vault.release(accounts[i], amounts[i]);
        }
        (accounts, amounts) = batch.bonds.entries();
        for (uint256 i = 0; i < accounts.length; i++) {
            nodes.unlockBond(accounts[i], amounts[i]);
        }
    }

    // Parameters

    function _setParams(Params memory newParams) private returns (uint16 version) {
        if (newParams.maxLiveClaims == 0 || newParams.maxLeaseSecs == 0 || newParams.maxDurationSecs == 0) {
            revert BadParams();
        }
        version = ++paramsVersion;
        _params[version] = newParams;
        emit ParamsSet(version, newParams);
    }

    function _min(uint40 a, uint40 b) private pure returns (uint40) {
        return a < b ? a : b;
    }
}
