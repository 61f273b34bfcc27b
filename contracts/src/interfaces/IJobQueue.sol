// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {IAdapterRegistry} from "./IAdapterRegistry.sol";
import {INodeRegistry} from "./INodeRegistry.sol";
import {IVault} from "./IVault.sol";

/// @title The queue lane: escrowed inference jobs, leases, receipts, settlement.
/// @notice Open → Claimed(bond, lease) → Committed(receipt) → Finalized; Claimed → Open when the lease runs out (computed
/// on read); Open → Cancelled by its client, Open → Expired after its deadline by anyone. While a question about it is
/// open a job is Held: Committed → Held → Committed again, Slashed (the node was at fault) or Annulled (nobody can say).
/// At every terminal state payments + refund = escrow. Every open item has a default outcome anyone may trigger.
/// @dev Bits of a spec's `flags`; others are refused. GUARDED (1): the recipe's access is asked again at the claim; the
/// flag is due when the recipe is guarded. PUBLISH (2): publication of the output is part of the job, and a client that
/// is a contract is called with it (see IOutputs). PRIVATE (4): input and output are sealed. AUDITABLE (8): a private
/// job's key is given to drawn verifiers; without it a private job waives numeric disputes.
interface IJobQueue {
    enum State {
        None,
        Open,
        Claimed,
        Committed,
        Finalized,
        Cancelled,
        Expired,
        Held,
        Slashed,
        Annulled
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
        uint40 finishedAt; // unix seconds, within the lease
        uint96 fee; // floor((in * inPricePerK + out * outPricePerK) / 1000)
    }

    /// @notice What a node adds to a spec; the rest of its receipt follows from the spec and the claim.
    struct Answer {
        bytes32 outputDigest;
        uint32 inTokens;
        uint32 outTokens;
        uint64 seed;
        bytes32 fingerprintRoot;
        bytes32 dataAttrRoot;
        uint16 engineProfile;
        uint8 finishReason;
        uint40 finishedAt;
    }

    /// @notice What a commit leaves to be done with the money; its hash is all that is stored of it.
    struct Settlement {
        bytes32 receiptHash; // EIP-712 digest
        address client;
        uint64 recipeId;
        uint96 fee;
        uint96 refund; // escrow - fee; the recipe's use fee is beside both
    }

    /// @dev The queue stores digests, not payloads: a call that needs the spec or the settlement is given it again as
    /// calldata. The escrow is a function of the spec (`escrowOf`).
    struct Job {
        bytes32 specHash; // EIP-712 digest; zero once committed
        bytes32 settlementHash; // keccak256(abi.encode(settlement)); zero until committed
        address node; // operator holding or having finished the job; zero while it reads as Open
        State state; // as of now: an elapsed lease reads as Open
        uint16 paramsVersion; // of the claim; zero before one
        uint40 leaseDeadline; // zero unless claimed
        uint40 finalizableAt; // end of the window, which stands still while held; zero until committed
        uint64 claimBlock; // its hash makes the seed
        uint96 forfeited; // of the bonds of earlier claimants, for whoever finishes or else the client
    }

    struct Params {
        uint96 bond; // locked from stake per live claim
        uint16 maxLiveClaims; // per node, claimed or committed: what it may owe at once
        uint32 windowSecs; // challenge window after a commit; shorter than the registry's exit delay
        uint32 maxLeaseSecs; // well below the time for which the chain knows a block's hash: see `commit`
        uint32 maxDurationSecs; // of a deadline from submission
    }

    /// @dev `document` is empty when the document travels by CID.
    event JobSubmitted(uint64 indexed jobId, address indexed client, bytes32 specHash, JobSpec spec, bytes document);
    event JobClaimed(uint64 indexed jobId, address indexed node, uint40 leaseDeadline, uint16 paramsVersion);
    /// @dev `lost` is the part of its bond that giving up cost the node: it is burnt.
    event JobReleased(uint64 indexed jobId, address indexed node, uint96 lost);
    /// @dev A lease ran out and the job was claimed again, expired or cancelled: `node` has lost it and the bond, of which
    /// a tenth is burnt.
    event LeaseLapsed(uint64 indexed jobId, address indexed node, uint96 bond);
    event JobCommitted(uint64 indexed jobId, address indexed node, bytes32 receiptHash, Receipt receipt);
    event JobFinalized(uint64 indexed jobId, address indexed node, uint96 fee, uint96 refund);
    event JobCancelled(uint64 indexed jobId, uint96 refund);
    event JobExpired(uint64 indexed jobId, uint96 refund);
    event JobHeld(uint64 indexed jobId, address indexed judge);
    event JobResumed(uint64 indexed jobId, uint40 finalizableAt);
    /// @dev The client has all of the escrow back; `bond` is what the node lost of its claim.
    event JobSlashed(uint64 indexed jobId, address indexed node, uint96 refund, uint96 bond);
    event JobAnnulled(uint64 indexed jobId, address indexed node, uint96 refund);
    /// @dev One per (payee, role) and run of neighbours in a batch that share recipe and node. Over any range of
    /// blocks Σ Paid = Σ JobFinalized.fee, leaving Role.Use aside: use fees come on top.
    event Paid(address indexed payee, IAdapterRegistry.Role indexed role, uint64 indexed recipeId, uint96 amount);
    event ParamsSet(uint16 indexed version, Params params);

    error WrongState(uint64 jobId, State state);
    error SpecMismatch(uint64 jobId, bytes32 expected);
    error NotTheClient(address caller);
    error NotTheNode(address caller);
    error DeadlinePassed(uint40 deadline);
    error BadDeadline(uint40 deadline);
    error BadLease(uint32 leaseSecs);
    error LeaseExpired(uint40 leaseDeadline);
    error InputTooLarge(uint256 length);
    error InputDigestMismatch(bytes32 computed);
    error SettlementMismatch(uint64 jobId);
    error OverLimit(uint32 inTokens, uint32 outTokens);
    error TooEarly(uint64 claimBlock);
    error ClaimForgotten(uint64 claimBlock);
    error WrongSeed(uint64 expected);
    error BadFinish(uint8 finishReason, uint40 finishedAt);
    error WindowOpen(uint40 finalizableAt);
    error WindowOver(uint40 finalizableAt);
    error BadFlags(uint32 flags);
    error GuardedRecipe(uint64 recipeId);
    error NotAJudge(address caller);
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
    /// @notice Hot key only: gives a live claim back before its lease ends; the job reopens, and nine tenths of the bond
    /// return. The tenth is what makes it dear to hold jobs up, or to claim again and again for a better seed. So it is burnt,
    /// as it is of the bond of a lease that lapses: whoever finishes might be the same node.
    function release(uint64 jobId) external;
    /// @notice Hot key only, in a later block than the claim: records the receipt that `spec`, claim and `answer` make. To
    /// send it is to sign it: another receipt for the same work, signed by the hot key, is a contradiction. The seed must be
    /// the first 8 bytes of keccak256(specHash ‖ hash of the claim's block). The chain must still know that hash: it knows
    /// those of its last 8,191 blocks (EIP-2935), or of 256 where it lacks that.
    function commit(uint64 jobId, JobSpec calldata spec, Answer calldata answer) external;
    /// @notice Anyone: pays every job whose window has passed, refunds the client and releases the bond. Jobs that have
    /// ended are skipped, so two settlers never fail each other; so are held ones and those whose window is open, unless
    /// there is nothing else in the batch, which then reverts. A settlement that differs reverts the batch. Cheapest when
    /// sorted by recipe and node.
    function finalizeBatch(uint64[] calldata jobIds, Settlement[] calldata settlements) external;
    /// @notice Anyone, once the deadline has passed without a commit: refunds the client.
    function expire(uint64 jobId, JobSpec calldata spec) external;
    /// @notice The client, while the job is open: refunds it.
    function cancel(uint64 jobId, JobSpec calldata spec) external;

    /// @notice Outputs and Disputes only: stops the clock of a committed job within its window.
    /// @return node Whose commit it is.
    function hold(uint64 jobId) external returns (address node, uint40 committedAt);
    /// @notice Outputs and Disputes only: the job is committed again, and its window longer by the time it was held.
    function resume(uint64 jobId, uint40 heldSecs) external;
    /// @notice Outputs and Disputes only: ends a held job for its node's fault. The client is refunded, with the bonds
    /// forfeited over it; the claim's bond goes to the registry's forfeits.
    /// @return forfeited What the caller has to divide: the bond, less what slashings are owed of it.
    function condemn(uint64 jobId, Settlement calldata settlement) external returns (uint96 forfeited);
    /// @notice Disputes only: ends a held job without a verdict. As `condemn`, but the bond is free again.
    function annul(uint64 jobId, Settlement calldata settlement) external;

    /// @notice Authority only: a new version for the claims from now on; claims already made keep theirs.
    function setParams(Params calldata newParams) external returns (uint16 version);
    /// @notice Authority only: stops submit and claim, and nothing else.
    function pause() external;
    /// @notice Authority only.
    function unpause() external;

    function vault() external view returns (IVault);
    function nodes() external view returns (INodeRegistry);
    function adapters() external view returns (IAdapterRegistry);
    function job(uint64 jobId) external view returns (Job memory);
    function jobCount() external view returns (uint64);
    /// @notice Fees ever finalized under a recipe; the basis of its legs' rounding.
    function recipeFees(uint64 recipeId) external view returns (uint256);
    function params(uint16 version) external view returns (Params memory);
    function paramsVersion() external view returns (uint16);
    /// @notice EIP-712 digest of the spec in this contract's domain: the job's identity on and off chain.
    function hashSpec(JobSpec calldata spec) external view returns (bytes32);
    function hashReceipt(Receipt memory receipt) external view returns (bytes32);
    /// @notice What `submit` would take of the client's balance: the escrow and the recipe's use fee; and the flags with
    /// which the recipe wants the spec. Reverts when the client may not use the recipe now.
    function quote(JobSpec calldata spec) external view returns (uint96 escrow, uint96 useFee, uint32 flags);
    /// @notice ceil((maxIn * inPricePerK + maxOut * outPricePerK) / 1000)
    function escrowOf(JobSpec calldata spec) external pure returns (uint96);
    /// @notice floor((inTokens * inPricePerK + outTokens * outPricePerK) / 1000)
    function feeOf(JobSpec calldata spec, uint32 inTokens, uint32 outTokens) external pure returns (uint96);
}
