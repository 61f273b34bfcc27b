// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {IAdapterRegistry} from "./IAdapterRegistry.sol";

/// @title The queue lane: escrowed inference jobs, leases, receipts, settlement.
/// @notice Open → Claimed(bond, lease) → Committed(receipt) → Finalized; Claimed → Open when the lease runs out (computed
/// on read); Open → Cancelled by its client, Open → Expired after its deadline by anyone. At every terminal state
/// payments + refund = escrow. Every open item has a default outcome anyone may trigger.
interface IJobQueue {
    enum State {
        None,
        Open,
        Claimed,
        Committed,
        Finalized,
        Cancelled,
        Expired
    }

    struct JobSpec {
        address client;
        uint64 recipeId;
        bytes32 inputDigest; // sha2-256 of the input document
        uint32 maxInTokens;
        uint32 maxOutTokens;
        uint96 inPricePerK; // token wei per 1,000 prompt tokens
        uint96 outPricePerK;
        uint40 deadline; // unix seconds; nothing is claimed or committed after it
        uint32 leaseSecs;
        uint32 flags;
        uint256 nonce; // the client's choice; makes specHash unique
    }

    struct Receipt {
        bytes32 workId; // keccak256(abi.encode(queue, jobId))
        address node; // operator
        uint64 recipeId;
        bytes32 specHash;
        bytes32 inputDigest;
        bytes32 outputDigest;
        uint32 inTokens;
        uint32 outTokens;
        uint64 seed;
        bytes32 fingerprintRoot;
        bytes32 dataAttrRoot;
        uint16 engineProfile;
        uint8 finishReason; // 0 stop, 1 length
        uint40 finishedAt;
        uint96 fee; // floor((in * inPricePerK + out * outPricePerK) / 1000)
    }

    struct Job {
        bytes32 specHash;
        bytes32 receiptHash; // EIP-712 digest; zero until committed
        address node; // operator holding or having finished the job
        State state; // as of now: an elapsed lease reads as Open
        uint16 paramsVersion;
        uint40 leaseDeadline;
        uint40 finalizableAt;
        uint64 claimBlock;
        uint96 escrow;
        uint96 forfeited; // bonds of earlier claimants, for whoever finishes
    }

    struct Params {
        uint96 bond; // locked from stake per live claim
        uint16 maxLiveClaims; // per node
        uint32 windowSecs; // challenge window after a commit
        uint32 maxLeaseSecs;
        uint32 maxDurationSecs; // of a deadline from submission
    }

    /// @dev `input` is empty when the document travels by CID.
    event JobSubmitted(uint64 indexed jobId, address indexed client, bytes32 specHash, JobSpec spec, bytes input);
    event JobClaimed(uint64 indexed jobId, address indexed node, uint40 leaseDeadline, uint16 paramsVersion);
    event JobReleased(uint64 indexed jobId, address indexed node);
    event JobCommitted(uint64 indexed jobId, address indexed node, bytes32 receiptHash, Receipt receipt);
    event JobFinalized(uint64 indexed jobId, address indexed node, uint96 fee, uint96 refund);
    event JobCancelled(uint64 indexed jobId, uint96 refund);
    event JobExpired(uint64 indexed jobId, uint96 refund);
    /// @dev One per (payee, role) and batch. Over any range of blocks Σ Paid = Σ JobFinalized.fee.
    event Paid(address indexed payee, IAdapterRegistry.Role indexed role, uint64 indexed recipeId, uint96 amount);
    event ParamsSet(uint16 indexed version, Params params);

    error WrongState(uint64 jobId, State state);
    error SpecMismatch(uint64 jobId, bytes32 expected);
    error NotTheClient(address caller);
    error NotAHotKey(address caller);
    error NotTheNode(address caller);
    error DeadlinePassed(uint40 deadline);
    error BadDeadline(uint40 deadline);
    error BadLease(uint32 leaseSecs);
    error LeaseExpired(uint40 leaseDeadline);
    error TooManyLiveClaims(address node, uint16 limit);
    error InputTooLarge(uint256 length);
    error InputDigestMismatch(bytes32 computed);
    error ReceiptMismatch(uint64 jobId);
    error OverLimit(uint32 inTokens, uint32 outTokens);
    error WrongFee(uint96 expected);
    error BadSignature();
    error WindowOpen(uint40 finalizableAt);
    error NotExpired(uint64 jobId);
    error LengthMismatch();

    /// @notice Escrows ceil((maxIn * inPricePerK + maxOut * outPricePerK) / 1000) from the caller's Vault balance.
    /// @param input The input document, at most 4 KiB, checked against `inputDigest`; or empty.
    function submit(JobSpec calldata spec, bytes calldata input) external returns (uint64 jobId);
    function submitMany(JobSpec[] calldata specs, bytes[] calldata inputs) external returns (uint64 firstJobId);
    /// @notice Hot key only. Reverts if a reorg put another spec under this id.
    function claim(uint64 jobId, bytes32 specHash) external;
    /// @notice Hot key only: gives a live claim back before its lease ends; the bond returns, the job reopens.
    function release(uint64 jobId) external;
    /// @notice Hot key only: records the receipt, signed by the hot key (EIP-712, low s; ERC-1271 if it is a contract).
    function commit(uint64 jobId, JobSpec calldata spec, Receipt calldata receipt, bytes calldata signature) external;
    /// @notice Anyone: pays every job whose window has passed. Jobs that are already final are skipped, so two
    /// settlers never fail each other; a job that is not yet final, or whose preimages differ, reverts the batch.
    function finalizeBatch(uint64[] calldata jobIds, JobSpec[] calldata specs, Receipt[] calldata receipts) external;
    /// @notice Anyone, once the deadline has passed without a commit: refunds the client.
    function expire(uint64 jobId, JobSpec calldata spec) external;
    /// @notice The client, while the job is open: refunds it.
    function cancel(uint64 jobId, JobSpec calldata spec) external;

    function job(uint64 jobId) external view returns (Job memory);
    function jobCount() external view returns (uint64);
    function liveClaims(address node) external view returns (uint16);
    function params(uint16 version) external view returns (Params memory);
    function paramsVersion() external view returns (uint16);
    /// @notice EIP-712 digest of the spec in this contract's domain: the job's identity on and off chain.
    function hashSpec(JobSpec calldata spec) external view returns (bytes32);
    function hashReceipt(Receipt calldata receipt) external view returns (bytes32);
}
