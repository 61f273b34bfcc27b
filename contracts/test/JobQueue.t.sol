// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {IAccessManaged} from "@openzeppelin/contracts/access/manager/IAccessManaged.sol";
import {Pausable} from "@openzeppelin/contracts/utils/Pausable.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";

import {JobQueue} from "src/JobQueue.sol";
import {IAdapterRegistry} from "src/interfaces/IAdapterRegistry.sol";
import {IJobQueue} from "src/interfaces/IJobQueue.sol";
import {INodeRegistry} from "src/interfaces/INodeRegistry.sol";
import {IVault} from "src/interfaces/IVault.sol";
import {Spoils} from "src/libraries/Spoils.sol";

import {ContractHotKey} from "./utils/Accounts.sol";
import {MarketTest} from "./utils/MarketTest.sol";

contract JobQueueTest is MarketTest {
    IJobQueue.JobSpec internal spec;

    function setUp() public override {
        super.setUp();
        spec = newSpec();
    }

    // Submitting

    function test_submit_escrows_and_announces() public {
        uint256 before = vault.balanceOf(client);
        bytes32 specHash = queue.hashSpec(spec);
        vm.expectEmit();
        emit IJobQueue.JobSubmitted(1, client, specHash, spec, "");
        uint64 jobId = submit(spec);
        assertEq(vault.potOf(address(queue)), queue.escrowOf(spec));
        assertEq(vault.balanceOf(client), before - queue.escrowOf(spec));
        IJobQueue.Job memory job = queue.job(jobId);
        assertEq(uint256(job.state), uint256(IJobQueue.State.Open));
        assertEq(job.specHash, specHash);
    }

    function test_submit_takes_the_document_inline() public {
        bytes memory document = bytes('{"v":1,"prompt":"hi"}');
        spec.inputDigest = sha256(document);
        vm.prank(client);
        queue.submit(spec, document);
    }

    function test_submit_revertsWhen_document_differs() public {
        bytes32 computed = sha256("x");
        vm.prank(client);
        vm.expectRevert(abi.encodeWithSelector(IJobQueue.InputDigestMismatch.selector, computed));
        queue.submit(spec, "x");
    }

    function test_submit_revertsWhen_document_is_large() public {
        vm.prank(client);
        vm.expectRevert(abi.encodeWithSelector(IJobQueue.InputTooLarge.selector, 4_097));
        queue.submit(spec, new bytes(4_097));
    }

    function test_submit_revertsWhen_not_the_client() public {
        vm.prank(bob.cold);
        vm.expectRevert(abi.encodeWithSelector(IJobQueue.NotTheClient.selector, bob.cold));
        queue.submit(spec, "");
    }

    function test_submit_revertsWhen_recipe_is_unknown() public {
        uint64[2] memory unknown = [uint64(0), 3];
        for (uint256 i = 0; i < 2; i++) {
            spec.recipeId = unknown[i];
            vm.prank(client);
            vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.UnknownRecipe.selector, unknown[i]));
            queue.submit(spec, "");
        }
    }

    function test_submit_revertsWhen_deadline_is_out_of_range() public {
        uint40[2] memory bad = [uint40(block.timestamp), uint40(block.timestamp + MAX_DURATION + 1)];
        for (uint256 i = 0; i < 2; i++) {
            spec.deadline = bad[i];
            vm.prank(client);
            vm.expectRevert(abi.encodeWithSelector(IJobQueue.BadDeadline.selector, bad[i]));
            queue.submit(spec, "");
        }
    }

    function test_submit_revertsWhen_lease_is_out_of_range() public {
        uint32[2] memory bad = [uint32(0), MAX_LEASE + 1];
        for (uint256 i = 0; i < 2; i++) {
            spec.leaseSecs = bad[i];
            vm.prank(client);
            vm.expectRevert(abi.encodeWithSelector(IJobQueue.BadLease.selector, bad[i]));
            queue.submit(spec, "");
        }
    }

    function test_submit_revertsWhen_balance_is_short() public {
        spec.client = makeAddr("poor");
        vm.prank(spec.client);
        vm.expectPartialRevert(IVault.InsufficientBalance.selector);
        queue.submit(spec, "");
    }

    function test_the_escrow_rounds_up_and_the_fee_down() public {
        IJobQueue.JobSpec memory spec = newSpec();
        (spec.maxInTokens, spec.maxOutTokens, spec.inPricePerK, spec.outPricePerK) = (1_000, 1, 1, 1);
        assertEq(queue.escrowOf(spec), 2);
        assertEq(queue.feeOf(spec, 1_000, 1), 1);
        assertEq(queue.feeOf(spec, 999, 0), 0);
        spec.maxOutTokens = 0;
        assertEq(queue.escrowOf(spec), 1, "and no higher than it must");
    }

    function test_submit_revertsWhen_escrow_does_not_fit() public {
        (spec.maxInTokens, spec.inPricePerK) = (type(uint32).max, type(uint96).max);
        vm.prank(client);
        vm.expectPartialRevert(SafeCast.SafeCastOverflowedUintDowncast.selector);
        queue.submit(spec, "");
    }

    function test_submitMany_is_submit_for_each() public {
        IJobQueue.JobSpec[] memory specs = new IJobQueue.JobSpec[](3);
        uint256 escrow = 0;
        for (uint256 i = 0; i < 3; i++) {
            specs[i] = newSpec();
            escrow += queue.escrowOf(specs[i]);
        }
        vm.prank(client);
        assertEq(queue.submitMany(specs, new bytes[](3)), 1);
        assertEq(queue.jobCount(), 3);
        assertEq(queue.job(3).specHash, queue.hashSpec(specs[2]));
        assertEq(vault.potOf(address(queue)), escrow);
    }

    function test_submitMany_revertsWhen_lengths_differ() public {
        vm.prank(client);
        vm.expectRevert(IJobQueue.LengthMismatch.selector);
        queue.submitMany(new IJobQueue.JobSpec[](2), new bytes[](1));
    }

    // Claiming

    function test_claim_locks_the_bond_and_starts_the_lease() public {
        uint64 jobId = submit(spec);
        claim(jobId, spec, alice);
        IJobQueue.Job memory job = queue.job(jobId);
        assertEq(uint256(job.state), uint256(IJobQueue.State.Claimed));
        assertEq(job.node, alice.cold);
        assertEq(job.leaseDeadline, block.timestamp + spec.leaseSecs);
        assertEq(job.claimBlock, vm.getBlockNumber() - 1);
        assertEq(job.paramsVersion, 1);
        assertEq(nodes.node(alice.cold).bonded, BOND);
        assertEq(nodes.node(alice.cold).liveClaims, 1);
    }

    function test_claim_ends_with_the_deadline() public {
        spec.deadline = uint40(block.timestamp + 10);
        uint64 jobId = submit(spec);
        claim(jobId, spec, alice);
        assertEq(queue.job(jobId).leaseDeadline, spec.deadline);
    }

    function test_claim_revertsWhen_the_spec_is_another() public {
        uint64 jobId = submit(spec);
        bytes32 stored = queue.hashSpec(spec);
        spec.nonce++;
        vm.prank(alice.hot);
        vm.expectRevert(abi.encodeWithSelector(IJobQueue.SpecMismatch.selector, jobId, stored));
        queue.claim(jobId, spec);
    }

    function test_claim_revertsWhen_not_a_hot_key() public {
        uint64 jobId = submit(spec);
        vm.prank(alice.cold);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotAHotKey.selector, alice.cold));
        queue.claim(jobId, spec);
    }

    /// @dev A hot key that calls some contract lends it nothing.
    function test_claim_revertsWhen_only_the_origin_is_a_hot_key() public {
        uint64 jobId = submit(spec);
        vm.prank(address(this), alice.hot);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotAHotKey.selector, address(this)));
        queue.claim(jobId, spec);
    }

    function test_claim_revertsWhen_claimed() public {
        uint64 jobId = submit(spec);
        claim(jobId, spec, alice);
        vm.prank(bob.hot);
        vm.expectRevert(abi.encodeWithSelector(IJobQueue.WrongState.selector, jobId, IJobQueue.State.Claimed));
        queue.claim(jobId, spec);
    }

    function test_claim_revertsWhen_there_is_no_job() public {
        vm.prank(alice.hot);
        vm.expectRevert(abi.encodeWithSelector(IJobQueue.WrongState.selector, 9, IJobQueue.State.None));
        queue.claim(9, spec);
    }

    function test_claim_revertsWhen_deadline_passed() public {
        uint64 jobId = submit(spec);
        vm.warp(spec.deadline + 1);
        vm.prank(alice.hot);
        vm.expectRevert(abi.encodeWithSelector(IJobQueue.DeadlinePassed.selector, spec.deadline));
        queue.claim(jobId, spec);
    }

    function test_claim_revertsWhen_stake_is_short() public {
        uint64 jobId = submit(spec);
        vm.prank(alice.cold);
        nodes.beginUnstake(5_000 ether - BOND + 1);
        vm.prank(alice.hot);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.InsufficientStake.selector, alice.cold, BOND - 1, BOND));
        queue.claim(jobId, spec);
    }

    function test_claim_revertsWhen_too_many_are_live() public {
        IJobQueue.Params memory params = defaultParams();
        params.maxLiveClaims = 1;
        setParams(params);
        spec = newSpec();
        (uint64 first, uint64 second) = (submit(spec), submit(spec));
        claim(first, spec, alice);
        vm.prank(alice.hot);
        bytes memory refusal = abi.encodeWithSelector(INodeRegistry.TooManyLiveClaims.selector, alice.cold, 1);
        vm.expectRevert(refusal);
        queue.claim(second, spec);

        IJobQueue.Receipt memory receipt = receiptFor(first, spec, alice);
        commit(first, spec, receipt, alice); // its work can still be challenged
        vm.prank(alice.hot);
        vm.expectRevert(refusal);
        queue.claim(second, spec);
        skip(WINDOW);
        finalize(first, spec, receipt);
        claim(second, spec, alice);
        assertEq(nodes.node(alice.cold).bonded, BOND);
    }

    // Leases

    function test_release_costs_a_tenth_of_the_bond_and_reopens() public {
        uint64 jobId = submit(spec);
        claim(jobId, spec, alice);
        vm.prank(alice.hot);
        vm.expectEmit();
        emit IJobQueue.JobReleased(jobId, alice.cold, BOND / 10);
        queue.release(jobId);
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Open));
        assertEq(nodes.node(alice.cold).bonded, 0);
        assertEq(nodes.node(alice.cold).stake, 5_000 ether - BOND / 10);
        assertEq(vault.creditsOf(Spoils.BURNT), BOND / 10);
        assertEq(nodes.forfeitPool(), 0);
        assertEq(nodes.node(alice.cold).liveClaims, 0);
        claim(jobId, spec, bob);
    }

    function test_claiming_again_for_a_better_seed_costs_a_tenth_each_time() public {
        uint64 jobId = submit(spec);
        for (uint256 i = 0; i < 3; i++) {
            claim(jobId, spec, alice);
            vm.prank(alice.hot);
            queue.release(jobId);
        }
        claim(jobId, spec, alice);
        IJobQueue.Receipt memory receipt = receiptFor(jobId, spec, alice);
        commit(jobId, spec, receipt, alice);
        skip(WINDOW);
        uint256 nodesPart = _nodesPart(receipt.fee);
        finalize(jobId, spec, receipt);
        assertEq(vault.creditsOf(alice.cold), nodesPart, "none of it returns");
        assertEq(nodes.node(alice.cold).stake, 5_000 ether - 3 * (BOND / 10));
    }

    function test_release_revertsWhen_not_the_node() public {
        uint64 jobId = submit(spec);
        claim(jobId, spec, alice);
        vm.prank(bob.hot);
        vm.expectRevert(abi.encodeWithSelector(IJobQueue.NotTheNode.selector, bob.hot));
        queue.release(jobId);
    }

    function test_a_lease_holds_through_its_last_second() public {
        uint64 jobId = submit(spec);
        claim(jobId, spec, alice);
        IJobQueue.Receipt memory receipt = receiptFor(jobId, spec, alice);
        skip(spec.leaseSecs);
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Claimed));
        commit(jobId, spec, receipt, alice);
    }

    function test_commit_revertsWhen_the_lease_ended() public {
        uint64 jobId = submit(spec);
        claim(jobId, spec, alice);
        IJobQueue.Receipt memory receipt = receiptFor(jobId, spec, alice);
        uint40 ended = queue.job(jobId).leaseDeadline;
        vm.warp(ended + 1);
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Open), "expiry is computed on read");
        assertEq(queue.job(jobId).node, address(0));
        vm.startPrank(alice.hot);
        vm.expectRevert(abi.encodeWithSelector(IJobQueue.LeaseExpired.selector, ended));
        queue.commit(jobId, spec, answerOf(receipt));
        vm.expectRevert(abi.encodeWithSelector(IJobQueue.LeaseExpired.selector, ended));
        queue.release(jobId);
    }

    function test_a_lapsed_bond_goes_to_whoever_finishes_but_for_a_tenth() public {
        uint64 jobId = submit(spec);
        claim(jobId, spec, alice);
        skip(spec.leaseSecs + 1);
        vm.expectEmit();
        emit IJobQueue.LeaseLapsed(jobId, alice.cold, BOND);
        claim(jobId, spec, bob);
        assertEq(nodes.node(alice.cold).stake, 5_000 ether - BOND);
        assertEq(nodes.node(alice.cold).liveClaims, 0);
        assertEq(queue.job(jobId).forfeited, BOND - BOND / 10);

        IJobQueue.Receipt memory receipt = receiptFor(jobId, spec, bob);
        commit(jobId, spec, receipt, bob);
        skip(WINDOW);
        vm.expectEmit();
        emit INodeRegistry.ForfeitPaid(bob.cold, BOND - BOND / 10);
        finalize(jobId, spec, receipt);
        assertEq(nodes.forfeitPool(), 0);
        assertEq(queue.job(jobId).forfeited, 0);
    }

    function test_a_late_finisher_who_claims_again_gets_the_bond_back_but_for_a_tenth() public {
        uint64 jobId = submit(spec);
        claim(jobId, spec, alice);
        skip(spec.leaseSecs + 1);
        claim(jobId, spec, alice);
        IJobQueue.Receipt memory receipt = receiptFor(jobId, spec, alice);
        commit(jobId, spec, receipt, alice);
        skip(WINDOW);
        uint256 nodesPart = _nodesPart(receipt.fee);
        finalize(jobId, spec, receipt);
        assertEq(vault.creditsOf(alice.cold), nodesPart + BOND - BOND / 10);
        assertEq(nodes.node(alice.cold).stake, 5_000 ether - BOND);
        assertEq(nodes.node(alice.cold).bonded, 0);
    }

    function test_bonds_of_several_lapsed_claims_go_to_the_client_on_expiry() public {
        uint64 jobId = submit(spec);
        claim(jobId, spec, alice);
        skip(spec.leaseSecs + 1);
        claim(jobId, spec, bob);
        vm.warp(spec.deadline + 1);
        uint256 before = vault.balanceOf(client);
        vm.expectEmit();
        emit IJobQueue.JobExpired(jobId, queue.escrowOf(spec));
        queue.expire(jobId, spec);
        assertEq(vault.balanceOf(client), before + queue.escrowOf(spec));
        assertEq(vault.creditsOf(client), 2 * (BOND - BOND / 10));
        assertEq(nodes.node(bob.cold).liveClaims, 0);
        assertEq(vault.potOf(address(queue)), 0);
    }

    // Ending without a receipt

    function test_expire_revertsWhen_before_the_deadline() public {
        uint64 jobId = submit(spec);
        vm.warp(spec.deadline);
        vm.expectRevert(abi.encodeWithSelector(IJobQueue.NotExpired.selector, jobId));
        queue.expire(jobId, spec);
    }

    function test_expire_revertsWhen_committed() public {
        (uint64 jobId,) = committedJob(spec, alice);
        vm.warp(spec.deadline + 1);
        vm.expectRevert(abi.encodeWithSelector(IJobQueue.WrongState.selector, jobId, IJobQueue.State.Committed));
        queue.expire(jobId, spec);
    }

    function test_cancel_refunds_the_client() public {
        uint256 before = vault.balanceOf(client);
        uint64 jobId = submit(spec);
        vm.prank(client);
        queue.cancel(jobId, spec);
        assertEq(vault.balanceOf(client), before);
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Cancelled));
    }

    function test_cancel_revertsWhen_not_the_client() public {
        uint64 jobId = submit(spec);
        vm.expectRevert(abi.encodeWithSelector(IJobQueue.NotTheClient.selector, address(this)));
        queue.cancel(jobId, spec);
    }

    function test_cancel_revertsWhen_claimed() public {
        uint64 jobId = submit(spec);
        claim(jobId, spec, alice);
        vm.prank(client);
        vm.expectRevert(abi.encodeWithSelector(IJobQueue.WrongState.selector, jobId, IJobQueue.State.Claimed));
        queue.cancel(jobId, spec);
    }

    function test_terminal_jobs_refuse_everything() public {
        uint64 jobId = submit(spec);
        vm.prank(client);
        queue.cancel(jobId, spec);
        bytes memory refusal = abi.encodeWithSelector(IJobQueue.WrongState.selector, jobId, IJobQueue.State.Cancelled);
        vm.warp(spec.deadline + 1);
        vm.expectRevert(refusal);
        queue.expire(jobId, spec);
        vm.prank(client);
        vm.expectRevert(refusal);
        queue.cancel(jobId, spec);
        vm.prank(alice.hot);
        vm.expectRevert(refusal);
        queue.claim(jobId, spec);
        vm.prank(alice.hot);
        vm.expectRevert(refusal);
        queue.release(jobId);
    }

    // Committing

    function test_commit_records_the_receipt() public {
        uint64 jobId = submit(spec);
        claim(jobId, spec, alice);
        IJobQueue.Receipt memory receipt = receiptFor(jobId, spec, alice);
        vm.expectEmit();
        emit IJobQueue.JobCommitted(jobId, alice.cold, queue.hashReceipt(receipt), receipt);
        vm.prank(alice.hot);
        queue.commit(jobId, spec, answerOf(receipt));
        IJobQueue.Job memory job = queue.job(jobId);
        assertEq(job.settlementHash, keccak256(abi.encode(settlementOf(spec, receipt))));
        assertEq(job.specHash, 0);
        assertEq(job.finalizableAt, block.timestamp + WINDOW);
        assertEq(nodes.node(alice.cold).liveClaims, 1, "live until final");
        assertEq(nodes.node(alice.cold).bonded, BOND, "bonded until final");
    }

    function test_commit_revertsWhen_the_seed_is_chosen() public {
        uint64 jobId = submit(spec);
        vm.prank(alice.hot);
        queue.claim(jobId, spec);
        IJobQueue.Receipt memory receipt = receiptFor(jobId, spec, alice);
        vm.prank(alice.hot);
        vm.expectRevert(abi.encodeWithSelector(IJobQueue.TooEarly.selector, vm.getBlockNumber()));
        queue.commit(jobId, spec, answerOf(receipt));

        vm.roll(vm.getBlockNumber() + 1);
        uint64 seed = seedOf(jobId, spec);
        receipt.seed = seed + 1;
        vm.prank(alice.hot);
        vm.expectRevert(abi.encodeWithSelector(IJobQueue.WrongSeed.selector, seed));
        queue.commit(jobId, spec, answerOf(receipt));
    }

    function test_commit_revertsWhen_the_chain_has_forgotten_the_claims_block() public {
        uint64 jobId = submit(spec);
        claim(jobId, spec, alice);
        IJobQueue.Receipt memory receipt = receiptFor(jobId, spec, alice);
        _expectForgotten(jobId, receipt, 257);
        vm.prank(alice.hot);
        queue.release(jobId);
    }

    function test_commit_is_taken_at_the_end_of_what_every_chain_knows() public {
        uint64 jobId = submit(spec);
        claim(jobId, spec, alice);
        IJobQueue.Receipt memory receipt = receiptFor(jobId, spec, alice);
        vm.roll(queue.job(jobId).claimBlock + 256);
        commit(jobId, spec, receipt, alice);
    }

    function test_commit_asks_the_chains_history_for_the_claims_block() public {
        uint64 jobId = submit(spec);
        claim(jobId, spec, alice);
        startHistory();
        uint64 claimBlock = queue.job(jobId).claimBlock;
        IJobQueue.Receipt memory receipt = receiptFor(jobId, spec, alice);
        vm.roll(claimBlock + 257);
        assertEq(blockhash(claimBlock), 0);
        receipt.seed++;
        vm.prank(alice.hot);
        vm.expectRevert(abi.encodeWithSelector(IJobQueue.WrongSeed.selector, receipt.seed - 1));
        queue.commit(jobId, spec, answerOf(receipt));

        receipt.seed--;
        _expectForgotten(jobId, receipt, 8_192);
        vm.roll(claimBlock + 8_191);
        commit(jobId, spec, receipt, alice);
    }

    function test_commit_revertsWhen_the_chains_history_began_after_the_claim() public {
        uint64 jobId = submit(spec);
        claim(jobId, spec, alice);
        IJobQueue.Receipt memory receipt = receiptFor(jobId, spec, alice);
        vm.roll(vm.getBlockNumber() + 1);
        startHistory();
        _expectForgotten(jobId, receipt, 257);
    }

    function test_commit_revertsWhen_the_end_cannot_be() public {
        uint64 jobId = submit(spec);
        claim(jobId, spec, alice);
        uint40 leaseDeadline = queue.job(jobId).leaseDeadline;
        for (uint8 i = 0; i < 2; i++) {
            IJobQueue.Receipt memory receipt = receiptFor(jobId, spec, alice);
            (receipt.finishReason, receipt.finishedAt) = i == 0 ? (2, receipt.finishedAt) : (1, leaseDeadline + 1);
            vm.prank(alice.hot);
            vm.expectRevert(
                abi.encodeWithSelector(IJobQueue.BadFinish.selector, receipt.finishReason, receipt.finishedAt)
            );
            queue.commit(jobId, spec, answerOf(receipt));
        }
    }

    function test_commit_revertsWhen_over_the_limits() public {
        uint64 jobId = submit(spec);
        claim(jobId, spec, alice);
        for (uint32 i = 0; i < 2; i++) {
            (uint32 inTokens, uint32 outTokens) = (spec.maxInTokens + i, spec.maxOutTokens + 1 - i);
            IJobQueue.Receipt memory receipt = receiptFor(jobId, spec, alice, inTokens, outTokens);
            vm.prank(alice.hot);
            vm.expectRevert(abi.encodeWithSelector(IJobQueue.OverLimit.selector, inTokens, outTokens));
            queue.commit(jobId, spec, answerOf(receipt));
        }
    }

    function test_commit_revertsWhen_sent_by_another_node() public {
        uint64 jobId = submit(spec);
        claim(jobId, spec, alice);
        IJobQueue.Receipt memory receipt = receiptFor(jobId, spec, alice);
        vm.prank(bob.hot);
        vm.expectRevert(abi.encodeWithSelector(IJobQueue.NotTheNode.selector, bob.hot));
        queue.commit(jobId, spec, answerOf(receipt));
    }

    function test_commit_works_after_the_hot_key_was_replaced() public {
        uint64 jobId = submit(spec);
        claim(jobId, spec, alice);
        (address fresh, uint256 freshKey) = makeAddrAndKey("fresh");
        setHotKey(alice, fresh, freshKey);
        IJobQueue.Receipt memory receipt = receiptFor(jobId, spec, alice);
        vm.prank(alice.hot);
        vm.expectRevert(abi.encodeWithSelector(IJobQueue.NotTheNode.selector, alice.hot));
        queue.commit(jobId, spec, answerOf(receipt));
        vm.prank(fresh);
        queue.commit(jobId, spec, answerOf(receipt));
    }

    function test_a_hot_key_may_be_a_contract() public {
        (address key, uint256 secret) = makeAddrAndKey("inner");
        ContractHotKey wallet = new ContractHotKey(key);
        setHotKey(alice, address(wallet), secret);
        uint64 jobId = submit(spec);
        wallet.claim(queue, jobId, spec);
        vm.roll(vm.getBlockNumber() + 1);
        IJobQueue.Receipt memory receipt = receiptFor(jobId, spec, alice);
        wallet.commit(queue, jobId, spec, answerOf(receipt));
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Committed));
    }

    // Owner

    function test_setParams_leaves_running_jobs_alone() public {
        uint64 jobId = submit(spec);
        claim(jobId, spec, alice);
        IJobQueue.Params memory params = defaultParams();
        (params.bond, params.windowSecs) = (2 * BOND, 2 * WINDOW);
        assertEq(setParams(params), 2);

        IJobQueue.Receipt memory receipt = receiptFor(jobId, spec, alice);
        commit(jobId, spec, receipt, alice);
        assertEq(queue.job(jobId).finalizableAt, block.timestamp + WINDOW);
        skip(WINDOW);
        finalize(jobId, spec, receipt);
        assertEq(nodes.node(alice.cold).bonded, 0);

        jobId = submit(spec);
        claim(jobId, spec, alice);
        assertEq(nodes.node(alice.cold).bonded, 2 * BOND);
        assertEq(queue.job(jobId).paramsVersion, 2);
    }

    function test_governed_calls_revertWhen_anyone_else_calls() public {
        bytes memory refusal = abi.encodeWithSelector(IAccessManaged.AccessManagedUnauthorized.selector, address(this));
        vm.expectRevert(refusal);
        queue.setParams(defaultParams());
        vm.expectRevert(refusal);
        queue.pause();
        vm.expectRevert(refusal);
        queue.unpause();
    }

    function test_setParams_revertsWhen_a_limit_is_zero() public {
        IJobQueue.Params memory params = defaultParams();
        params.maxLeaseSecs = 0;
        _assertRefused(params);
    }

    function test_setParams_revertsWhen_stake_could_leave_within_a_window() public {
        IJobQueue.Params memory params = defaultParams();
        params.windowSecs = UNSTAKE_DELAY;
        _assertRefused(params);
    }

    function test_pause_stops_submit_and_claim() public {
        uint64 jobId = submit(spec);
        pause();
        vm.prank(client);
        vm.expectRevert(Pausable.EnforcedPause.selector);
        queue.submit(spec, "");
        vm.prank(client);
        vm.expectRevert(Pausable.EnforcedPause.selector);
        queue.submitMany(new IJobQueue.JobSpec[](0), new bytes[](0));
        vm.prank(alice.hot);
        vm.expectRevert(Pausable.EnforcedPause.selector);
        queue.claim(jobId, spec);
    }

    function test_pause_stops_no_exit() public {
        (uint64 running, uint64 released, uint64 open, uint64 expiring) =
            (submit(spec), submit(spec), submit(spec), submit(spec));
        claim(running, spec, alice);
        claim(released, spec, alice);
        pause();

        IJobQueue.Receipt memory receipt = receiptFor(running, spec, alice);
        commit(running, spec, receipt, alice);
        vm.prank(alice.hot);
        queue.release(released);
        vm.prank(client);
        queue.cancel(open, spec);
        vm.warp(spec.deadline + WINDOW);
        queue.expire(expiring, spec);
        finalize(running, spec, receipt);
        vm.prank(alice.cold);
        nodes.beginUnstake(5_000 ether - BOND / 10);
        skip(UNSTAKE_DELAY);
        vm.startPrank(alice.cold);
        nodes.withdrawStake();
        vault.withdraw(alice.cold, vault.balanceOf(alice.cold));
        assertGt(vault.claimCredits(alice.cold), 0);
    }

    function test_constructor_revertsWhen_not_wired() public {
        vm.expectPartialRevert(IJobQueue.NotAModule.selector);
        new JobQueue(nodes, adapters, owner, defaultParams());
    }

    function _assertRefused(IJobQueue.Params memory params) private {
        vm.prank(owner);
        vm.expectRevert(IJobQueue.BadParams.selector);
        queue.setParams(params);
    }

    function _expectForgotten(uint64 jobId, IJobQueue.Receipt memory receipt, uint64 age) private {
        uint64 claimBlock = queue.job(jobId).claimBlock;
        vm.roll(claimBlock + age);
        vm.prank(alice.hot);
        vm.expectRevert(abi.encodeWithSelector(IJobQueue.ClaimForgotten.selector, claimBlock));
        queue.commit(jobId, spec, answerOf(receipt));
    }

    // The ensemble's legs take 40 %: every one of their basis points is whole.
    function _nodesPart(uint256 fee) private pure returns (uint256) {
        return fee * 6_000 / 10_000;
    }
}
