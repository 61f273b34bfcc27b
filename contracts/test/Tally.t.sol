// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {Test} from "forge-std/Test.sol";

import {Tally} from "src/libraries/Tally.sol";

contract TallyTest is Test {
    using Tally for Tally.Table;

    mapping(address account => uint256) private _sums;
    mapping(address account => bool) private _seen;

    function testFuzz_entries_are_the_sums(uint256 seed, uint8 adds, uint8 accounts) public {
        Tally.Table memory table = Tally.create();
        uint256 distinct = 0;
        for (uint256 i = 0; i < adds; i++) {
            uint256 random = uint256(keccak256(abi.encode(seed, i)));
            // Addresses that all begin at one slot: the worst case of probing.
            address account = address(uint160((random % (uint256(accounts) + 1) + 1) << 128));
            table.add(account, random >> 160);
            _sums[account] += random >> 160;
            if (!_seen[account]) distinct++;
            _seen[account] = true;
        }
        (address[] memory keys, uint256[] memory sums) = table.entries();
        assertEq(keys.length, distinct);
        for (uint256 i = 0; i < keys.length; i++) {
            assertTrue(_seen[keys[i]]);
            assertEq(sums[i], _sums[keys[i]]);
            _seen[keys[i]] = false; // each once
        }
    }

    function test_grows_past_its_first_table() public pure {
        Tally.Table memory table = Tally.create();
        for (uint160 i = 1; i <= 1_000; i++) {
            table.add(address(i), i);
        }
        (address[] memory keys, uint256[] memory sums) = table.entries();
        assertEq(keys.length, 1_000);
        for (uint256 i = 0; i < keys.length; i++) {
            assertEq(uint256(uint160(keys[i])), sums[i]);
        }
    }
}
