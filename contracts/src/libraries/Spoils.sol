// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {INodeRegistry} from "../interfaces/INodeRegistry.sol";

/// @title Divides what a node has lost: half to the challenger, a quarter to the client, 15 % to the verifiers, the rest
/// burnt.
/// @dev What no verifier has earned is burnt with the rest. Accomplices of the node who challenge it win half back; they
/// could be its client as well, who has nothing to gain from being cheated, but might bring a node's stake out before its
/// exit delay: a quarter of what is slashed is out of their reach. So what a stake secures is a quarter of what it can lose.
library Spoils {
    uint256 private constant CHALLENGER_PART = 2; // one of two
    uint256 private constant CLIENT_PART = 4;
    uint256 private constant VERIFIERS_PERCENT = 15;
    address internal constant BURNT = 0x000000000000000000000000000000000000dEaD; // nobody claims its credits

    /// @param slashed Lies in the registry's forfeits.
    /// @param verifiers Share alike; may be none.
    function divide(
        INodeRegistry nodes,
        uint256 slashed,
        address challenger,
        address client,
        address[] memory verifiers
    ) internal {
        uint256 challengers = slashed / CHALLENGER_PART;
        uint256 clients = slashed / CLIENT_PART;
        uint256 left = slashed - challengers - clients;
        nodes.payForfeit(challenger, challengers);
        nodes.payForfeit(client, clients);
        for (uint256 i = 0; i < verifiers.length; i++) {
            uint256 share = slashed * VERIFIERS_PERCENT / 100 / verifiers.length;
            left -= share;
            nodes.payForfeit(verifiers[i], share);
        }
        nodes.payForfeit(BURNT, left);
    }
}
