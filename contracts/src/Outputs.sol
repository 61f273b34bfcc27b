// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";

import {IJobQueue} from "./interfaces/IJobQueue.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {IOutputReceiver} from "./interfaces/IOutputReceiver.sol";
import {IOutputs} from "./interfaces/IOutputs.sol";
import {IVault} from "./interfaces/IVault.sol";
import {Spoils} from "./libraries/Spoils.sol";

/// @title Implementation of IOutputs.
contract Outputs is IOutputs, AccessManaged {
    using SafeCast for uint256;

    /// @inheritdoc IOutputs
    uint256 public constant CALLBACK_GAS = 200_000;
    uint256 private constant TOKENS_PER_CHUNK = 32;
    uint256 private constant MAX_PROOF = 32;

    /// @inheritdoc IOutputs
    IJobQueue public immutable queue;
    /// @inheritdoc IOutputs
    INodeRegistry public immutable nodes;
    /// @inheritdoc IOutputs
    IVault public immutable vault;

    OutputTerms private _terms;
    mapping(uint64 jobId => Question) private _questions;
    mapping(uint64 jobId => mapping(Kind => mapping(uint32 chunk => bool))) private _asked;

    constructor(INodeRegistry nodes_, IJobQueue queue_, address authority_, OutputTerms memory terms_)
        AccessManaged(authority_)
    {
        (nodes, queue, vault) = (nodes_, queue_, nodes_.vault());
        bool wired = nodes_.outputs() == address(this) && nodes_.queue() == address(queue_);
        if (!wired || !vault.isModule(address(this))) revert NotAModule(address(this));
        _setTerms(terms_);
    }

    /// @inheritdoc IOutputs
    function expect(uint64 jobId, address node, address client, bytes32 outputDigest) external {
        if (msg.sender != address(queue)) revert NotTheQueue(msg.sender);
        _record(jobId, Question(outputDigest, client, 0, node, 0, 0, Kind.Publication, 0));
    }

    /// @inheritdoc IOutputs
    function demandOutput(uint64 jobId, IJobQueue.Settlement calldata settlement, IJobQueue.Receipt calldata receipt)
        external
    {
        if (receipt.outTokens > _terms.maxOutTokens) {
            revert TooLongToPublish(receipt.outTokens, _terms.maxOutTokens);
        }
        _ask(jobId, settlement, receipt, Kind.Output, receipt.outputDigest, 0);
    }

    /// @inheritdoc IOutputs
    function demandChunk(
        uint64 jobId,
        IJobQueue.Settlement calldata settlement,
        IJobQueue.Receipt calldata receipt,
        uint32 chunk
    ) external {
        uint256 count = receipt.fingerprintRoot == 0 ? 0 : (receipt.outTokens + TOKENS_PER_CHUNK - 1) / TOKENS_PER_CHUNK;
        if (chunk >= count) revert NoSuchChunk(chunk, count.toUint32());
        _ask(jobId, settlement, receipt, Kind.Chunk, receipt.fingerprintRoot, chunk);
    }

    /// @inheritdoc IOutputs
    function publishOutput(uint64 jobId, bytes calldata output) external {
        Question memory asked_ = _questions[jobId];
        if (asked_.kind != Kind.Publication && asked_.kind != Kind.Output) revert NoQuestion(jobId, Kind.Output);
        bytes32 computed = sha256(output);
        if (computed != asked_.digest) revert DigestMismatch(computed);
        _settleAnswered(jobId, asked_);
        // slither-disable-start incorrect-equality
        // An enum: it is one value or another.
        bool received = asked_.kind == Kind.Publication && asked_.asker.code.length > 0
            && _deliver(asked_.asker, abi.encodeCall(IOutputReceiver.onOutput, (jobId, output)));
        // slither-disable-end incorrect-equality
        emit OutputPublished(jobId, computed, output, received);
    }

    /// @inheritdoc IOutputs
    function openChunk(uint64 jobId, bytes calldata data, bytes32[] calldata proof) external {
        Question memory asked_ = _questions[jobId];
        if (asked_.kind != Kind.Chunk) revert NoQuestion(jobId, Kind.Chunk);
        bytes32 leaf = keccak256(bytes.concat(keccak256(abi.encode(asked_.chunk, data))));
        if (proof.length > MAX_PROOF || !MerkleProof.verifyCalldata(proof, asked_.digest, leaf)) {
            revert BadOpening(asked_.chunk);
        }
        _settleAnswered(jobId, asked_);
        emit ChunkOpened(jobId, asked_.chunk, data);
    }

    /// @inheritdoc IOutputs
    function resolve(uint64 jobId, IJobQueue.Settlement calldata settlement) external {
        Question memory asked_ = _questions[jobId];
        // An enum: it is one value or another.
        // slither-disable-next-line incorrect-equality
        if (asked_.kind == Kind.None) revert NoQuestion(jobId, Kind.None);
        if (block.timestamp <= asked_.answerBy) revert StillTime(asked_.answerBy);
        delete _questions[jobId];
        // slither-disable-next-line incorrect-equality
        address challenger = asked_.kind == Kind.Publication ? msg.sender : asked_.asker;
        uint256 slashed = queue.condemn(jobId, settlement);
        emit Unanswered(jobId, asked_.node, challenger, asked_.kind, slashed);
        if (asked_.bond > 0) vault.release(asked_.asker, asked_.bond);
        Spoils.divide(nodes, slashed, challenger, settlement.client, new address[](0));
    }

    /// @inheritdoc IOutputs
    function setTerms(OutputTerms calldata newTerms) external restricted {
        _setTerms(newTerms);
    }

    /// @inheritdoc IOutputs
    function terms() external view returns (OutputTerms memory) {
        return _terms;
    }

    /// @inheritdoc IOutputs
    function question(uint64 jobId) external view returns (Question memory) {
        return _questions[jobId];
    }

    /// @inheritdoc IOutputs
    function asked(uint64 jobId, Kind kind, uint32 chunk) external view returns (bool) {
        return _asked[jobId][kind == Kind.Publication ? Kind.Output : kind][chunk];
    }

    /// @inheritdoc IOutputs
    function bondFor(uint32 outTokens) public view returns (uint96) {
        return (uint256(_terms.bond) + uint256(_terms.bondPerToken) * outTokens).toUint96();
    }

    function _ask(
        uint64 jobId,
        IJobQueue.Settlement calldata settlement,
        IJobQueue.Receipt calldata receipt,
        Kind kind,
        bytes32 digest,
        uint32 chunk
    ) private {
        bool ofTheJob = keccak256(abi.encode(settlement)) == queue.job(jobId).settlementHash
            && queue.hashReceipt(receipt) == settlement.receiptHash;
        if (!ofTheJob) revert ReceiptMismatch(jobId);
        uint96 bond = bondFor(receipt.outTokens);
        _record(jobId, Question(digest, msg.sender, bond, receipt.node, 0, 0, kind, chunk));
        // The receipt, which the settlement binds, has named the node.
        // slither-disable-next-line unused-return
        queue.hold(jobId);
        vault.lock(msg.sender, bond);
    }

    function _record(uint64 jobId, Question memory asked_) private {
        Kind kind = asked_.kind == Kind.Publication ? Kind.Output : asked_.kind;
        if (_asked[jobId][kind][asked_.chunk]) revert AlreadyAsked(jobId, kind);
        _asked[jobId][kind][asked_.chunk] = true;
        asked_.askedAt = uint40(block.timestamp);
        asked_.answerBy = asked_.askedAt + _terms.answerSecs;
        _questions[jobId] = asked_;
        emit QuestionAsked(jobId, asked_.node, asked_.asker, asked_.kind, asked_.chunk, asked_.answerBy, asked_.bond);
    }

    /// @dev The bond is the node's; the job goes on.
    function _settleAnswered(uint64 jobId, Question memory asked_) private {
        if (block.timestamp > asked_.answerBy) revert TooLate(asked_.answerBy);
        delete _questions[jobId];
        queue.resume(jobId, uint40(block.timestamp) - asked_.askedAt);
        // A bond is what this contract set it to: nobody can nudge it.
        // slither-disable-next-line incorrect-equality
        if (asked_.bond == 0) return;
        address[] memory accounts = new address[](1);
        uint256[] memory amounts = new uint256[](1);
        (accounts[0], amounts[0]) = (asked_.node, asked_.bond);
        vault.credit(accounts, amounts);
    }

    /// @dev No more than CALLBACK_GAS goes in, and nothing at all comes out but whether it went well: neither a revert
    /// nor an endless answer stops the caller. A caller that leaves the callback too little is refused: the call forwards
    /// at most 63 of 64 parts of what is left.
    function _deliver(address client, bytes memory message) private returns (bool received) {
        uint256 needed = CALLBACK_GAS * 64 / 63 + 10_000;
        if (gasleft() < needed) revert NotEnoughGas(needed);
        uint256 callbackGas = CALLBACK_GAS;
        assembly ("memory-safe") {
            received := call(callbackGas, client, 0, add(message, 0x20), mload(message), 0, 0)
        }
    }

    /// @dev A question holds money: it ends when an exit would.
    function _setTerms(OutputTerms memory newTerms) private {
        if (newTerms.answerSecs == 0 || newTerms.answerSecs >= nodes.unstakeDelaySecs()) revert BadTerms();
        _terms = newTerms;
        emit OutputTermsSet(newTerms);
    }
}
