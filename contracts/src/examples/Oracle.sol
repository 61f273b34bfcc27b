// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";

import {IJobQueue} from "../interfaces/IJobQueue.sol";
import {IOutputReceiver} from "../interfaces/IOutputReceiver.sol";
import {IOutputs} from "../interfaces/IOutputs.sol";
import {IVault} from "../interfaces/IVault.sol";

/// @title An example of a contract that asks a model and reads the answer.
/// @notice Whoever asks pays. The answer is what the node published; `isFinal` says whether its challenge window is over.
contract Oracle is IOutputReceiver {
    using SafeERC20 for IERC20;

    uint32 private constant PUBLISH = 2; // see IJobQueue
    uint32 private constant MAX_IN_TOKENS = 1_024;
    uint32 private constant MAX_OUT_TOKENS = 256;
    uint40 private constant PATIENCE_SECS = 1 hours;
    uint32 private constant LEASE_SECS = 10 minutes;

    IJobQueue public immutable queue;
    IOutputs public immutable outputs;
    uint64 public immutable recipeId;

    /// @notice The digest of a job's published output; the document itself is in the publication's event.
    mapping(uint64 jobId => bytes32 digest) public answerOf;
    uint256 private _nonce;

    event Asked(uint64 indexed jobId, address indexed by);
    event Answered(uint64 indexed jobId, bytes32 digest);

    error OnlyOutputs(address caller);

    constructor(IJobQueue queue_, IOutputs outputs_, uint64 recipeId_) {
        (queue, outputs, recipeId) = (queue_, outputs_, recipeId_);
    }

    /// @notice Submits `document`, an input document of at most 4 KiB, at a bid per 1,000 tokens. What earlier questions
    /// had back pays for it; the rest of what it may cost is taken from the caller's tokens, which must be approved for
    /// this contract.
    function ask(bytes calldata document, uint96 inPricePerK, uint96 outPricePerK) external returns (uint64 jobId) {
        IJobQueue.JobSpec memory spec = specFor(document, inPricePerK, outPricePerK);
        (uint96 escrow, uint96 useFee, uint32 flags) = queue.quote(spec);
        spec.flags |= flags;
        _nonce++;
        _fund(uint256(escrow) + useFee);
        jobId = queue.submit(spec, document);
        emit Asked(jobId, msg.sender);
    }

    /// @inheritdoc IOutputReceiver
    function onOutput(uint64 jobId, bytes calldata output) external {
        if (msg.sender != address(outputs)) revert OnlyOutputs(msg.sender);
        bytes32 digest = sha256(output);
        answerOf[jobId] = digest;
        emit Answered(jobId, digest);
    }

    /// @notice Whether a job's answer can no longer be disputed.
    function isFinal(uint64 jobId) external view returns (bool) {
        return queue.job(jobId).state == IJobQueue.State.Finalized;
    }

    /// @notice The spec that `ask` submits next, but for the recipe's flags.
    function specFor(bytes calldata document, uint96 inPricePerK, uint96 outPricePerK)
        public
        view
        returns (IJobQueue.JobSpec memory)
    {
        return IJobQueue.JobSpec({
            client: address(this),
            recipeId: recipeId,
            inputDigest: sha256(document),
            maxInTokens: MAX_IN_TOKENS,
            maxOutTokens: MAX_OUT_TOKENS,
            inPricePerK: inPricePerK,
            outPricePerK: outPricePerK,
            deadline: uint40(block.timestamp) + PATIENCE_SECS,
            leaseSecs: LEASE_SECS,
            flags: PUBLISH,
            nonce: _nonce
        });
    }

    function _fund(uint256 amount) private {
        IVault vault = queue.vault();
        uint256 held = vault.balanceOf(address(this));
        if (held >= amount) return;
        IERC20 token = IERC20(vault.token());
        token.safeTransferFrom(msg.sender, address(this), amount - held);
        token.forceApprove(address(vault), amount - held);
        vault.deposit(address(this), amount - held);
    }
}
