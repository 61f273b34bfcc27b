// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {IAdapterRegistry} from "src/interfaces/IAdapterRegistry.sol";
import {IJobQueue} from "src/interfaces/IJobQueue.sol";
import {ISessions} from "src/interfaces/ISessions.sol";
import {JobFlags} from "src/libraries/JobFlags.sol";

import {MarketTest} from "./utils/MarketTest.sol";

/// @notice Who may use an adapter, what that costs, and that it never touches a job that runs.
contract AccessTest is MarketTest {
    uint72 private constant USE_FEE = 0.3 ether;

    IJobQueue.JobSpec private spec;

    function setUp() public override {
        super.setUp();
        spec = newSpec();
    }

    // Allow-lists

    function test_an_allow_list_binds_new_jobs() public {
        _restrict();
        spec.flags = JobFlags.GUARDED;
        _assertRefused(abi.encodeWithSelector(IAdapterRegistry.NotAllowed.selector, ADAPTER_A, client));
        _allow(client, true);
        submit(spec);
        _allow(client, false);
        _assertRefused(abi.encodeWithSelector(IAdapterRegistry.NotAllowed.selector, ADAPTER_A, client));
    }

    function test_submit_revertsWhen_a_guarded_recipe_is_not_flagged() public {
        _restrict();
        _allow(client, true);
        _assertRefused(abi.encodeWithSelector(IJobQueue.GuardedRecipe.selector, ensemble));
    }

    function test_submit_revertsWhen_a_flag_means_nothing() public {
        spec.flags = 16;
        _assertRefused(abi.encodeWithSelector(IJobQueue.BadFlags.selector, 16));
    }

    function test_a_revocation_stops_a_claim_and_the_client_gets_its_money_back() public {
        _restrict();
        _allow(client, true);
        uint256 before = vault.balanceOf(client);
        spec.flags = JobFlags.GUARDED;
        uint64 jobId = submit(spec);
        _allow(client, false);
        vm.prank(alice.hot);
        vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.NotAllowed.selector, ADAPTER_A, client));
        queue.claim(jobId, spec);
        vm.prank(client);
        queue.cancel(jobId, spec);
        assertEq(vault.balanceOf(client), before);
    }

    function test_a_revocation_leaves_a_claimed_job_alone() public {
        _restrict();
        _allow(client, true);
        spec.flags = JobFlags.GUARDED;
        uint64 jobId = submit(spec);
        claim(jobId, spec, alice);
        _allow(client, false);
        vm.prank(authorA);
        adapters.takeDown(ADAPTER_A);
        IJobQueue.Receipt memory receipt = receiptFor(jobId, spec, alice);
        commit(jobId, spec, receipt, alice);
        skip(WINDOW);
        finalize(jobId, spec, receipt);
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Finalized));
    }

    function test_an_open_job_submitted_before_the_recipe_was_guarded_is_claimed() public {
        uint64 jobId = submit(spec);
        _restrict();
        claim(jobId, spec, alice);
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Claimed));
    }

    function test_an_owner_may_always_use_its_own() public {
        _restrict();
        assertTrue(adapters.canUse(ADAPTER_A, authorA));
        assertFalse(adapters.canUse(ADAPTER_A, client));
        assertTrue(adapters.canUse(ADAPTER_B, client));
    }

    function test_a_recipe_opens_again() public {
        _restrict();
        vm.prank(authorA);
        adapters.setAccess(ADAPTER_A, IAdapterRegistry.Access.Public, 0);
        vm.expectEmit();
        emit IAdapterRegistry.GateSet(ensemble, IAdapterRegistry.Gate.Open);
        adapters.refresh(ensemble);
        submit(spec);
    }

    function test_a_new_recipe_of_a_restricted_adapter_is_guarded_at_once() public {
        _restrict();
        (bytes32[] memory digests, int32[] memory weights) = ensembleOf(1, 1);
        uint64 recipeId = adapters.registerRecipe(BASE_ID, digests, weights);
        assertEq(uint256(adapters.recipe(recipeId).gate), uint256(IAdapterRegistry.Gate.Guarded));
    }

    // Taking down

    function test_a_taken_down_adapter_serves_no_new_job() public {
        vm.prank(authorB);
        vm.expectEmit();
        emit IAdapterRegistry.AdapterTakenDown(ADAPTER_B);
        adapters.takeDown(ADAPTER_B);
        assertEq(uint256(adapters.refresh(ensemble)), uint256(IAdapterRegistry.Gate.Guarded));
        spec.flags = JobFlags.GUARDED;
        _assertRefused(abi.encodeWithSelector(IAdapterRegistry.AdapterIsTakenDown.selector, ADAPTER_B));
        (bytes32[] memory digests, int32[] memory weights) = ensembleOf(1, 1);
        vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.AdapterIsTakenDown.selector, ADAPTER_B));
        adapters.registerRecipe(BASE_ID, digests, weights);
        assertFalse(adapters.canUse(ADAPTER_B, authorB));
    }

    // Paying per use

    function test_a_use_fee_is_escrowed_and_paid_to_the_owner() public {
        _price();
        uint256 before = vault.balanceOf(client);
        (uint96 escrow, uint96 useFee, uint32 flags) = queue.quote(spec);
        assertEq(useFee, USE_FEE);
        assertEq(flags, JobFlags.GUARDED);
        uint64 jobId = submit(spec);
        assertEq(vault.balanceOf(client), before - escrow - USE_FEE);
        claim(jobId, spec, alice);
        IJobQueue.Receipt memory receipt = receiptFor(jobId, spec, alice);
        commit(jobId, spec, receipt, alice);
        skip(WINDOW);
        uint256 royalty = receipt.fee * 1_500 / 10_000;
        vm.expectEmit(address(queue));
        emit IJobQueue.Paid(authorA, IAdapterRegistry.Role.Use, spec.recipeId, USE_FEE);
        finalize(jobId, spec, receipt);
        assertEq(vault.creditsOf(authorA), royalty + USE_FEE);
        assertEq(vault.balanceOf(client), before - receipt.fee - USE_FEE);
        assertEq(vault.potOf(address(queue)), 0);
    }

    function test_a_use_fee_returns_with_a_condemned_job() public {
        _price();
        spec.flags |= JobFlags.PUBLISH;
        uint256 before = vault.balanceOf(client);
        (uint64 jobId, IJobQueue.Receipt memory receipt) = committedJob(spec, alice);
        skip(10 minutes + 1);
        outputs.resolve(jobId, settlementOf(spec, receipt));
        assertEq(vault.balanceOf(client), before);
        assertEq(vault.potOf(address(queue)), 0);
    }

    function testFuzz_use_fees_of_a_batch_are_exact(uint72 feeA, uint72 feeB, uint8 jobs, bool free) public {
        (feeA, feeB) = (uint72(bound(feeA, 1, 100 ether)), uint72(bound(feeB, 1, 100 ether)));
        jobs = uint8(bound(jobs, 1, 6));
        _setFee(authorA, ADAPTER_A, feeA);
        _setFee(authorB, ADAPTER_B, feeB);
        _reregister();
        if (free) (spec.inPricePerK, spec.outPricePerK) = (0, 0);
        uint64[] memory ids = new uint64[](jobs);
        IJobQueue.Settlement[] memory settlements = new IJobQueue.Settlement[](jobs);
        for (uint256 i = 0; i < jobs; i++) {
            spec.nonce = i;
            IJobQueue.Receipt memory receipt;
            (ids[i], receipt) = committedJob(spec, alice);
            settlements[i] = settlementOf(spec, receipt);
        }
        skip(WINDOW);
        queue.finalizeBatch(ids, settlements);
        uint256 fees = settlements[0].fee * uint256(jobs);
        assertEq(vault.creditsOf(authorA), fees * 1_500 / 10_000 + uint256(feeA) * jobs);
        assertEq(vault.creditsOf(authorB), fees * 750 / 10_000 + uint256(feeB) * jobs);
        assertEq(vault.potOf(address(queue)), 0);
    }

    function test_a_use_fee_returns_with_the_escrow() public {
        _price();
        uint256 before = vault.balanceOf(client);
        uint64 cancelled = submit(spec);
        vm.prank(client);
        queue.cancel(cancelled, spec);
        assertEq(vault.balanceOf(client), before);
        uint64 expired = submit(spec);
        vm.warp(spec.deadline + 1);
        queue.expire(expired, spec);
        assertEq(vault.balanceOf(client), before);
    }

    function test_a_changed_fee_wants_a_new_recipe() public {
        uint64 free = ensemble;
        _price();
        uint64 priced = spec.recipeId;
        assertNotEq(priced, free);
        spec.recipeId = free;
        _assertRefused(abi.encodeWithSelector(IAdapterRegistry.TermsChanged.selector, free));
        spec.recipeId = priced;
        submit(spec);
        _setFee(authorA, ADAPTER_A, USE_FEE + 1);
        _assertRefused(abi.encodeWithSelector(IAdapterRegistry.TermsChanged.selector, priced));
        vm.prank(authorA);
        adapters.setAccess(ADAPTER_A, IAdapterRegistry.Access.Public, 0);
        (bytes32[] memory digests, int32[] memory weights) = ensembleOf(3, -1);
        assertEq(adapters.recipeIdOf(BASE_ID, digests, weights), free, "the former terms are the former recipe's");
    }

    function test_a_changed_fee_leaves_a_submitted_jobs_money_alone() public {
        _price();
        uint64 jobId = submit(spec);
        claim(jobId, spec, alice);
        _setFee(authorA, ADAPTER_A, USE_FEE * 5);
        IJobQueue.Receipt memory receipt = receiptFor(jobId, spec, alice);
        commit(jobId, spec, receipt, alice);
        skip(WINDOW);
        finalize(jobId, spec, receipt);
        assertEq(vault.creditsOf(authorA), receipt.fee * 1_500 / 10_000 + USE_FEE);
    }

    function test_setAccess_revertsWhen_fee_and_access_do_not_match() public {
        vm.startPrank(authorA);
        vm.expectPartialRevert(IAdapterRegistry.BadAccess.selector);
        adapters.setAccess(ADAPTER_A, IAdapterRegistry.Access.PayPerUse, 0);
        vm.expectPartialRevert(IAdapterRegistry.BadAccess.selector);
        adapters.setAccess(ADAPTER_A, IAdapterRegistry.Access.AllowList, 1);
    }

    function test_sessions_refuse_recipes_with_use_fees() public {
        _price();
        ensemble = spec.recipeId;
        bytes32 sessionId = openSession(alice, 100 ether, 1);
        (ISessions.Voucher memory voucher, ISessions.Line[] memory lines, bytes memory signature) =
            voucherFor(sessionId, 1 ether, 2 ether, clientKey);
        vm.expectRevert(abi.encodeWithSelector(ISessions.PayPerUse.selector, ensemble));
        sessions.settle(voucher, lines, signature);
    }

    // Versions, licences, owners

    function test_versions_form_a_row() public {
        bytes32 third = bytes32(uint256(0xc));
        vm.startPrank(authorA);
        adapters.registerAdapter(bytes32(uint256(2)), BASE_ID, new uint32[](0), "a, again");
        adapters.registerAdapter(third, BASE_ID, new uint32[](0), "a, once more");
        adapters.supersede(ADAPTER_A, bytes32(uint256(2)));
        vm.expectEmit();
        emit IAdapterRegistry.AdapterSuperseded(bytes32(uint256(2)), third, 3);
        adapters.supersede(bytes32(uint256(2)), third);
        assertEq(adapters.adapter(third).version, 3);
        assertEq(adapters.adapter(third).predecessor, bytes32(uint256(2)));
        assertEq(adapters.adapter(ADAPTER_A).successor, bytes32(uint256(2)));
        vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.NotALaterVersion.selector, ADAPTER_A));
        adapters.supersede(third, ADAPTER_A); // a ring
        vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.NotALaterVersion.selector, third));
        adapters.supersede(ADAPTER_A, third); // a fork
        vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.NotALaterVersion.selector, third));
        adapters.supersede(third, third);
    }

    function test_a_licence_is_its_owners_word() public {
        vm.prank(authorA);
        vm.expectEmit();
        emit IAdapterRegistry.LicenceSet(ADAPTER_A, "Apache-2.0");
        adapters.setLicence(ADAPTER_A, "Apache-2.0");
        assertEq(adapters.adapter(ADAPTER_A).licence, "Apache-2.0");
    }

    function test_terms_revertWhen_set_by_another() public {
        bytes memory refusal = abi.encodeWithSelector(IAdapterRegistry.NotOwner.selector, authorB);
        vm.startPrank(authorB);
        vm.expectRevert(refusal);
        adapters.setAccess(ADAPTER_A, IAdapterRegistry.Access.AllowList, 0);
        vm.expectRevert(refusal);
        adapters.allow(ADAPTER_A, new address[](0), true);
        vm.expectRevert(refusal);
        adapters.takeDown(ADAPTER_A);
        vm.expectRevert(refusal);
        adapters.setLicence(ADAPTER_A, "MIT");
        vm.expectRevert(refusal);
        adapters.supersede(ADAPTER_A, ADAPTER_B);
        vm.expectRevert(refusal);
        adapters.supersede(ADAPTER_B, ADAPTER_A);
    }

    function test_allow_revertsWhen_the_list_is_long() public {
        vm.prank(authorA);
        vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.TooMany.selector, 65, 64));
        adapters.allow(ADAPTER_A, new address[](65), true);
    }

    function test_views_revertWhen_there_is_no_such_recipe() public {
        bytes memory refusal = abi.encodeWithSelector(IAdapterRegistry.UnknownRecipe.selector, 99);
        vm.expectRevert(refusal);
        adapters.terms(99);
        vm.expectRevert(refusal);
        adapters.checkUse(99, client);
        vm.expectRevert(refusal);
        adapters.refresh(99);
    }

    function test_a_quote_of_an_open_recipe_is_its_escrow() public view {
        (uint96 escrow, uint96 useFee, uint32 flags) = queue.quote(spec);
        assertEq(escrow, queue.escrowOf(spec));
        assertEq(useFee, 0);
        assertEq(flags, 0);
    }

    function _restrict() private {
        vm.prank(authorA);
        adapters.setAccess(ADAPTER_A, IAdapterRegistry.Access.AllowList, 0);
        adapters.refresh(ensemble);
    }

    function _allow(address account, bool allowed) private {
        address[] memory accounts = new address[](1);
        accounts[0] = account;
        vm.prank(authorA);
        vm.expectEmit();
        emit IAdapterRegistry.Allowed(ADAPTER_A, account, allowed);
        adapters.allow(ADAPTER_A, accounts, allowed);
    }

    /// @dev Adapter A costs a fee a use; `spec` is for the recipe that says so.
    function _price() private {
        _setFee(authorA, ADAPTER_A, USE_FEE);
        _reregister();
    }

    function _setFee(address author, bytes32 digest, uint72 fee) private {
        vm.prank(author);
        adapters.setAccess(digest, IAdapterRegistry.Access.PayPerUse, fee);
    }

    function _reregister() private {
        (bytes32[] memory digests, int32[] memory weights) = ensembleOf(3, -1);
        spec.recipeId = adapters.registerRecipe(BASE_ID, digests, weights);
        spec.flags = JobFlags.GUARDED;
    }

    function _assertRefused(bytes memory reason) private {
        vm.prank(client);
        vm.expectRevert(reason);
        queue.submit(spec, "");
    }
}
