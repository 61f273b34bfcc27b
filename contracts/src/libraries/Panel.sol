// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

/// @title Draws five accounts by lot: those with the lowest hashes.
/// @dev In whatever order they enter, the same five are drawn, and who stays away moves nobody's place but the last's.
library Panel {
    uint256 internal constant SIZE = 5;

    /// @dev The best so far, ascending by lot.
    struct Lot {
        bytes32 seed;
        uint256 count;
        address[SIZE] accounts;
        uint256[SIZE] lots;
    }

    function create(bytes32 seed) internal pure returns (Lot memory lot) {
        lot.seed = seed;
    }

    function enter(Lot memory lot, address account) internal pure {
        uint256 drawn = uint256(keccak256(abi.encode(lot.seed, account)));
        uint256 place = lot.count;
        if (place == SIZE) {
            if (drawn >= lot.lots[SIZE - 1]) return;
            place--;
        } else {
            lot.count++;
        }
        for (; place > 0 && lot.lots[place - 1] > drawn; place--) {
            (lot.lots[place], lot.accounts[place]) = (lot.lots[place - 1], lot.accounts[place - 1]);
        }
        (lot.lots[place], lot.accounts[place]) = (drawn, account);
    }
}
