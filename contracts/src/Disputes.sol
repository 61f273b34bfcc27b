// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {IDisputes} from "./interfaces/IDisputes.sol";
import {IJobQueue} from "./interfaces/IJobQueue.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {ISessions} from "./interfaces/ISessions.sol";
import {PartySignature} from "./libraries/PartySignature.sol";

/// @title Implementation of IDisputes.
contract Disputes is IDisputes {
    uint256 private constant SLASHED_PART = 2; // one of two
    uint256 private constant CHALLENGER_PART = 2;
    uint256 private constant CLIENT_PART = 4;
    address private constant BURNT = 0x000000000000000000000000000000000000dEaD; // nobody claims its credits

    /// @inheritdoc IDisputes
    INodeRegistry public immutable nodes;
    /// @inheritdoc IDisputes
    IJobQueue public immutable queue;
    /// @inheritdoc IDisputes
    ISessions public immutable sessions;

    /// @inheritdoc IDisputes
    mapping(address node => mapping(bytes32 workId => bool)) public proven;

    constructor(INodeRegistry nodes_, IJobQueue queue_, ISessions sessions_) {
        if (nodes_.disputes() != address(this)) revert INodeRegistry.NotAModule(address(this));
        (nodes, queue, sessions) = (nodes_, queue_, sessions_);
    }

    /// @inheritdoc IDisputes
    function proveEquivocation(
        Lane lane,
        IJobQueue.JobSpec calldata spec,
        SignedReceipt calldata first,
        SignedReceipt calldata second,
        address hotKey
    ) external {
        (address node, bytes32 workId) = (first.receipt.node, first.receipt.workId);
        if (proven[node][workId]) revert AlreadyProven(node, workId);
        bytes32 specHash = lane == Lane.Queue ? queue.hashSpec(spec) : sessions.hashOrder(spec);
        if (specHash != first.receipt.specHash) revert SpecMismatch(first.receipt.specHash);
        if (block.timestamp >= nodes.liableUntil(node, hotKey)) revert NotLiable(hotKey);
        bool sameWork = second.receipt.node == node && second.receipt.workId == workId;
        if (!sameWork || _checked(lane, hotKey, first) == _checked(lane, hotKey, second)) revert NotEquivocation();

        proven[node][workId] = true;
        uint256 slashed = nodes.slash(node, SLASHED_PART);
        emit EquivocationProven(node, workId, msg.sender, spec.client, slashed);
        _divide(slashed, msg.sender, spec.client);
    }

    /// @dev The receipt's digest, which the hot key must have signed.
    function _checked(Lane lane, address hotKey, SignedReceipt calldata signed) private view returns (bytes32 digest) {
        digest = lane == Lane.Queue ? queue.hashReceipt(signed.receipt) : sessions.hashReceipt(signed.receipt);
        if (!PartySignature.isValid(hotKey, digest, signed.signature)) revert BadSignature();
    }

    /// @dev What no verifier has earned is burnt with the rest: an accomplice must not win it back.
    function _divide(uint256 slashed, address challenger, address client) private {
        uint256 challengers = slashed / CHALLENGER_PART;
        uint256 clients = slashed / CLIENT_PART;
        nodes.payForfeit(challenger, challengers);
        nodes.payForfeit(client, clients);
        nodes.payForfeit(BURNT, slashed - challengers - clients);
    }
}
