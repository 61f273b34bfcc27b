// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {Blockhash} from "@openzeppelin/contracts/utils/Blockhash.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {Pausable} from "@openzeppelin/contracts/utils/Pausable.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";

import {IAdapterRegistry} from "./interfaces/IAdapterRegistry.sol";
import {IJobQueue} from "./interfaces/IJobQueue.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {IOutputs} from "./interfaces/IOutputs.sol";
import {IVault} from "./interfaces/IVault.sol";
import {JobFlags} from "./libraries/JobFlags.sol";
import {JobHash} from "./libraries/JobHash.sol";
import {JobPrice} from "./libraries/JobPrice.sol";
import {Royalties} from "./libraries/Royalties.sol";
import {Spoils} from "./libraries/Spoils.sol";
import {Tally} from "./libraries/Tally.sol";

/// @title Implementation of IJobQueue.
contract JobQueue is IJobQueue, EIP712, AccessManaged, Pausable {
    using JobFlags for uint32;
    using JobHash for JobSpec;
    using JobHash for Receipt;
    using JobHash for Settlement;
    using JobPrice for JobSpec;
    using SafeCast for uint256;
    using Tally for Tally.Table;

    uint256 private constant MAX_INPUT_BYTES = 4_096;
    uint96 private constant BOND_PARTS = 10; // one of which is burnt when a claim ends without an answer

    /// @dev Two slots: one written at submit, the other at the first claim; both change at the commit.
    struct Record {
        bytes32 digest; // of the spec until the commit, of the settlement from then on
        address node;
        State state; // None with a digest means Open
        bool hasForfeits;
        uint16 paramsVersion;
        uint32 moment; // end of the lease while claimed, the commit's time from then on
        uint32 claimBlock;
    }

    /// @dev What one batch owes. A run is a row of neighbours with one recipe and one node: their legs telescope.
    struct Batch {
        Tally.Table credits;
        Tally.Table refunds;
        Tally.Table bonds;
        Tally.Table claims;
        uint64 runRecipe;
        address runNode;
        uint256 runFee;
        uint256 runBonds;
        uint256 runClaims;
        uint16 version; // of `params`
        Params params;
        uint64 waiting; // a job that cannot be final yet; zero when there is none
    }

    /// @inheritdoc IJobQueue
    IVault public immutable vault;
    /// @inheritdoc IJobQueue
    INodeRegistry public immutable nodes;
    /// @inheritdoc IJobQueue
    IAdapterRegistry public immutable adapters;
    IOutputs private immutable _outputs;
    address private immutable _disputes;

    // These share a slot with Pausable's flag: one read tells submit and claim all they need.
    /// @inheritdoc IJobQueue
    uint64 public jobCount;
    /// @inheritdoc IJobQueue
    uint16 public paramsVersion;

    mapping(uint64 jobId => Record) private _jobs;
    mapping(uint64 jobId => uint96) private _forfeits;
    mapping(uint64 jobId => uint40) private _heldSecs; // by which `moment` is later than the commit
    mapping(uint16 version => Params) private _params;
    /// @inheritdoc IJobQueue
    mapping(uint64 recipeId => uint256) public recipeFees;

    constructor(INodeRegistry nodes_, IAdapterRegistry adapters_, address authority_, Params memory params_)
        EIP712("OpenLoRA", "1")
        AccessManaged(authority_)
    {
        nodes = nodes_;
        adapters = adapters_;
        vault = nodes_.vault();
        (_outputs, _disputes) = (IOutputs(nodes_.outputs()), nodes_.disputes());
        if (nodes_.queue() != address(this) || !vault.isModule(address(this))) revert NotAModule(address(this));
        _setParams(nodes_, params_);
    }

    modifier onlyJudge() {
        if (msg.sender != address(_outputs) && msg.sender != _disputes) revert NotAJudge(msg.sender);
        _;
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
        if (block.timestamp > spec.deadline) revert DeadlinePassed(spec.deadline);
        if (spec.flags.has(JobFlags.GUARDED)) adapters.checkUse(spec.recipeId, spec.client);
        _endLapsedLease(jobId, self);

        uint16 version = paramsVersion;
        Params memory current = _params[version];
        address node = nodes.lockBond(msg.sender, current.bond, current.maxLiveClaims);
        uint40 until = _min(uint40(block.timestamp) + spec.leaseSecs, spec.deadline);
        self.node = node;
        self.state = State.Claimed;
        self.paramsVersion = version;
        self.moment = uint256(until).toUint32();
        self.claimBlock = block.number.toUint32();
        emit JobClaimed(jobId, node, until, version);
    }

    /// @inheritdoc IJobQueue
    function release(uint64 jobId) external {
        Record storage self = _leased(jobId);
        uint96 bond = _params[self.paramsVersion].bond;
        uint96 lost = bond / BOND_PARTS;
        emit JobReleased(jobId, self.node, lost);
        _endClaim(jobId, self, bond, lost);
    }

    /// @inheritdoc IJobQueue
    function commit(uint64 jobId, JobSpec calldata spec, Answer calldata answer) external {
        Record storage self = _leased(jobId);
        _checkSpec(jobId, self.digest, spec);
        Receipt memory receipt = _receiptOf(jobId, self, spec, answer);
        bytes32 receiptHash = hashReceipt(receipt);

        uint96 refund = spec.escrow() - receipt.fee;
        self.digest = Settlement(receiptHash, spec.client, spec.recipeId, receipt.fee, refund).digestInMemory();
        self.state = State.Committed;
        self.moment = uint32(block.timestamp); // <= the lease's end, which fits
        emit JobCommitted(jobId, receipt.node, receiptHash, receipt);
        if (spec.flags.has(JobFlags.PUBLISH)) {
            self.state = State.Held;
            emit JobHeld(jobId, address(_outputs));
            _outputs.expect(jobId, receipt.node, spec.client, receipt.outputDigest);
        }
    }

    /// @inheritdoc IJobQueue
    function finalizeBatch(uint64[] calldata jobIds, Settlement[] calldata settlements) external {
        if (settlements.length != jobIds.length) revert LengthMismatch();
        // slither-disable-next-line uninitialized-local
        Batch memory batch;
        (batch.credits, batch.refunds) = (Tally.create(), Tally.create());
        (batch.bonds, batch.claims) = (Tally.create(), Tally.create());
        for (uint256 i = 0; i < jobIds.length; i++) {
            _finalize(batch, jobIds[i], settlements[i]);
        }
        _closeRun(batch);
        if (batch.waiting != 0 && batch.claims.count == 0) _revertWaiting(batch.waiting);
        _payOut(batch);
    }

    /// @inheritdoc IJobQueue
    function expire(uint64 jobId, JobSpec calldata spec) external {
        Record storage self = _uncommitted(jobId, spec);
        if (block.timestamp <= spec.deadline) revert NotExpired(jobId);
        _refund(jobId, self, spec, State.Expired);
    }

    /// @inheritdoc IJobQueue
    function cancel(uint64 jobId, JobSpec calldata spec) external {
        Record storage self = _uncommitted(jobId, spec);
        if (msg.sender != spec.client) revert NotTheClient(msg.sender);
        _refund(jobId, self, spec, State.Cancelled);
    }

    /// @inheritdoc IJobQueue
    function hold(uint64 jobId) external onlyJudge returns (address node, uint40 committedAt) {
        Record storage self = _jobs[jobId];
        if (self.state != State.Committed) revert WrongState(jobId, _stateOf(self));
        uint40 finalizableAt = _finalizableAt(self);
        if (block.timestamp >= finalizableAt) revert WindowOver(finalizableAt);
        self.state = State.Held;
        emit JobHeld(jobId, msg.sender);
        return (self.node, self.moment - _heldSecs[jobId]);
    }

    /// @inheritdoc IJobQueue
    function resume(uint64 jobId, uint40 heldSecs) external onlyJudge {
        Record storage self = _held(jobId);
        self.state = State.Committed;
        uint256 moment = uint256(self.moment) + heldSecs;
        self.moment = moment.toUint32();
        _heldSecs[jobId] += heldSecs;
        emit JobResumed(jobId, _finalizableAt(self));
    }

    /// @inheritdoc IJobQueue
    function condemn(uint64 jobId, Settlement calldata settlement) external onlyJudge returns (uint96 forfeited) {
        Record storage self = _held(jobId);
        address node = self.node;
        uint96 bond = _params[self.paramsVersion].bond;
        emit JobSlashed(jobId, node, settlement.fee + settlement.refund, bond);
        _refundHeld(jobId, self, settlement, State.Slashed);
        return nodes.forfeitBond(node, bond, bond);
    }

    /// @inheritdoc IJobQueue
    function annul(uint64 jobId, Settlement calldata settlement) external onlyJudge {
        Record storage self = _held(jobId);
        address node = self.node;
        emit JobAnnulled(jobId, node, settlement.fee + settlement.refund);
        _refundHeld(jobId, self, settlement, State.Annulled);
        nodes.unlockBonds(node, _params[self.paramsVersion].bond, 1);
    }

    /// @inheritdoc IJobQueue
    function setParams(Params calldata newParams) external restricted returns (uint16 version) {
        return _setParams(nodes, newParams);
    }

    /// @inheritdoc IJobQueue
    function pause() external restricted {
        _pause();
    }

    /// @inheritdoc IJobQueue
    function unpause() external restricted {
        _unpause();
    }

    /// @inheritdoc IJobQueue
    function job(uint64 jobId) external view returns (Job memory found) {
        Record storage self = _jobs[jobId];
        found.state = _stateOf(self);
        found.forfeited = _forfeits[jobId];
        bool committed = self.state == State.Committed || self.state == State.Finalized || self.state >= State.Held;
        if (committed) found.settlementHash = self.digest;
        else found.specHash = self.digest;
        if (committed || found.state == State.Claimed) {
            found.node = self.node;
            found.paramsVersion = self.paramsVersion;
            found.claimBlock = self.claimBlock;
            if (committed) found.finalizableAt = _finalizableAt(self);
            else found.leaseDeadline = self.moment;
        }
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
    function hashReceipt(Receipt memory receipt) public view returns (bytes32) {
        return _hashTypedDataV4(receipt.structHash());
    }

    /// @inheritdoc IJobQueue
    function quote(JobSpec calldata spec) external view returns (uint96 escrow, uint96 useFee, uint32 flags) {
        IAdapterRegistry.Gate gate;
        (useFee, gate) = adapters.terms(spec.recipeId);
        if (gate == IAdapterRegistry.Gate.Guarded) {
            flags = JobFlags.GUARDED;
            adapters.checkUse(spec.recipeId, spec.client);
        }
        escrow = spec.escrow();
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

    /// @return toLock The escrow and the recipe's use fee.
    function _open(uint64 jobId, JobSpec calldata spec, bytes calldata document) private returns (uint96 toLock) {
        Params memory current = _params[paramsVersion];
        if (spec.client != msg.sender) revert NotTheClient(msg.sender);
        if (spec.flags > JobFlags.ALL) revert BadFlags(spec.flags);
        (uint96 useFee, IAdapterRegistry.Gate gate) = adapters.terms(spec.recipeId);
        if (spec.flags.has(JobFlags.GUARDED)) adapters.checkUse(spec.recipeId, spec.client);
        else if (gate == IAdapterRegistry.Gate.Guarded) revert GuardedRecipe(spec.recipeId);
        if (spec.deadline <= block.timestamp || spec.deadline > block.timestamp + current.maxDurationSecs) {
            revert BadDeadline(spec.deadline);
        }
        if (spec.leaseSecs == 0 || spec.leaseSecs > current.maxLeaseSecs) revert BadLease(spec.leaseSecs);
        if (document.length > 0) _checkDocument(spec, document);

        toLock = spec.escrow() + useFee;
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
        if (state == State.Claimed && block.timestamp > self.moment) return State.Open;
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
        if (block.timestamp > self.moment) revert LeaseExpired(self.moment);
        if (nodes.operatorOf(msg.sender) != self.node) revert NotTheNode(msg.sender);
    }

    /// @dev Takes the bond of a claimant who let the lease run out.
    function _endLapsedLease(uint64 jobId, Record storage self) private {
        if (self.state != State.Claimed) return;
        uint96 bond = _params[self.paramsVersion].bond;
        emit LeaseLapsed(jobId, self.node, bond);
        _endClaim(jobId, self, bond, bond);
    }

    /// @dev The job is open again. Of what its claimant has lost, a tenth of the bond is burnt, and the rest waits for
    /// whoever finishes or else the client. To a node that finishes itself, or has an accomplice do so, that rest returns:
    /// the tenth is what claiming again, for more time or a better seed, costs it.
    function _endClaim(uint64 jobId, Record storage self, uint96 bond, uint96 lost) private {
        address node = self.node;
        self.node = address(0);
        self.state = State.None;
        self.paramsVersion = 0;
        self.moment = 0;
        self.claimBlock = 0;
        uint256 forfeited = nodes.forfeitBond(node, bond, lost);
        uint256 burnt = Math.min(forfeited, bond / BOND_PARTS);
        nodes.payForfeit(Spoils.BURNT, burnt);
        if (forfeited == burnt) return;
        self.hasForfeits = true;
        _forfeits[jobId] += (forfeited - burnt).toUint96();
    }

    /// @dev The registry and the vault, which are fixed at deployment, call nobody: there is no re-entering.
    /// Ends an open job without a receipt: the escrow returns to the client, with the bonds forfeited over it.
    // slither-disable-next-line reentrancy-no-eth
    function _refund(uint64 jobId, Record storage self, JobSpec calldata spec, State end) private {
        uint96 escrow = spec.escrow();
        if (end == State.Expired) emit JobExpired(jobId, escrow);
        else emit JobCancelled(jobId, escrow);
        _endLapsedLease(jobId, self);
        self.state = end;
        vault.release(spec.client, escrow + _useFeeOf(spec.recipeId));
        _payForfeits(jobId, self, spec.client);
    }

    function _payForfeits(uint64 jobId, Record storage self, address beneficiary) private {
        if (!self.hasForfeits) return;
        uint96 amount = _forfeits[jobId];
        self.hasForfeits = false;
        delete _forfeits[jobId];
        nodes.payForfeit(beneficiary, amount);
    }

    // Questions

    function _held(uint64 jobId) private view returns (Record storage self) {
        self = _jobs[jobId];
        if (self.state != State.Held) revert WrongState(jobId, _stateOf(self));
    }

    /// @dev Ends a held job and returns all that its client has paid.
    function _refundHeld(uint64 jobId, Record storage self, Settlement calldata settlement, State end) private {
        if (settlement.digest() != self.digest) revert SettlementMismatch(jobId);
        self.state = end;
        vault.release(settlement.client, settlement.fee + settlement.refund + _useFeeOf(settlement.recipeId));
        _payForfeits(jobId, self, settlement.client);
    }

    function _useFeeOf(uint64 recipeId) private view returns (uint96 useFee) {
        // slither-disable-next-line unused-return
        (useFee,) = adapters.terms(recipeId);
    }

    function _finalizableAt(Record storage self) private view returns (uint40) {
        return uint40(self.moment) + _params[self.paramsVersion].windowSecs;
    }

    // Receipts

    function _checkSpec(uint64 jobId, bytes32 expected, JobSpec calldata spec) private view {
        if (hashSpec(spec) != expected) revert SpecMismatch(jobId, expected);
    }

    /// @dev The only receipt that the answer can have: what is not the node's to say is not taken from it.
    function _receiptOf(uint64 jobId, Record storage self, JobSpec calldata spec, Answer calldata answer)
        private
        view
        returns (Receipt memory)
    {
        if (answer.inTokens > spec.maxInTokens || answer.outTokens > spec.maxOutTokens) {
            revert OverLimit(answer.inTokens, answer.outTokens);
        }
        if (answer.finishReason > 1 || answer.finishedAt > self.moment) {
            revert BadFinish(answer.finishReason, answer.finishedAt);
        }
        bytes32 specHash = self.digest;
        _checkSeed(self.claimBlock, specHash, answer.seed);
        return Receipt({
            workId: keccak256(abi.encode(address(this), jobId)),
            node: self.node,
            recipeId: spec.recipeId,
            specHash: specHash,
            inputDigest: spec.inputDigest,
            outputDigest: answer.outputDigest,
            inTokens: answer.inTokens,
            outTokens: answer.outTokens,
            seed: answer.seed,
            fingerprintRoot: answer.fingerprintRoot,
            dataAttrRoot: answer.dataAttrRoot,
            engineProfile: answer.engineProfile,
            finishReason: answer.finishReason,
            finishedAt: answer.finishedAt,
            fee: spec.fee(answer.inTokens, answer.outTokens)
        });
    }

    /// @dev Where the hash is unknown, in the claim's own block and once the chain has forgotten it, a node that commits
    /// could choose its seed.
    function _checkSeed(uint64 claimBlock, bytes32 specHash, uint64 seed) private view {
        if (block.number <= claimBlock) revert TooEarly(claimBlock);
        bytes32 claimHash = Blockhash.blockHash(claimBlock);
        if (claimHash == 0) revert ClaimForgotten(claimBlock);
        uint64 expected = uint64(bytes8(keccak256(abi.encode(specHash, claimHash))));
        if (seed != expected) revert WrongSeed(expected);
    }

    // Settlement

    function _finalize(Batch memory batch, uint64 jobId, Settlement calldata settlement) private {
        Record storage self = _jobs[jobId];
        State state = self.state;
        if (state == State.Held) batch.waiting = jobId;
        if (state == State.Finalized || state >= State.Held) return;
        if (state != State.Committed) revert WrongState(jobId, _stateOf(self));
        uint16 version = self.paramsVersion;
        if (version != batch.version) (batch.version, batch.params) = (version, _params[version]);
        uint40 finalizableAt = uint40(self.moment) + batch.params.windowSecs;
        if (block.timestamp < finalizableAt) {
            batch.waiting = jobId;
            return;
        }
        if (settlement.digest() != self.digest) revert SettlementMismatch(jobId);

        address node = self.node;
        self.state = State.Finalized;
        emit JobFinalized(jobId, node, settlement.fee, settlement.refund);
        if (settlement.refund > 0) batch.refunds.add(settlement.client, settlement.refund);
        if (settlement.recipeId != batch.runRecipe || node != batch.runNode) {
            _closeRun(batch);
            (batch.runRecipe, batch.runNode) = (settlement.recipeId, node);
        }
        batch.runFee += settlement.fee;
        batch.runBonds += batch.params.bond;
        batch.runClaims++;
        _payForfeits(jobId, self, node);
    }

    function _closeRun(Batch memory batch) private {
        if (batch.runClaims == 0) return;
        Royalties.divide(
            recipeFees, batch.credits, adapters, batch.runRecipe, batch.runNode, batch.runFee, batch.runClaims
        );
        batch.bonds.add(batch.runNode, batch.runBonds);
        batch.claims.add(batch.runNode, batch.runClaims);
        (batch.runFee, batch.runBonds, batch.runClaims) = (0, 0, 0);
    }

    function _revertWaiting(uint64 jobId) private view {
        Record storage self = _jobs[jobId];
        if (self.state == State.Held) revert WrongState(jobId, State.Held);
        revert WindowOpen(_finalizableAt(self));
    }

    function _payOut(Batch memory batch) private {
        (address[] memory accounts, uint256[] memory amounts) = batch.credits.entries();
        vault.credit(accounts, amounts);
        (accounts, amounts) = batch.refunds.entries();
        for (uint256 i = 0; i < accounts.length; i++) {
            vault.release(accounts[i], amounts[i]);
        }
        (accounts, amounts) = batch.bonds.entries();
        // Both tables gain the same accounts in the same order.
        // slither-disable-next-line unused-return
        (, uint256[] memory claims) = batch.claims.entries();
        for (uint256 i = 0; i < accounts.length; i++) {
            nodes.unlockBonds(accounts[i], amounts[i], claims[i]);
        }
    }

    // Parameters

    /// @dev Stake that may leave before a window has passed would not be there to be slashed.
    function _setParams(INodeRegistry registry, Params memory newParams) private returns (uint16 version) {
        if (
            newParams.maxLiveClaims == 0 || newParams.maxLeaseSecs == 0 || newParams.maxDurationSecs == 0
                || newParams.windowSecs >= registry.unstakeDelaySecs()
        ) revert BadParams();
        version = ++paramsVersion;
        _params[version] = newParams;
        emit ParamsSet(version, newParams);
    }

    function _min(uint40 a, uint40 b) private pure returns (uint40) {
        return a < b ? a : b;
    }
}
