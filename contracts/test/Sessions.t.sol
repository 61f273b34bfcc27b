// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {IAccessManaged} from "@openzeppelin/contracts/access/manager/IAccessManaged.sol";
import {Pausable} from "@openzeppelin/contracts/utils/Pausable.sol";

import {Sessions} from "src/Sessions.sol";
import {IAdapterRegistry} from "src/interfaces/IAdapterRegistry.sol";
import {IJobQueue} from "src/interfaces/IJobQueue.sol";
import {ISessions} from "src/interfaces/ISessions.sol";
import {IVault} from "src/interfaces/IVault.sol";

import {ContractHotKey} from "./utils/Accounts.sol";
import {MarketTest} from "./utils/MarketTest.sol";

contract SessionsTest is MarketTest {
    uint96 private constant DEPOSIT = 1_000 ether;
    uint256 private constant MAX_LINES = 12;

    bytes32 private id;

    function setUp() public override {
        super.setUp();
        id = openSession(alice, DEPOSIT, 1);
    }

    // Opening

    function test_open_moves_the_deposit() public {
        uint256 before = vault.balanceOf(client);
        bytes32 expected = sessions.sessionIdOf(client, bob.cold, 7);
        vm.expectEmit();
        emit ISessions.SessionOpened(expected, client, bob.cold, 5 ether);
        assertEq(openSession(bob, 5 ether, 7), expected);
        assertEq(vault.balanceOf(client), before - 5 ether);
        assertEq(vault.potOf(address(sessions)), DEPOSIT + 5 ether);
        ISessions.Session memory session = sessions.session(expected);
        assertEq(uint256(session.state), uint256(ISessions.State.Open));
        assertEq(session.client, client);
        assertEq(session.node, bob.cold);
        assertEq(session.deposit, 5 ether);
    }

    function test_open_revertsWhen_the_id_was_used() public {
        vm.expectRevert(abi.encodeWithSelector(ISessions.WrongState.selector, id, ISessions.State.Open));
        openSession(alice, 1, 1);
        vm.prank(alice.cold);
        sessions.close(id);
        vm.expectRevert(abi.encodeWithSelector(ISessions.WrongState.selector, id, ISessions.State.Closed));
        openSession(alice, 1, 1);
    }

    function test_open_revertsWhen_the_node_has_no_stake() public {
        vm.prank(client);
        vm.expectRevert(abi.encodeWithSelector(ISessions.NotStaked.selector, client));
        sessions.open(client, 1, 1);
    }

    function test_open_revertsWhen_balance_is_short() public {
        vm.prank(treasury);
        vm.expectPartialRevert(IVault.InsufficientBalance.selector);
        sessions.open(alice.cold, 1, 1);
    }

    function test_topUp_adds_to_the_deposit() public {
        vm.prank(client);
        vm.expectEmit();
        emit ISessions.SessionToppedUp(id, 3 ether);
        sessions.topUp(id, 3 ether);
        assertEq(sessions.session(id).deposit, DEPOSIT + 3 ether);
        settle(id, DEPOSIT, 3 ether);
    }

    function test_topUp_revertsWhen_not_the_client() public {
        vm.prank(alice.cold);
        vm.expectRevert(abi.encodeWithSelector(ISessions.NotAParty.selector, alice.cold));
        sessions.topUp(id, 1);
    }

    // Settling

    function test_settle_pays_everyone_their_part() public {
        settle(id, 100 ether, 200 ether);
        assertEq(vault.creditsOf(alice.cold), 85 ether + 120 ether);
        assertEq(vault.creditsOf(authorA), 30 ether);
        assertEq(vault.creditsOf(authorB), 15 ether);
        assertEq(vault.creditsOf(dataPayee1), 10.5 ether);
        assertEq(vault.creditsOf(dataPayee2), 4.5 ether);
        assertEq(vault.creditsOf(basePayee), 20 ether);
        assertEq(vault.creditsOf(treasury), 15 ether);
        assertEq(vault.potOf(address(sessions)), DEPOSIT - 300 ether);
        assertEq(sessions.session(id).settled, 300 ether);
        assertEq(sessions.paid(id, ensemble), 200 ether);
    }

    function test_settle_pays_only_what_a_voucher_adds() public {
        settle(id, 100 ether, 0);
        (ISessions.Voucher memory voucher, ISessions.Line[] memory lines, bytes memory signature) =
            voucherFor(id, 100 ether, 50 ether, clientKey);
        vm.expectEmit();
        emit ISessions.SessionSettled(id, alice.cold, 50 ether, voucher, lines);
        sessions.settle(voucher, lines, signature);
        assertEq(vault.creditsOf(alice.cold), 85 ether + 30 ether);
    }

    function test_settle_revertsWhen_replayed_or_older() public {
        (ISessions.Voucher memory old, ISessions.Line[] memory oldLines, bytes memory oldSignature) =
            voucherFor(id, 1 ether, 0, clientKey);
        (ISessions.Voucher memory voucher, ISessions.Line[] memory lines, bytes memory signature) =
            voucherFor(id, 1 ether, 1 ether, clientKey);
        sessions.settle(voucher, lines, signature);
        vm.expectRevert(abi.encodeWithSelector(ISessions.VoucherNotNewer.selector, 2 ether));
        sessions.settle(voucher, lines, signature);
        vm.expectRevert(abi.encodeWithSelector(ISessions.VoucherNotNewer.selector, 2 ether));
        sessions.settle(old, oldLines, oldSignature);
    }

    function test_settle_revertsWhen_over_the_deposit() public {
        (ISessions.Voucher memory voucher, ISessions.Line[] memory lines, bytes memory signature) =
            voucherFor(id, DEPOSIT, 1, clientKey);
        vm.expectRevert(abi.encodeWithSelector(ISessions.OverDeposit.selector, DEPOSIT));
        sessions.settle(voucher, lines, signature);
    }

    function test_settle_revertsWhen_expired() public {
        (ISessions.Voucher memory voucher, ISessions.Line[] memory lines, bytes memory signature) =
            voucherFor(id, 1, 1, clientKey);
        vm.warp(voucher.deadline + 1);
        vm.expectRevert(abi.encodeWithSelector(ISessions.VoucherExpired.selector, voucher.deadline));
        sessions.settle(voucher, lines, signature);
    }

    function test_settle_revertsWhen_another_signed() public {
        (ISessions.Voucher memory voucher, ISessions.Line[] memory lines, bytes memory signature) =
            voucherFor(id, 1, 1, alice.hotKey);
        vm.expectRevert(ISessions.BadSignature.selector);
        sessions.settle(voucher, lines, signature);
    }

    /// @dev On another chain and at another contract the digest, and so the signer, is another; so is the session's id.
    function test_settle_revertsWhen_signed_for_another_chain_or_contract() public {
        (ISessions.Voucher memory voucher, ISessions.Line[] memory lines, bytes memory signature) =
            voucherFor(id, 1, 1, clientKey);
        vm.chainId(block.chainid + 1);
        vm.expectRevert(ISessions.BadSignature.selector);
        sessions.settle(voucher, lines, signature);
        assertNotEq(sessions.sessionIdOf(client, alice.cold, 1), id);
        vm.chainId(block.chainid - 1);
        Sessions twin = Sessions(makeAddr("twin"));
        vm.etch(address(twin), address(sessions).code);
        assertNotEq(twin.hashVoucher(voucher), sessions.hashVoucher(voucher));
        assertNotEq(twin.sessionIdOf(client, alice.cold, 1), id);
    }

    function test_settle_revertsWhen_the_signature_is_the_high_s_twin() public {
        (ISessions.Voucher memory voucher, ISessions.Line[] memory lines,) = voucherFor(id, 1, 1, clientKey);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(clientKey, sessions.hashVoucher(voucher));
        uint256 order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;
        vm.expectRevert(ISessions.BadSignature.selector);
        sessions.settle(voucher, lines, abi.encodePacked(r, order - uint256(s), v == 27 ? uint8(28) : uint8(27)));
    }

    function test_settle_takes_erc1271() public {
        ContractHotKey wallet = new ContractHotKey(client);
        fund(address(wallet), 10 ether);
        vm.prank(address(wallet));
        bytes32 walletsId = sessions.open(alice.cold, 10 ether, 1);
        settle(walletsId, 1 ether, 2 ether);
        assertEq(sessions.session(walletsId).settled, 3 ether);
    }

    function test_settle_revertsWhen_the_lines_differ_from_what_was_signed() public {
        (ISessions.Voucher memory voucher, ISessions.Line[] memory lines, bytes memory signature) =
            voucherFor(id, 1 ether, 1 ether, clientKey);
        (lines[0].cumulativeFee, lines[1].cumulativeFee) = (2 ether, 0);
        vm.expectRevert(ISessions.LinesMismatch.selector);
        sessions.settle(voucher, lines, signature);
    }

    function test_settle_revertsWhen_signed_lines_make_no_sense() public {
        settle(id, 10 ether, 10 ether);
        ISessions.Line[] memory lines = new ISessions.Line[](2);
        (lines[0], lines[1]) = (_line(ensemble, 20 ether), _line(baseOnly, 10 ether));
        _assertRefused(lines, 30 ether, ISessions.LinesMismatch.selector); // descending
        (lines[0], lines[1]) = (_line(baseOnly, 15 ether), _line(baseOnly, 15 ether));
        _assertRefused(lines, 30 ether, ISessions.LinesMismatch.selector); // one twice
        (lines[0], lines[1]) = (_line(baseOnly, 21 ether), _line(ensemble, 9 ether));
        _assertRefused(lines, 30 ether, ISessions.LinesMismatch.selector); // one shrinks
        (lines[0], lines[1]) = (_line(baseOnly, 15 ether), _line(ensemble, 16 ether));
        _assertRefused(lines, 30 ether, ISessions.LinesMismatch.selector); // another sum
        ISessions.Line[] memory one = new ISessions.Line[](1);
        one[0] = _line(baseOnly, 30 ether);
        _assertRefused(one, 30 ether, ISessions.LinesMismatch.selector); // one left out
        _assertRefused(new ISessions.Line[](MAX_LINES + 1), 30 ether, ISessions.TooManyLines.selector);
    }

    /// @dev Or a client could let a node earn under recipes that no transaction can pay out: a session's lines are never
    /// settled apart. 2^24 is a transaction's cap since EIP-7825.
    function test_the_dearest_voucher_fits_a_transaction() public {
        ISessions.Line[] memory lines = new ISessions.Line[](MAX_LINES);
        for (uint256 i = 0; i < MAX_LINES; i++) {
            lines[i] = _line(_crowdedRecipe(i + 1), 1 ether);
        }
        ISessions.Voucher memory voucher = _voucherOf(lines, uint96(MAX_LINES * 1 ether));
        bytes memory signature = signVoucher(voucher, clientKey);
        vm.cool(address(sessions));
        vm.cool(address(vault));
        vm.cool(address(adapters));
        uint256 before = gasleft();
        sessions.settle(voucher, lines, signature);
        assertLt(before - gasleft(), 2 ** 24 - 21_000 - 100_000, "with its calldata");
    }

    function test_settle_revertsWhen_there_is_no_session() public {
        (ISessions.Voucher memory voucher, ISessions.Line[] memory lines, bytes memory signature) =
            voucherFor(bytes32(0), 1, 1, clientKey);
        vm.expectRevert(abi.encodeWithSelector(ISessions.OverDeposit.selector, 0));
        sessions.settle(voucher, lines, signature);
    }

    // Closing

    function test_the_client_closes_after_the_delay() public {
        settle(id, 1 ether, 1 ether);
        uint256 before = vault.balanceOf(client);
        uint40 closeAt = uint40(block.timestamp) + CLOSE_DELAY;
        vm.prank(client);
        vm.expectEmit();
        emit ISessions.SessionClosing(id, closeAt);
        sessions.requestClose(id);
        vm.warp(closeAt - 1);
        vm.expectRevert(abi.encodeWithSelector(ISessions.CannotCloseYet.selector, closeAt));
        sessions.close(id);
        vm.warp(closeAt);
        vm.prank(makeAddr("anyone"));
        vm.expectEmit();
        emit ISessions.SessionClosed(id, DEPOSIT - 2 ether);
        sessions.close(id);
        assertEq(vault.balanceOf(client), before + DEPOSIT - 2 ether);
        assertEq(vault.potOf(address(sessions)), 0);
    }

    function test_the_node_settles_while_the_session_closes() public {
        (ISessions.Voucher memory voucher, ISessions.Line[] memory lines, bytes memory signature) =
            voucherFor(id, 1 ether, 1 ether, clientKey);
        vm.prank(client);
        sessions.requestClose(id);
        sessions.settle(voucher, lines, signature);
        assertGt(vault.creditsOf(alice.cold), 0);
    }

    function test_the_node_closes_at_once() public {
        uint256 before = vault.balanceOf(client);
        vm.prank(alice.cold);
        sessions.close(id);
        assertEq(vault.balanceOf(client), before + DEPOSIT);
    }

    function test_close_revertsWhen_the_client_asked_for_nothing() public {
        vm.prank(client);
        vm.expectRevert(abi.encodeWithSelector(ISessions.WrongState.selector, id, ISessions.State.Open));
        sessions.close(id);
    }

    function test_requestClose_revertsWhen_not_the_client() public {
        vm.prank(alice.cold);
        vm.expectRevert(abi.encodeWithSelector(ISessions.NotAParty.selector, alice.cold));
        sessions.requestClose(id);
    }

    function test_a_closed_session_refuses_everything() public {
        settle(id, 1 ether, 0);
        (ISessions.Voucher memory voucher, ISessions.Line[] memory lines, bytes memory signature) =
            voucherFor(id, 1 ether, 1 ether, clientKey);
        vm.prank(alice.cold);
        sessions.close(id);
        vm.expectRevert(abi.encodeWithSelector(ISessions.OverDeposit.selector, 1 ether));
        sessions.settle(voucher, lines, signature);
        bytes memory refusal = abi.encodeWithSelector(ISessions.WrongState.selector, id, ISessions.State.Closed);
        vm.prank(alice.cold);
        vm.expectRevert(refusal);
        sessions.close(id);
        vm.startPrank(client);
        vm.expectRevert(refusal);
        sessions.topUp(id, 1);
        vm.expectRevert(refusal);
        sessions.requestClose(id);
    }

    // The rest

    function test_pause_stops_open_and_no_exit() public {
        vm.prank(guardian);
        sessions.pause();
        vm.prank(client);
        vm.expectRevert(Pausable.EnforcedPause.selector);
        sessions.open(alice.cold, 1, 2);
        settle(id, 1 ether, 1 ether);
        vm.prank(client);
        sessions.requestClose(id);
        skip(CLOSE_DELAY);
        sessions.close(id);
        vm.prank(owner);
        sessions.unpause();
        openSession(alice, 1, 2);
    }

    function test_pause_revertsWhen_anyone_else_calls() public {
        bytes memory refusal = abi.encodeWithSelector(IAccessManaged.AccessManagedUnauthorized.selector, address(this));
        vm.expectRevert(refusal);
        sessions.pause();
        vm.expectRevert(refusal);
        sessions.unpause();
    }

    function test_an_order_is_no_job_of_the_queue() public {
        IJobQueue.JobSpec memory spec = newSpec();
        assertNotEq(sessions.hashOrder(spec), queue.hashSpec(spec), "an order signed for a node escrows nothing");
    }

    function test_constructor_revertsWhen_not_wired() public {
        vm.expectPartialRevert(ISessions.NotAModule.selector);
        new Sessions(nodes, adapters, address(governance), CLOSE_DELAY);
        vm.expectRevert(ISessions.BadDelay.selector);
        new Sessions(nodes, adapters, address(governance), 0);
    }

    /// @dev However the fees come in, everyone has what one settlement of the last voucher would have paid.
    function testFuzz_settling_often_pays_as_settling_once(uint64[4] memory steps) public {
        bytes32 once = openSession(bob, DEPOSIT, 2);
        (uint96 a, uint96 b) = (0, 0);
        for (uint256 i = 0; i < 4; i++) {
            if (i % 2 == 0) a += steps[i];
            else b += steps[i];
            if (steps[i] > 0) settle(id, a, b);
        }
        uint256 paidToAlice = vault.creditsOf(alice.cold);
        if (a + b > 0) settle(once, a, b);
        assertApproxEqAbs(vault.creditsOf(bob.cold), paidToAlice, 28, "a wei a leg and line at most");
        assertEq(vault.potOf(address(sessions)), 2 * uint256(DEPOSIT) - 2 * uint256(a + b));
        assertEq(sessions.recipeFees(baseOnly), 2 * uint256(a));
    }

    function _line(uint64 recipeId, uint96 fee) private pure returns (ISessions.Line memory) {
        return ISessions.Line(recipeId, fee, bytes32(uint256(1)));
    }

    function _assertRefused(ISessions.Line[] memory lines, uint96 fee, bytes4 reason) private {
        ISessions.Voucher memory voucher = _voucherOf(lines, fee);
        bytes memory signature = signVoucher(voucher, clientKey);
        vm.expectPartialRevert(reason);
        sessions.settle(voucher, lines, signature);
    }

    function _voucherOf(ISessions.Line[] memory lines, uint96 fee) private view returns (ISessions.Voucher memory) {
        return ISessions.Voucher(id, fee, keccak256(abi.encode(lines)), uint40(block.timestamp));
    }

    /// @dev A recipe of 32 legs, none of whose payees but the protocol's is another recipe's.
    function _crowdedRecipe(uint256 seed) private returns (uint64) {
        bytes32 name = keccak256(abi.encode("crowded", seed));
        uint32[] memory datanets = new uint32[](2);
        for (uint256 i = 0; i < 2; i++) {
            IAdapterRegistry.Share[] memory shares = new IAdapterRegistry.Share[](i == 0 ? 16 : 13);
            for (uint256 j = 0; j < shares.length; j++) {
                shares[j] = IAdapterRegistry.Share(_payee(seed, 16 * i + j), 100);
            }
            shares[0].bps = uint16(10_000 - 100 * (shares.length - 1));
            datanets[i] = adapters.createDatanet(name, shares, "crowd");
        }
        adapters.registerBase(name, _payee(seed, 100), "base");
        vm.prank(_payee(seed, 101));
        adapters.registerAdapter(name, name, datanets, "adapter");
        (bytes32[] memory digests, int32[] memory weights) = (new bytes32[](1), new int32[](1));
        (digests[0], weights[0]) = (name, 1);
        return adapters.registerRecipe(name, digests, weights);
    }

    function _payee(uint256 seed, uint256 place) private pure returns (address) {
        return address(uint160(uint256(keccak256(abi.encode(seed, place)))));
    }
}
