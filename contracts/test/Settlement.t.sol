// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {Vm} from "forge-std/Vm.sol";

import {IJobQueue} from "src/interfaces/IJobQueue.sol";

import {Refuser} from "./utils/Accounts.sol";
import {MarketTest} from "./utils/MarketTest.sol";

contract SettlementTest is MarketTest {
    uint64[] internal jobIds;
    IJobQueue.JobSpec[] internal specs;
    IJobQueue.Receipt[] internal receipts;

    function test_finalize_pays_everyone_their_part() public {
        uint256 clientBefore = vault.balanceOf(client);
        _addJob(ensemble, alice, 512, 256, 1 ether);
        uint256 fee = receipts[0].fee;
        _finalizeAll();
        assertEq(vault.creditsOf(authorA), fee * 1_500 / 10_000);
        assertEq(vault.creditsOf(authorB), fee * 750 / 10_000);
        assertEq(vault.creditsOf(dataPayee1), fee * 525 / 10_000);
        assertEq(vault.creditsOf(dataPayee2), fee * 225 / 10_000);
        assertEq(vault.creditsOf(basePayee), fee * 500 / 10_000);
        assertEq(vault.creditsOf(treasury), fee * 500 / 10_000);
        assertEq(vault.creditsOf(alice.cold), fee * 6_000 / 10_000);
        assertEq(vault.balanceOf(client), clientBefore - fee);
        assertEq(nodes.node(alice.cold).bonded, 0);
    }

    function test_anyone_finalizes_whoever_else_stays_away() public {
        _addJob(ensemble, alice, 512, 256, 1 ether);
        skip(WINDOW);
        IJobQueue.Settlement[] memory settlements = _settlements();
        vm.prank(makeAddr("anyone"));
        queue.finalizeBatch(jobIds, settlements);
        assertEq(vault.creditsOf(alice.cold), uint256(receipts[0].fee) * 6_000 / 10_000);
    }

    function test_finalize_refunds_what_was_not_used() public {
        uint256 before = vault.balanceOf(client);
        _addJob(baseOnly, alice, 1, 0, 1 ether);
        uint256 fee = receipts[0].fee;
        vm.expectEmit();
        emit IJobQueue.JobFinalized(jobIds[0], alice.cold, uint96(fee), queue.escrowOf(specs[0]) - uint96(fee));
        _finalizeAll();
        assertEq(vault.balanceOf(client), before - fee);
        assertEq(vault.potOf(address(queue)), 0);
    }

    function test_finalize_revertsWhen_the_window_is_open() public {
        _addJob(ensemble, alice, 1, 1, 1 ether);
        uint40 ready = uint40(block.timestamp) + WINDOW;
        vm.warp(ready - 1);
        IJobQueue.Settlement[] memory settlements = _settlements();
        vm.expectRevert(abi.encodeWithSelector(IJobQueue.WindowOpen.selector, ready));
        queue.finalizeBatch(jobIds, settlements);
    }

    function test_finalize_revertsWhen_not_committed() public {
        specs.push(newSpec());
        jobIds.push(submit(specs[0]));
        receipts.push(receiptFor(jobIds[0], specs[0], alice));
        IJobQueue.Settlement[] memory settlements = _settlements();
        vm.expectRevert(abi.encodeWithSelector(IJobQueue.WrongState.selector, jobIds[0], IJobQueue.State.Open));
        queue.finalizeBatch(jobIds, settlements);
    }

    function test_finalize_revertsWhen_the_settlement_differs() public {
        _addJob(ensemble, alice, 100, 100, 1 ether);
        skip(WINDOW);
        for (uint256 i = 0; i < 5; i++) {
            IJobQueue.Settlement[] memory settlements = _settlements();
            if (i == 0) settlements[0].receiptHash = ~settlements[0].receiptHash;
            if (i == 1) settlements[0].client = bob.cold;
            if (i == 2) settlements[0].recipeId = baseOnly;
            if (i == 3) settlements[0].fee++;
            if (i == 4) settlements[0].refund++;
            vm.expectRevert(abi.encodeWithSelector(IJobQueue.SettlementMismatch.selector, jobIds[0]));
            queue.finalizeBatch(jobIds, settlements);
        }
    }

    function test_finalize_revertsWhen_lengths_differ() public {
        vm.expectRevert(IJobQueue.LengthMismatch.selector);
        queue.finalizeBatch(new uint64[](1), new IJobQueue.Settlement[](0));
    }

    function test_finalize_skips_what_is_final() public {
        _addJob(ensemble, alice, 100, 100, 1 ether);
        _addJob(ensemble, bob, 100, 100, 1 ether);
        skip(WINDOW);
        finalize(jobIds[1], specs[1], receipts[1]); // a rival settler
        uint256 paid = vault.creditsOf(bob.cold);
        queue.finalizeBatch(jobIds, _settlements());
        queue.finalizeBatch(jobIds, _settlements());
        assertEq(vault.creditsOf(bob.cold), paid);
        assertEq(vault.creditsOf(alice.cold), paid);
    }

    function test_finalize_pays_a_job_named_twice_once() public {
        _addJob(ensemble, alice, 100, 100, 1 ether);
        jobIds.push(jobIds[0]);
        specs.push(specs[0]);
        receipts.push(receipts[0]);
        _finalizeAll();
        assertEq(vault.creditsOf(alice.cold), uint256(receipts[0].fee) * 6_000 / 10_000);
    }

    function test_a_payee_that_refuses_calls_holds_up_nobody() public {
        bytes32 digest = bytes32(uint256(0xc));
        vm.prank(address(new Refuser()));
        adapters.registerAdapter(digest, BASE_ID, new uint32[](0), "refuser");
        bytes32[] memory digests = new bytes32[](1);
        int32[] memory weights = new int32[](1);
        (digests[0], weights[0]) = (digest, 1);
        _addJob(adapters.registerRecipe(BASE_ID, digests, weights), alice, 100, 100, 1 ether);
        _finalizeAll();
        assertEq(vault.creditsOf(alice.cold), uint256(receipts[0].fee) * 6_000 / 10_000);
    }

    function test_paid_is_one_event_per_payee_role_and_run() public {
        for (uint256 i = 0; i < 4; i++) {
            _addJob(ensemble, i < 3 ? alice : bob, 100, 100, 1 ether);
        }
        skip(WINDOW);
        vm.recordLogs();
        queue.finalizeBatch(jobIds, _settlements());
        assertEq(_paidIn(vm.getRecordedLogs(), 14), _fees()); // two runs of six legs and a node
    }

    /// @dev One wei and four legs that all round up at once: the fee cannot pay them all, and must not try.
    function test_finalize_never_owes_more_than_the_fee() public {
        _addJob(ensemble, alice, 1, 0, 9_999_000);
        _addJob(ensemble, alice, 1, 0, 1_000);
        assertEq(receipts[0].fee, 9_999);
        assertEq(receipts[1].fee, 1);
        skip(WINDOW);
        finalize(jobIds[0], specs[0], receipts[0]);
        finalize(jobIds[1], specs[1], receipts[1]);
        assertEq(_credits(), 10_000);
        assertEq(vault.potOf(address(queue)), 0);
    }

    function testFuzz_payments_and_refund_are_the_escrow(
        uint32 maxIn,
        uint32 maxOut,
        uint32 inTokens,
        uint32 outTokens,
        uint96 inPrice,
        uint96 outPrice
    ) public {
        IJobQueue.JobSpec memory spec = newSpec();
        spec.maxInTokens = uint32(bound(maxIn, 0, 1_000_000));
        spec.maxOutTokens = uint32(bound(maxOut, 0, 1_000_000));
        spec.inPricePerK = uint96(bound(inPrice, 0, 100 ether));
        spec.outPricePerK = uint96(bound(outPrice, 0, 100 ether));
        uint256 before = vault.balanceOf(client);
        uint256 escrow = queue.escrowOf(spec);
        uint64 jobId = submit(spec);
        assertEq(vault.balanceOf(client), before - escrow);
        claim(jobId, spec, alice);
        IJobQueue.Receipt memory receipt = receiptFor(
            jobId,
            spec,
            alice,
            uint32(bound(inTokens, 0, spec.maxInTokens)),
            uint32(bound(outTokens, 0, spec.maxOutTokens))
        );
        assertLe(receipt.fee, escrow);
        commit(jobId, spec, receipt, alice);
        skip(WINDOW);
        finalize(jobId, spec, receipt);
        assertEq(_credits(), receipt.fee);
        assertEq(vault.balanceOf(client), before - receipt.fee);
        assertEq(vault.potOf(address(queue)), 0);
    }

    /// @dev However jobs are cut into batches, every leg ends at floor(cumulative fee * bps / 10,000).
    function testFuzz_batches_telescope(uint96[6] memory prices, uint8 cut) public {
        uint256 split = bound(cut, 1, 5);
        for (uint256 i = 0; i < 6; i++) {
            _addJob(ensemble, alice, 1, 0, uint96(bound(prices[i], 100_000, 1_000 ether)));
        }
        skip(WINDOW);
        _finalizeRange(0, split);
        _finalizeRange(split, 6);
        uint256 cum = queue.recipeFees(ensemble);
        assertEq(cum, _fees());
        assertEq(vault.creditsOf(authorA), cum * 1_500 / 10_000);
        assertEq(vault.creditsOf(authorB), cum * 750 / 10_000);
        assertEq(vault.creditsOf(dataPayee1), cum * 525 / 10_000);
        assertEq(vault.creditsOf(dataPayee2), cum * 225 / 10_000);
        assertEq(vault.creditsOf(basePayee), cum * 500 / 10_000);
        assertEq(_credits(), cum);
    }

    /// @dev Any prices down to nothing, any order of recipes and nodes: Σ Paid = Σ credits = Σ fee.
    function testFuzz_nothing_is_made_or_lost(uint96[8] memory prices, uint8 order) public {
        for (uint256 i = 0; i < 8; i++) {
            uint64 recipeId = (order >> i) & 1 == 0 ? ensemble : baseOnly;
            _addJob(recipeId, (order >> (i / 2)) & 1 == 0 ? alice : bob, 1, 0, uint96(bound(prices[i], 0, 200_000)));
        }
        skip(WINDOW);
        vm.recordLogs();
        queue.finalizeBatch(jobIds, _settlements());
        uint256 fees = _fees();
        assertEq(_paidIn(vm.getRecordedLogs(), 0), fees);
        assertEq(_credits(), fees);
        assertEq(vault.potOf(address(queue)), 0);
        assertEq(queue.recipeFees(ensemble) + queue.recipeFees(baseOnly), fees);
        assertEq(nodes.node(alice.cold).bonded + nodes.node(bob.cold).bonded, 0);
    }

    // Helpers

    function _addJob(uint64 recipeId, Operator memory operator, uint32 inTokens, uint32 outTokens, uint96 inPrice)
        private
    {
        IJobQueue.JobSpec memory spec = newSpec();
        (spec.recipeId, spec.inPricePerK) = (recipeId, inPrice);
        uint64 jobId = submit(spec);
        claim(jobId, spec, operator);
        IJobQueue.Receipt memory receipt = receiptFor(jobId, spec, operator, inTokens, outTokens);
        commit(jobId, spec, receipt, operator);
        jobIds.push(jobId);
        specs.push(spec);
        receipts.push(receipt);
    }

    function _finalizeAll() private {
        skip(WINDOW);
        queue.finalizeBatch(jobIds, _settlements());
    }

    function _finalizeRange(uint256 from, uint256 to) private {
        uint64[] memory ids = new uint64[](to - from);
        IJobQueue.Settlement[] memory some = new IJobQueue.Settlement[](to - from);
        for (uint256 i = from; i < to; i++) {
            (ids[i - from], some[i - from]) = (jobIds[i], settlementOf(specs[i], receipts[i]));
        }
        queue.finalizeBatch(ids, some);
    }

    function _settlements() private view returns (IJobQueue.Settlement[] memory settlements) {
        settlements = new IJobQueue.Settlement[](jobIds.length);
        for (uint256 i = 0; i < jobIds.length; i++) {
            settlements[i] = settlementOf(specs[i], receipts[i]);
        }
    }

    function _fees() private view returns (uint256 sum) {
        for (uint256 i = 0; i < receipts.length; i++) {
            sum += receipts[i].fee;
        }
    }

    function _credits() private view returns (uint256 sum) {
        address[8] memory payees = [authorA, authorB, dataPayee1, dataPayee2, basePayee, treasury, alice.cold, bob.cold];
        for (uint256 i = 0; i < payees.length; i++) {
            sum += vault.creditsOf(payees[i]);
        }
    }

    /// @dev Σ Paid, whose number must be `count` unless that is zero.
    function _paidIn(Vm.Log[] memory logs, uint256 count) private pure returns (uint256 sum) {
        uint256 found = 0;
        for (uint256 i = 0; i < logs.length; i++) {
            if (logs[i].topics[0] != IJobQueue.Paid.selector) continue;
            sum += abi.decode(logs[i].data, (uint96));
            found++;
        }
        if (count != 0) assertEq(found, count);
    }
}
