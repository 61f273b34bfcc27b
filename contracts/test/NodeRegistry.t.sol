// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";

import {NodeRegistry} from "src/NodeRegistry.sol";
import {INodeRegistry} from "src/interfaces/INodeRegistry.sol";

import {MarketTest} from "./utils/MarketTest.sol";

contract NodeRegistryTest is MarketTest {
    address private constant BURNT = 0x000000000000000000000000000000000000dEaD;

    address private carol = makeAddr("carol");
    address private spare;
    uint256 private spareKey;

    function setUp() public override {
        super.setUp();
        (spare, spareKey) = makeAddrAndKey("spare");
    }

    function test_register_stores_what_was_given() public {
        INodeRegistry.HotKeyConsent memory agreed = consent(carol, spare, spareKey);
        vm.prank(carol);
        nodes.register(agreed, bytes32(uint256(7)), bytes32(uint256(8)), hex"0102");
        INodeRegistry.Node memory node = nodes.node(carol);
        assertEq(node.hotKey, spare);
        assertEq(node.encryptionKey, bytes32(uint256(7)));
        assertEq(node.metadata, bytes32(uint256(8)));
        assertEq(node.peerId, hex"0102");
        assertEq(nodes.operatorOf(spare), carol);
    }

    function test_register_revertsWhen_registered() public {
        INodeRegistry.HotKeyConsent memory agreed = consent(alice.cold, spare, spareKey);
        vm.prank(alice.cold);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.AlreadyRegistered.selector, alice.cold));
        nodes.register(agreed, 0, 0, "");
    }

    function test_register_revertsWhen_hot_key_serves_another() public {
        INodeRegistry.HotKeyConsent memory agreed = consent(carol, alice.hot, alice.hotKey);
        vm.prank(carol);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.HotKeyInUse.selector, alice.hot));
        nodes.register(agreed, 0, 0, "");
    }

    function test_register_revertsWhen_the_hot_key_did_not_agree() public {
        INodeRegistry.HotKeyConsent[4] memory refused;
        refused[0] = consent(bob.cold, spare, spareKey); // to serve another operator
        refused[1] = consent(carol, spare, alice.hotKey); // signed by another key
        refused[2] = consent(carol, spare, spareKey);
        refused[2].deadline++;
        refused[3] = INodeRegistry.HotKeyConsent(spare, uint40(block.timestamp), "");
        for (uint256 i = 0; i < refused.length; i++) {
            vm.prank(carol);
            vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NoConsent.selector, spare));
            nodes.register(refused[i], 0, 0, "");
        }
    }

    function test_register_revertsWhen_the_consent_expired() public {
        INodeRegistry.HotKeyConsent memory agreed = consent(carol, spare, spareKey);
        vm.warp(agreed.deadline + 1);
        vm.prank(carol);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.ConsentExpired.selector, agreed.deadline));
        nodes.register(agreed, 0, 0, "");
    }

    function test_register_revertsWhen_hot_key_is_zero() public {
        vm.prank(carol);
        vm.expectRevert(INodeRegistry.ZeroAddress.selector);
        nodes.register(INodeRegistry.HotKeyConsent(address(0), type(uint40).max, new bytes(65)), 0, 0, "");
    }

    function test_register_revertsWhen_peer_id_is_long() public {
        INodeRegistry.HotKeyConsent memory agreed = consent(carol, spare, spareKey);
        vm.prank(carol);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.PeerIdTooLong.selector, 65));
        nodes.register(agreed, 0, 0, new bytes(65));
    }

    function test_setHotKey_frees_the_former() public {
        setHotKey(alice, spare, spareKey);
        assertEq(nodes.operatorOf(alice.hot), address(0));
        INodeRegistry.HotKeyConsent memory agreed = consent(carol, alice.hot, alice.hotKey);
        vm.prank(carol);
        nodes.register(agreed, 0, 0, "");
        assertEq(nodes.operatorOf(alice.hot), carol);
    }

    function test_setters_revertWhen_not_registered() public {
        bytes memory refusal = abi.encodeWithSelector(INodeRegistry.NotRegistered.selector, carol);
        INodeRegistry.HotKeyConsent memory agreed = consent(carol, spare, spareKey);
        vm.startPrank(carol);
        vm.expectRevert(refusal);
        nodes.setHotKey(agreed);
        vm.expectRevert(refusal);
        nodes.setMetadata(0, 0, "");
        vm.expectRevert(refusal);
        nodes.stake(1);
        vm.expectRevert(refusal);
        nodes.beginUnstake(1);
    }

    function test_stake_goes_and_returns_after_the_delay() public {
        uint256 before = vault.balanceOf(alice.cold);
        vm.startPrank(alice.cold);
        nodes.beginUnstake(1_000 ether);
        uint40 ready = uint40(block.timestamp) + UNSTAKE_DELAY;
        assertEq(nodes.node(alice.cold).stake, 5_000 ether, "stake in withdrawal is stake");
        assertEq(nodes.freeStake(alice.cold), 4_000 ether);

        vm.warp(ready - 1);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.UnstakeNotReady.selector, ready));
        nodes.withdrawStake();
        vm.warp(ready);
        nodes.withdrawStake();
        assertEq(vault.balanceOf(alice.cold), before + 1_000 ether);
        assertEq(nodes.node(alice.cold).stake, 4_000 ether);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NothingUnstaking.selector, alice.cold));
        nodes.withdrawStake();
    }

    function test_beginUnstake_restarts_the_delay_for_all() public {
        vm.startPrank(alice.cold);
        nodes.beginUnstake(1 ether);
        skip(UNSTAKE_DELAY - 1);
        nodes.beginUnstake(1 ether);
        skip(1);
        vm.expectRevert();
        nodes.withdrawStake();
    }

    function test_beginUnstake_revertsWhen_bonded() public {
        vm.prank(address(queue));
        nodes.lockBond(alice.hot, 4_999 ether, 1);
        vm.prank(alice.cold);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.InsufficientStake.selector, alice.cold, 1 ether, 2 ether));
        nodes.beginUnstake(2 ether);
    }

    function test_lockBond_revertsWhen_the_stake_is_leaving() public {
        vm.prank(alice.cold);
        nodes.beginUnstake(5_000 ether);
        vm.prank(address(queue));
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.InsufficientStake.selector, alice.cold, 0, 1));
        nodes.lockBond(alice.hot, 1, 1);
    }

    function test_lockBond_counts_live_claims_up_to_the_limit() public {
        vm.startPrank(address(queue));
        assertEq(nodes.lockBond(alice.hot, 1, 2), alice.cold);
        nodes.lockBond(alice.hot, 1, 2);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.TooManyLiveClaims.selector, alice.cold, 2));
        nodes.lockBond(alice.hot, 1, 2);
        nodes.unlockBonds(alice.cold, 2, 2);
        assertEq(nodes.node(alice.cold).liveClaims, 0);
        assertEq(nodes.node(alice.cold).bonded, 0);
    }

    function test_bond_calls_revertWhen_caller_is_not_the_queue() public {
        bytes memory refusal = abi.encodeWithSelector(INodeRegistry.NotTheQueue.selector, address(this));
        vm.expectRevert(refusal);
        nodes.lockBond(alice.hot, 1, 1);
        vm.expectRevert(refusal);
        nodes.unlockBonds(alice.cold, 1, 1);
        vm.expectRevert(refusal);
        nodes.forfeitBond(alice.cold, 1, 1);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotAModule.selector, address(this)));
        nodes.payForfeit(alice.cold, 1);
    }

    function test_forfeited_bonds_wait_and_are_paid_from_the_pool() public {
        vm.startPrank(address(queue));
        nodes.lockBond(alice.hot, BOND, 1);
        nodes.forfeitBond(alice.cold, BOND, BOND);
        assertEq(nodes.node(alice.cold).stake, 5_000 ether - BOND);
        assertEq(nodes.node(alice.cold).bonded, 0);
        assertEq(nodes.forfeitPool(), BOND);
        nodes.payForfeit(bob.cold, BOND);
        assertEq(nodes.forfeitPool(), 0);
        assertEq(vault.creditsOf(bob.cold), BOND);
    }

    function test_slash_revertsWhen_caller_is_not_disputes() public {
        vm.prank(address(queue));
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotDisputes.selector, address(queue)));
        nodes.slash(alice.cold, 2);
    }

    /// @dev What live bonds hold of the part due is owed, and burnt out of them when they end, however they do.
    function testFuzz_slash_reaches_all_stake_and_what_is_bonded_last(
        uint96 bonded,
        uint96 leaving,
        uint8 parts,
        uint96 lost
    ) public {
        bonded = uint96(bound(bonded, 0, 5_000 ether));
        leaving = uint96(bound(leaving, 0, 5_000 ether - bonded));
        lost = uint96(bound(lost, 0, bonded));
        parts = uint8(bound(parts, 1, 255));
        vm.prank(address(queue));
        nodes.lockBond(alice.hot, bonded, 1);
        vm.prank(alice.cold);
        nodes.beginUnstake(leaving);
        uint256 amount = _slash(parts);
        uint256 due = 5_000 ether / uint256(parts);
        assertEq(amount + nodes.owed(alice.cold), due);
        if (nodes.owed(alice.cold) > 0) assertEq(amount, 5_000 ether - bonded, "all that was not bonded");
        assertEq(nodes.node(alice.cold).stake, 5_000 ether - amount);
        assertEq(nodes.freeStake(alice.cold) + nodes.node(alice.cold).unstaking, 5_000 ether - amount - bonded);

        uint256 again = _slash(parts);
        assertEq(again + nodes.owed(alice.cold), due - amount + (5_000 ether - due) / uint256(parts));
        amount += again;
        assertEq(nodes.forfeitPool(), amount);

        uint256 burnt = nodes.owed(alice.cold);
        vm.prank(address(queue));
        uint256 forfeited = nodes.forfeitBond(alice.cold, bonded, lost);
        assertEq(nodes.owed(alice.cold), 0, "no claim, no debt");
        assertEq(vault.creditsOf(BURNT), burnt);
        assertEq(forfeited, Math.min(lost, bonded - burnt));
        assertEq(nodes.forfeitPool(), amount + forfeited);
        assertEq(nodes.node(alice.cold).stake, 5_000 ether - amount - forfeited - burnt);
        assertEq(vault.potOf(address(nodes)), nodes.node(alice.cold).stake + 5_000 ether + nodes.forfeitPool());
    }

    /// @dev One claim's end pays what it frees, and the next one the rest.
    function test_what_is_owed_is_paid_as_claims_end() public {
        vm.startPrank(address(queue));
        nodes.lockBond(alice.hot, 2_000 ether, 3);
        nodes.lockBond(alice.hot, 1_000 ether, 3);
        nodes.lockBond(alice.hot, 2_000 ether, 3);
        vm.stopPrank();
        assertEq(_slash(2), 0);
        vm.startPrank(address(queue));
        nodes.unlockBonds(alice.cold, 2_000 ether, 1);
        assertEq(nodes.owed(alice.cold), 500 ether);
        assertEq(nodes.freeStake(alice.cold), 0);
        nodes.unlockBonds(alice.cold, 1_000 ether, 1);
        assertEq(nodes.owed(alice.cold), 0);
        assertEq(nodes.freeStake(alice.cold), 500 ether);
        nodes.unlockBonds(alice.cold, 2_000 ether, 1);
        assertEq(nodes.node(alice.cold).stake, 2_500 ether);
        assertEq(vault.creditsOf(BURNT), 2_500 ether);
    }

    function test_an_operator_answers_for_a_replaced_hot_key_as_long_as_its_exit_takes() public {
        assertEq(nodes.liableUntil(alice.cold, spare), 0);
        setHotKey(alice, spare, spareKey);
        assertEq(nodes.liableUntil(alice.cold, spare), type(uint40).max);
        assertEq(nodes.liableUntil(alice.cold, alice.hot), block.timestamp + UNSTAKE_DELAY);
        assertEq(nodes.liableUntil(bob.cold, alice.hot), 0);
    }

    function test_constructor_revertsWhen_the_vault_does_not_know_it() public {
        vm.expectPartialRevert(INodeRegistry.NotAModule.selector);
        new NodeRegistry(vault, address(queue), address(outputs), address(disputes), UNSTAKE_DELAY);
    }

    function testFuzz_free_stake_is_what_is_neither_bonded_nor_leaving(uint96 bonded, uint96 leaving) public {
        bonded = uint96(bound(bonded, 0, 5_000 ether));
        leaving = uint96(bound(leaving, 0, 5_000 ether - bonded));
        vm.prank(address(queue));
        nodes.lockBond(alice.hot, bonded, 1);
        vm.prank(alice.cold);
        nodes.beginUnstake(leaving);
        INodeRegistry.Node memory node = nodes.node(alice.cold);
        assertEq(nodes.freeStake(alice.cold), node.stake - node.unstaking - node.bonded);
        assertEq(node.stake, 5_000 ether);
    }

    function _slash(uint256 parts) private returns (uint256) {
        vm.prank(address(disputes));
        return nodes.slash(alice.cold, parts);
    }
}
