// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {IJobQueue} from "./IJobQueue.sol";
import {INodeRegistry} from "./INodeRegistry.sol";
import {IVault} from "./IVault.sol";

/// @title What a node must bring to light of a committed job, or lose its bond: the output, or a chunk of fingerprints.
/// @notice Anyone asks, with a bond, while the job's window is open; a spec with the PUBLISH flag asks by itself at the
/// commit. Meanwhile the job is held. What answers is checked here against the receipt's digests; then the bond is the
/// node's, for its gas, and the window goes on from where it stood. Where nothing answers in time, anyone may `resolve`:
/// the node loses the claim's bond and its fee, the client is refunded, and the question's bond returns.
/// @dev The output, and each chunk, is asked for at most once, so a job is held for a bounded time: as long as its node
/// takes to answer, and whoever asks again pays again.
interface IOutputs {
    enum Kind {
        None,
        Publication, // asked by the spec
        Output,
        Chunk
    }

    /// @notice One job's open question.
    struct Question {
        bytes32 digest; // of the output, or the fingerprints' root
        address asker; // the client, of a publication
        uint96 bond;
        address node; // operator
        uint40 askedAt;
        uint40 answerBy; // unix seconds, the last one in time
        Kind kind;
        uint32 chunk;
    }

    struct OutputTerms {
        uint32 answerSecs; // less than the registry's exit delay
        uint96 bond; // of a question
        uint96 bondPerToken; // and for each token put out, since publishing costs gas by the byte
        uint32 maxOutTokens; // of a job whose output may be demanded: calldata has a limit
    }

    /// @dev `bond` is the node's once it has answered, and returns to the asker when it has not.
    event QuestionAsked(
        uint64 indexed jobId,
        address indexed node,
        address indexed asker,
        Kind kind,
        uint32 chunk,
        uint40 answerBy,
        uint96 bond
    );
    /// @dev `received` tells whether a client's contract took the output; false when there was none to call.
    event OutputPublished(uint64 indexed jobId, bytes32 indexed digest, bytes output, bool received);
    event ChunkOpened(uint64 indexed jobId, uint32 indexed chunk, bytes data);
    /// @dev `slashed` is the claim's bond: half of it to the asker (whoever resolved, of a publication), a quarter to the
    /// client, the rest burnt.
    event Unanswered(
        uint64 indexed jobId, address indexed node, address indexed challenger, Kind kind, uint256 slashed
    );
    event OutputTermsSet(OutputTerms terms);

    error NotTheQueue(address caller);
    error NoQuestion(uint64 jobId, Kind kind);
    error AlreadyAsked(uint64 jobId, Kind kind);
    error ReceiptMismatch(uint64 jobId);
    error NoSuchChunk(uint32 chunk, uint32 count);
    error TooLongToPublish(uint32 outTokens, uint32 limit);
    error DigestMismatch(bytes32 computed);
    error BadOpening(uint32 chunk);
    error TooLate(uint40 until);
    error StillTime(uint40 answerBy);
    error NotEnoughGas(uint256 needed);
    error BadTerms();
    error NotAModule(address account);

    /// @notice Queue only: at the commit of a job with the PUBLISH flag, which is held from then on. A node that claims
    /// such a job sees to it that its output fits a transaction.
    function expect(uint64 jobId, address node, address client, bytes32 outputDigest) external;
    /// @notice Asks for a job's output. The bond comes out of the caller's Vault balance.
    /// @param receipt As `JobCommitted` carried it; `settlement` is the job's.
    function demandOutput(uint64 jobId, IJobQueue.Settlement calldata settlement, IJobQueue.Receipt calldata receipt)
        external;
    /// @notice Asks for a chunk of the fingerprints under the receipt's `fingerprintRoot`: one of each 32 output tokens.
    /// Under a root of zero, of a node that keeps no fingerprints and says so, there are none.
    function demandChunk(
        uint64 jobId,
        IJobQueue.Settlement calldata settlement,
        IJobQueue.Receipt calldata receipt,
        uint32 chunk
    ) external;
    /// @notice Anyone, in time: the output that was asked for. If the spec asked, and the client is a contract, it is
    /// called with `CALLBACK_GAS`, for which the transaction must leave enough; what it does with them stops nothing.
    function publishOutput(uint64 jobId, bytes calldata output) external;
    /// @notice Anyone, in time: the chunk that was asked for, with its Merkle proof. Its leaf is
    /// keccak256(keccak256(abi.encode(uint32 chunk, bytes data))), as OpenZeppelin's trees have it.
    function openChunk(uint64 jobId, bytes calldata data, bytes32[] calldata proof) external;
    /// @notice Anyone, after `answerBy`: the node is at fault.
    function resolve(uint64 jobId, IJobQueue.Settlement calldata settlement) external;

    /// @notice Authority only: for the questions from now on.
    function setTerms(OutputTerms calldata newTerms) external;

    function queue() external view returns (IJobQueue);
    function nodes() external view returns (INodeRegistry);
    function vault() external view returns (IVault);
    function terms() external view returns (OutputTerms memory);
    /// @notice The open question about a job; of kind None when there is none.
    function question(uint64 jobId) external view returns (Question memory);
    /// @notice Whether a job was ever asked that; an output counts however it was asked for, with a `chunk` of zero.
    function asked(uint64 jobId, Kind kind, uint32 chunk) external view returns (bool);
    /// @notice What a question about a job with so many tokens costs.
    function bondFor(uint32 outTokens) external view returns (uint96);
    /// @notice Gas that a client's contract has for an output.
    function CALLBACK_GAS() external view returns (uint256);
}
