// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

/// @title Sums per account, in memory: a growing open-addressed table.
/// @notice A batch adds as often as it likes and writes each account once at its end.
library Tally {
    uint256 private constant INITIAL_SLOTS = 16;

    /// @dev The table's length is a power of two and more than half of it is empty; the zero address is the empty key.
    struct Table {
        address[] keys;
        uint256[] sums;
        uint256 count;
    }

    function create() internal pure returns (Table memory table) {
        table.keys = new address[](INITIAL_SLOTS);
        table.sums = new uint256[](INITIAL_SLOTS);
    }

    /// @dev `account` must not be zero.
    function add(Table memory table, address account, uint256 amount) internal pure {
        uint256 slot = _find(table.keys, account);
        if (table.keys[slot] == address(0)) {
            table.keys[slot] = account;
            table.count++;
        }
        table.sums[slot] += amount;
        if (table.count * 2 >= table.keys.length) _grow(table);
    }

    /// @dev The accounts added and their sums, as two lists of one length.
    function entries(Table memory table) internal pure returns (address[] memory accounts, uint256[] memory sums) {
        accounts = new address[](table.count);
        sums = new uint256[](table.count);
        uint256 filled = 0;
        for (uint256 slot = 0; slot < table.keys.length; slot++) {
            if (table.keys[slot] == address(0)) continue;
            (accounts[filled], sums[filled]) = (table.keys[slot], table.sums[slot]);
            filled++;
        }
    }

    function _grow(Table memory table) private pure {
        address[] memory keys = new address[](table.keys.length * 2);
        uint256[] memory sums = new uint256[](table.keys.length * 2);
        for (uint256 slot = 0; slot < table.keys.length; slot++) {
            address key = table.keys[slot];
            if (key == address(0)) continue;
            uint256 moved = _find(keys, key);
            (keys[moved], sums[moved]) = (key, table.sums[slot]);
        }
        (table.keys, table.sums) = (keys, sums);
    }

    function _find(address[] memory keys, address account) private pure returns (uint256 slot) {
        uint256 mask = keys.length - 1;
        slot = uint160(account) & mask;
        while (keys[slot] != account && keys[slot] != address(0)) {
            slot = (slot + 1) & mask;
        }
    }
}
