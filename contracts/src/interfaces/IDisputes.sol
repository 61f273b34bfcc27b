// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {IJobQueue} from "./IJobQueue.sol";
import {INodeRegistry} from "./INodeRegistry.sol";
import {ISessions} from "./ISessions.sol";

/// @title What a node can be shown to have done wrong, and what that costs it.
/// @notice Objective fraud is judged here from what the node itself signed; nobody's opinion is asked.
interface IDisputes {
    /// @notice Whose domain a receipt was signed in.
    enum Lane {
        Queue,
        Sessions
    }

    struct SignedReceipt {
        IJobQueue.Receipt receipt;
        bytes signature;
    }

    /// @dev `slashed` is what the node lost: half of it to the challenger, a quarter to the client, the rest burnt.
    event EquivocationProven(
        address indexed node, bytes32 indexed workId, address indexed challenger, address client, uint256 slashed
    );

    error NotEquivocation();
    error SpecMismatch(bytes32 expected);
    error NotLiable(address hotKey);
    error BadSignature();
    error AlreadyProven(address node, bytes32 workId);

    /// @notice Anyone: two different receipts of one node for one work, signed by a hot key that the node answers for.
    /// Half of its stake that no live claim holds, stake in withdrawal included, is slashed; once for each work.
    /// @param spec Of the first receipt: it names the client.
    function proveEquivocation(
        Lane lane,
        IJobQueue.JobSpec calldata spec,
        SignedReceipt calldata first,
        SignedReceipt calldata second,
        address hotKey
    ) external;

    function nodes() external view returns (INodeRegistry);
    function queue() external view returns (IJobQueue);
    function sessions() external view returns (ISessions);
    /// @notice Whether a node was slashed over a work.
    function proven(address node, bytes32 workId) external view returns (bool);
}
