// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {IJobQueue} from "./IJobQueue.sol";
import {INodeRegistry} from "./INodeRegistry.sol";
import {ISessions} from "./ISessions.sol";
import {IVault} from "./IVault.sol";

/// @title What a node can be shown, or be judged, to have done wrong, and what that costs it.
/// @notice Objective fraud is judged here from what the node itself signed; nobody's opinion is asked. Whether an answer
/// was computed as the recipe says is numeric: five staked verifiers, drawn by a later block's hash, commit and reveal
/// their votes. The job is held meanwhile, and every dispute ends by a time that is known when it begins.
interface IDisputes {
    /// @notice Whose domain a receipt was signed in.
    enum Lane {
        Queue,
        Sessions
    }

    enum Verdict {
        None,
        Pass,
        Fail,
        Ambiguous
    }

    struct SignedReceipt {
        IJobQueue.Receipt receipt;
        bytes signature;
    }

    struct DisputeTerms {
        uint96 challengeBond;
        uint96 verifierStake;
        uint96 missPenalty; // of a drawn verifier that does not reveal; <= verifierStake
        uint32 drawSecs; // these three follow each other from the dispute's beginning
        uint32 commitSecs;
        uint32 revealSecs;
        uint32 roundSecs; // between two rounds of audits; well below the window, or some jobs are in none
        uint16 auditBps; // of the committed jobs, in each round
    }

    struct Dispute {
        address challenger; // of an audit: who called it
        uint96 bond; // zero for an audit
        address node; // operator
        uint96 missPenalty;
        uint64 drawBlock; // its hash draws the panel
        uint96 pay; // of an audit, out of the fund
        uint40 openedAt;
        uint40 drawBy; // unix seconds; votes are committed from the draw until commitBy, then revealed until revealBy
        uint40 commitBy;
        uint40 revealBy;
        uint8 passes;
        uint8 fails;
        uint8 revealed;
        Verdict verdict;
        bool resolved;
        address[] panel; // five once drawn
    }

    struct Verifier {
        uint96 stake;
        uint40 enlistedAt;
        uint40 leavesAt; // zero until it retires
        uint32 duties; // disputes it sits on
    }

    /// @notice A round of audits. Jobs committed before it began and still in their window may be drawn by its seed.
    /// @dev A job is in all rounds of its window, in which it stands still while held, so no question and no later round
    /// moves it out of one that has drawn it.
    struct Round {
        uint40 begunAt;
        uint64 drawBlock;
        bytes32 seed; // zero until `seal`
    }

    /// @dev `slashed` is what the node lost: half of it to the challenger, a quarter to the client, the rest burnt.
    event EquivocationProven(
        address indexed node, bytes32 indexed workId, address indexed challenger, address client, uint256 slashed
    );
    event FalseReceiptProven(
        address indexed node, bytes32 indexed workId, address indexed challenger, address client, uint256 slashed
    );
    event DisputeOpened(
        uint64 indexed jobId, address indexed node, address indexed challenger, uint96 bond, uint64 drawBlock
    );
    event DrawMoved(uint64 indexed jobId, uint64 drawBlock);
    event PanelDrawn(uint64 indexed jobId, address[] panel, uint40 commitBy, uint40 revealBy);
    event VoteCommitted(uint64 indexed jobId, address indexed verifier);
    event VoteRevealed(uint64 indexed jobId, address indexed verifier, Verdict verdict);
    /// @dev `verdict` is None where fewer than three revealed: the job goes on as if nobody had asked.
    event DisputeResolved(uint64 indexed jobId, Verdict verdict, uint256 slashed);
    event VerifierEnlisted(address indexed verifier, uint96 stake);
    event VerifierRetired(address indexed verifier, uint40 leavesAt);
    event VerifierLeft(address indexed verifier, uint96 stake);
    event VerifierMissed(uint64 indexed jobId, address indexed verifier, uint96 penalty);
    event RoundBegun(uint64 indexed round, uint64 drawBlock);
    event RoundSealed(uint64 indexed round, bytes32 seed);
    event AuditsFunded(address indexed by, uint256 amount);
    event DisputeTermsSet(DisputeTerms terms);

    error NotEquivocation();
    error NotFalse();
    error SpecMismatch(bytes32 expected);
    error NotLiable(address hotKey);
    error BadSignature();
    error AlreadyProven(address node, bytes32 workId);
    error AlreadyDisputed(uint64 jobId);
    error NoDispute(uint64 jobId);
    error ReceiptMismatch(uint64 jobId);
    error NumericAuditWaived(uint64 jobId);
    error TooFewVerifiers(uint256 count);
    error TooManyVerifiers(uint256 limit);
    error AlreadyVerifier(address account);
    error NotAVerifier(address account);
    error StillOnDuty(address verifier);
    error NotYet(uint256 from);
    error TooLate(uint40 until);
    error AlreadyDrawn(uint64 jobId);
    error NotOnPanel(address account);
    error AlreadyVoted(address account);
    error VoteMismatch();
    error NotSelected(uint64 jobId, uint64 round);
    error BadTerms();
    error NotAModule(address account);

    /// @notice Anyone: two different receipts of one node for one work, signed by a hot key that the node answers for.
    /// Half of its stake is slashed, stake in withdrawal included, and what live claims hold of it as they end; once for
    /// each work.
    /// @param spec Of the first receipt: it names the client.
    function proveEquivocation(
        Lane lane,
        IJobQueue.JobSpec calldata spec,
        SignedReceipt calldata first,
        SignedReceipt calldata second,
        address hotKey
    ) external;
    /// @notice As `proveEquivocation`, where one of the two receipts is the one committed to the queue, which the hot key
    /// sent itself.
    function proveContradiction(
        uint64 jobId,
        IJobQueue.JobSpec calldata spec,
        IJobQueue.Settlement calldata settlement,
        IJobQueue.Receipt calldata committed,
        SignedReceipt calldata signed,
        address hotKey
    ) external;
    /// @notice Anyone: one signed receipt that its own spec gives the lie: counts over the limits, another recipe or
    /// input, a fee that does not follow, and on the signed lane another work or seed than the order's. Slashes as
    /// equivocation does.
    function proveFalseReceipt(
        Lane lane,
        IJobQueue.JobSpec calldata spec,
        SignedReceipt calldata signed,
        address hotKey
    ) external;

    /// @notice Anyone, with a bond, in the job's window, once a job: puts the answer before five verifiers.
    function challenge(
        uint64 jobId,
        IJobQueue.JobSpec calldata spec,
        IJobQueue.Settlement calldata settlement,
        IJobQueue.Receipt calldata receipt
    ) external;
    /// @notice Anyone, without a bond: as `challenge`, for a job that a sealed round selects and that was committed before
    /// it began. Its verifiers have no loser to pay them as a rule, and an honest node is not to pay for being drawn:
    /// the audit fund pays them the job's fee, whatever their verdict, as far as it reaches.
    function audit(
        uint64 jobId,
        uint64 number,
        IJobQueue.JobSpec calldata spec,
        IJobQueue.Settlement calldata settlement,
        IJobQueue.Receipt calldata receipt
    ) external;
    /// @notice Anyone, in practice the treasury, whose twentieth of all fees covers one job in twenty: adds to what audits
    /// pay, out of the caller's Vault balance, and for good.
    function fundAudits(uint256 amount) external;
    /// @notice Anyone, `roundSecs` after the last one began: a new round of audits, drawn by the block after the next.
    function beginRound() external returns (uint64 round);
    /// @notice Anyone, while the chain knows that block's hash: the last round's seed.
    function seal() external;
    /// @notice Anyone, while the chain knows the hash of `drawBlock`: the panel, by lot among those enlisted before the
    /// dispute and not leaving before its end; neither the node nor the challenger is drawn. When the hash is forgotten, a
    /// call moves `drawBlock` instead.
    function draw(uint64 jobId) external;
    /// @notice Of the panel, until `commitBy`: keccak256(abi.encode(chainId, this, jobId, verifier, verdict, salt)).
    function commitVote(uint64 jobId, bytes32 commitment) external;
    /// @notice Of the panel, after `commitBy` and until `revealBy`.
    function revealVote(uint64 jobId, Verdict verdict, bytes32 salt) external;
    /// @notice Anyone, after `revealBy`. Four of five FAIL: the node loses the claim's bond and half its stake, the client
    /// is refunded. Three PASS: the bond goes half to the node and half to the verifiers, and the job goes on. Fewer than
    /// three revealed, or no panel: it goes on. Anything else is AMBIGUOUS: the client is refunded, nobody slashed. The
    /// challenger has its bond back unless it was PASS. Who did not reveal pays the penalty to those who did.
    function resolve(uint64 jobId, IJobQueue.Settlement calldata settlement) external;

    /// @notice Locks `verifierStake` of the caller's Vault balance; at most 128 verifiers.
    function enlist() external;
    /// @notice The caller is drawn for nothing that ends after an exit delay from now.
    function retire() external;
    /// @notice Anyone, after `leavesAt`, off duty: the stake returns to the account's Vault balance. Who has retired keeps
    /// nobody's place.
    function withdraw(address account) external;
    /// @notice Authority only: for disputes from now on.
    function setTerms(DisputeTerms calldata newTerms) external;

    function nodes() external view returns (INodeRegistry);
    function queue() external view returns (IJobQueue);
    function sessions() external view returns (ISessions);
    function vault() external view returns (IVault);
    function terms() external view returns (DisputeTerms memory);
    /// @notice Whether a node was slashed over a work.
    function proven(address node, bytes32 workId) external view returns (bool);
    function dispute(uint64 jobId) external view returns (Dispute memory);
    function verifier(address account) external view returns (Verifier memory);
    /// @notice All of them, at most 128.
    function verifiers() external view returns (address[] memory);
    /// @notice What audits to come can be paid from.
    function auditFund() external view returns (uint256);
    function roundCount() external view returns (uint64);
    function round(uint64 number) external view returns (Round memory);
    /// @notice Whether a round is sealed and selects a job.
    function isSelected(uint64 jobId, uint64 number) external view returns (bool);
}
