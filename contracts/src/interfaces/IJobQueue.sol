// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {IAdapterRegistry} from "./IAdapterRegistry.sol";
import {INodeRegistry} from "./INodeRegistry.sol";
import {IVault} from "./IVault.sol";

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

    /// @dev The queue stores digests, not payloads: a call that needs the spec or the receipt is given it again as
    /// calldata. The escrow is a function of the spec (`escrowOf`), and the receipt's digest takes the place of the
    /// spec's, which the receipt names.
    struct Job {
        bytes32 specHash; // EIP-712 digest; zero once committed
        bytes32 receiptHash; // EIP-712 digest; zero until committed
        address node; // operator holding or having finished the job; zero while it reads as Open
        State state; // as of now: an elapsed lease reads as Open
        uint16 paramsVersion; // of the claim; zero before one
        uint40 leaseDeadline; // zero unless claimed
        uint40 finalizableAt; // zero unless committed or final
        uint64 claimBlock;
        uint96 forfeited; // bonds of earlier claimants, for whoever finishes or else the client
    }

    struct Params {
        uint96 bond; // locked from stake per live claim
        uint16 maxLiveClaims; // per node
        uint32 windowSecs; // challenge window after a commit
        uint32 maxLeaseSecs;
        uint32 maxDurationSecs; // of a deadline from submission
    }

    /// @dev `document` is empty when the document travels by CID.
    event JobSubmitted(uint64 indexed jobId, address indexed client, bytes32 specHash, JobSpec spec, bytes document);
    event JobClaimed(uint64 indexed jobId, address indexed node, uint40 leaseDeadline, uint16 paramsVersion);
    event JobReleased(uint64 indexed jobId, address indexed node);
    /// @dev A lease ran out and the job was claimed again, expired or cancelled: `node` has lost it and the bond.
    event LeaseLapsed(uint64 indexed jobId, address indexed node, uint96 bond);
    event JobCommitted(uint64 indexed jobId, address indexed node, bytes32 receiptHash, Receipt receipt);
    event JobFinalized(uint64 indexed jobId, address indexed node, uint96 fee, uint96 refund);
    event JobCancelled(uint64 indexed jobId, uint96 refund);
    event JobExpired(uint64 indexed jobId, uint96 refund);
    /// @dev One per (payee, role) and run of neighbours in a batch that share recipe and node. Over any range of
    /// blocks Σ Paid = Σ JobFinalized.fee.
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
    error BadParams();
    error NotAModule(address account);

    /// @notice Escrows ceil((maxIn * inPricePerK + maxOut * outPricePerK) / 1000) from the caller's Vault balance.
    /// @param spec Its `client` must be the caller.
    /// @param document The input document, at most 4 KiB, checked against `inputDigest`; or empty.
    function submit(JobSpec calldata spec, bytes calldata document) external returns (uint64 jobId);
    /// @notice As `submit` for each; the ids are consecutive.
    function submitMany(JobSpec[] calldata specs, bytes[] calldata documents) external returns (uint64 firstJobId);
    /// @notice Hot key only: locks the bond and starts the lease, which ends with the deadline at the latest.
    /// Reverts if a reorg put another spec under this id.
    function claim(uint64 jobId, JobSpec calldata spec) external;
    /// @notice Hot key only: gives a live claim back before its lease ends; the bond returns, the job reopens.
    function release(uint64 jobId) external;
    /// @notice Hot key only: records the receipt, signed by the hot key (EIP-712, low s; ERC-1271 if it is a contract).
    function commit(uint64 jobId, JobSpec calldata spec, Receipt calldata receipt, bytes calldata signature) external;
    /// @notice Anyone: pays every job whose window has passed, refunds the client and releases the bond. Jobs that are already final are skipped, so two
    /// settlers never fail each other; a job that cannot be final yet, or whose preimages differ, reverts the batch.
    /// Cheapest when sorted by recipe and node.
    function finalizeBatch(uint64[] calldata jobIds, JobSpec[] calldata specs, Receipt[] calldata receipts) external;
    /// @notice Anyone, once the deadline has passed without a commit: refunds the client.
    function expire(uint64 jobId, JobSpec calldata spec) external;
    /// @notice The client, while the job is open: refunds it.
    function cancel(uint64 jobId, JobSpec calldata spec) external;

    /// @notice Owner only: a new version for the claims from now on; claims already made keep theirs.
    function setParams(Params calldata newParams) external returns (uint16 version);
    /// @notice Owner only: stops submit and claim, and nothing else.
    function pause() external;
    function unpause() external;

    function vault() external view returns (IVault);
    function nodes() external view returns (INodeRegistry);
    function adapters() external view returns (IAdapterRegistry);
    function job(uint64 jobId) external view returns (Job memory);
    function jobCount() external view returns (uint64);
    /// @notice Claims of `node` that it has neither committed nor released, and that nobody has taken over yet.
    function liveClaims(address node) external view returns (uint64);
    /// @notice Fees ever finalized under a recipe; the basis of its legs' rounding.
    function recipeFees(uint64 recipeId) external view returns (uint256);
    function params(uint16 version) external view returns (Params memory);
    function paramsVersion() external view returns (uint16);
    /// @notice EIP-712 digest of the spec in this contract's domain: the job's identity on and off chain.
    function hashSpec(JobSpec calldata spec) external view returns (bytes32);
    function hashReceipt(Receipt calldata receipt) external view returns (bytes32);
    /// @notice ceil((maxIn * inPricePerK + maxOut * outPricePerK) / 1000)
    function escrowOf(JobSpec calldata spec) external pure returns (uint96);
    /// @notice floor((inTokens * inPricePerK + outTokens * outPricePerK) / 1000)
    function feeOf(JobSpec calldata spec, uint32 inTokens, uint32 outTokens) external pure returns (uint96);
}
