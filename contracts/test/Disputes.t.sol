// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {Disputes} from "src/Disputes.sol";
import {IDisputes} from "src/interfaces/IDisputes.sol";
import {IJobQueue} from "src/interfaces/IJobQueue.sol";
import {INodeRegistry} from "src/interfaces/INodeRegistry.sol";

import {MarketTest} from "./utils/MarketTest.sol";

contract DisputesTest is MarketTest {
    address private constant BURNT = 0x000000000000000000000000000000000000dEaD;

    struct Proof {
        IDisputes.Lane lane;
        IJobQueue.JobSpec spec;
        IDisputes.SignedReceipt first;
        IDisputes.SignedReceipt second;
        address hotKey;
    }

    address private challenger = makeAddr("challenger");
    Proof private proof;

    function setUp() public override {
        super.setUp();
        proof.spec = newSpec();
        proof.first.receipt = receiptFor(1, proof.spec, alice);
        proof.second.receipt = receiptFor(1, proof.spec, alice);
        proof.second.receipt.outputDigest = keccak256("another answer");
        _sign();
    }

    // Equivocation

    function test_two_receipts_for_one_work_cost_half_the_stake() public {
        vm.expectEmit();
        emit IDisputes.EquivocationProven(alice.cold, proof.first.receipt.workId, challenger, client, 2_500 ether);
        _prove();
        assertEq(nodes.node(alice.cold).stake, 2_500 ether);
        assertEq(vault.creditsOf(challenger), 1_250 ether);
        assertEq(vault.creditsOf(client), 625 ether);
        assertEq(vault.creditsOf(BURNT), 625 ether);
        assertEq(nodes.forfeitPool(), 0);
        assertTrue(disputes.proven(alice.cold, proof.first.receipt.workId));
    }

    function test_stake_in_withdrawal_is_slashed() public {
        vm.prank(alice.cold);
        nodes.beginUnstake(5_000 ether);
        _prove();
        assertEq(nodes.node(alice.cold).unstaking, 2_500 ether);
        skip(UNSTAKE_DELAY);
        uint256 before = vault.balanceOf(alice.cold);
        vm.prank(alice.cold);
        nodes.withdrawStake();
        assertEq(vault.balanceOf(alice.cold), before + 2_500 ether);
    }

    function test_running_jobs_survive_a_slashing() public {
        IJobQueue.JobSpec memory spec = newSpec();
        uint64 jobId = submit(spec);
        claim(jobId, spec, alice);
        _prove();
        assertEq(nodes.node(alice.cold).stake, 2_500 ether);
        IJobQueue.Receipt memory receipt = receiptFor(jobId, spec, alice);
        commit(jobId, spec, receipt, alice);
        skip(WINDOW);
        finalize(jobId, spec, receipt);
        assertEq(nodes.node(alice.cold).bonded, 0);
    }

    /// @dev Or a node would lock all it has for one job, and cheat in the signed lane for nothing: proven by itself, the
    /// work could not even be proven again. The bond stays whole until the job that holds it has ended.
    function test_stake_that_claims_hold_is_slashed_as_they_end() public {
        IJobQueue.Params memory params = defaultParams();
        params.bond = 4_000 ether;
        setParams(params);
        IJobQueue.JobSpec memory spec = newSpec();
        uint64 jobId = submit(spec);
        claim(jobId, spec, alice);
        _prove();
        assertEq(nodes.node(alice.cold).stake, 4_000 ether, "what was free is gone");
        assertEq(nodes.owed(alice.cold), 1_500 ether, "and half of the stake was due");
        assertEq(vault.creditsOf(challenger), 500 ether);
        IJobQueue.Receipt memory receipt = receiptFor(jobId, spec, alice);
        commit(jobId, spec, receipt, alice);
        skip(WINDOW);
        uint256 burnt = vault.creditsOf(BURNT);
        finalize(jobId, spec, receipt);
        assertEq(nodes.node(alice.cold).stake, 2_500 ether);
        assertEq(nodes.node(alice.cold).bonded, 0);
        assertEq(nodes.owed(alice.cold), 0);
        assertEq(vault.creditsOf(BURNT), burnt + 1_500 ether);
    }

    /// @dev Or its accomplices would open jobs for all it has, let their leases lapse once it is caught, and take the bonds.
    function test_bonds_that_are_lost_pay_what_a_slashing_is_owed_first() public {
        IJobQueue.Params memory params = defaultParams();
        params.bond = 2_500 ether;
        setParams(params);
        IJobQueue.JobSpec[2] memory specs = [newSpec(), newSpec()];
        uint64[2] memory jobIds = [submit(specs[0]), submit(specs[1])];
        for (uint256 i = 0; i < 2; i++) {
            claim(jobIds[i], specs[i], alice);
        }
        _prove();
        assertEq(nodes.owed(alice.cold), 2_500 ether, "nothing was free");
        skip(specs[0].leaseSecs + 1);
        for (uint256 i = 0; i < 2; i++) {
            vm.prank(client);
            queue.cancel(jobIds[i], specs[i]);
        }
        assertEq(vault.creditsOf(BURNT), 2_500 ether + 250 ether, "half of the stake is gone, and a tenth of a bond");
        assertEq(vault.creditsOf(client), 2_500 ether - 250 ether, "the rest of that bond is for the job that waited");
        assertEq(nodes.node(alice.cold).stake, 0);
        assertEq(nodes.owed(alice.cold), 0);
    }

    /// @dev A node that slashes itself to be out before its exit delay loses a quarter of it for good.
    function test_accomplices_of_a_slashed_node_win_at_most_three_quarters_back() public {
        proof.spec.client = challenger;
        (proof.first.receipt.specHash, proof.second.receipt.specHash) =
        (queue.hashSpec(proof.spec), queue.hashSpec(proof.spec));
        _sign();
        _prove();
        assertEq(vault.creditsOf(challenger), 2_500 ether * 3 / 4);
        assertEq(vault.creditsOf(BURNT), 2_500 ether / 4);
    }

    function test_receipts_of_the_signed_lane_count_in_its_domain() public {
        proof.lane = IDisputes.Lane.Sessions;
        bytes32 order = sessions.hashOrder(proof.spec);
        (proof.first.receipt.specHash, proof.first.receipt.workId) = (order, order);
        (proof.second.receipt.specHash, proof.second.receipt.workId) = (order, order);
        _assertRefused(IDisputes.BadSignature.selector); // signed in the queue's domain
        proof.first.signature = _signature(sessions.hashReceipt(proof.first.receipt), alice.hotKey);
        proof.second.signature = _signature(sessions.hashReceipt(proof.second.receipt), alice.hotKey);
        _prove();
        assertEq(nodes.node(alice.cold).stake, 2_500 ether);
    }

    function test_proving_revertsWhen_proven() public {
        _prove();
        proof.second.receipt.outputDigest = keccak256("a third answer");
        _sign();
        _assertRefused(IDisputes.AlreadyProven.selector);
        (proof.first.receipt, proof.second.receipt) = (proof.second.receipt, proof.first.receipt);
        _sign();
        _assertRefused(IDisputes.AlreadyProven.selector);
    }

    function test_proving_revertsWhen_it_is_no_equivocation() public {
        IJobQueue.Receipt memory other = proof.second.receipt;
        proof.second.receipt = proof.first.receipt;
        _sign();
        _assertRefused(IDisputes.NotEquivocation.selector); // one receipt, twice
        proof.second.receipt = other;
        proof.second.receipt.workId = ~other.workId;
        _sign();
        _assertRefused(IDisputes.NotEquivocation.selector); // two works
        proof.second.receipt.workId = other.workId;
        proof.second.receipt.node = bob.cold;
        _sign();
        _assertRefused(IDisputes.NotEquivocation.selector); // two nodes
    }

    function test_proving_revertsWhen_the_spec_is_another() public {
        proof.spec.client = challenger; // would have the client's part too
        _assertRefused(IDisputes.SpecMismatch.selector);
    }

    function test_proving_revertsWhen_either_signature_is_anothers() public {
        bytes memory good = proof.first.signature;
        proof.first.signature = sign(proof.first.receipt, bob.hotKey);
        _assertRefused(IDisputes.BadSignature.selector);
        (proof.first.signature, proof.second.signature) = (good, good);
        _assertRefused(IDisputes.BadSignature.selector);
    }

    function test_proving_revertsWhen_the_key_was_never_the_nodes() public {
        proof.hotKey = bob.hot;
        proof.first.signature = sign(proof.first.receipt, bob.hotKey);
        proof.second.signature = sign(proof.second.receipt, bob.hotKey);
        _assertRefused(IDisputes.NotLiable.selector);
    }

    function test_replacing_the_hot_key_is_no_escape_until_the_stake_could_have_left() public {
        (address fresh, uint256 freshKey) = makeAddrAndKey("fresh");
        setHotKey(alice, fresh, freshKey);
        uint256 snapshot = vm.snapshotState();
        skip(UNSTAKE_DELAY - 1);
        _prove();
        vm.revertToState(snapshot);
        skip(UNSTAKE_DELAY);
        _assertRefused(IDisputes.NotLiable.selector);
    }

    // A receipt against the one committed, and against its own spec

    function test_a_receipt_that_contradicts_the_committed_one_costs_half_the_stake() public {
        (uint64 jobId, IJobQueue.Receipt memory committed) = committedJob(proof.spec, alice);
        IJobQueue.Settlement memory settlement = settlementOf(proof.spec, committed);
        IJobQueue.Receipt memory other = abi.decode(abi.encode(committed), (IJobQueue.Receipt));
        _assertNoContradiction(jobId, settlement, committed, other, IDisputes.NotEquivocation.selector);
        other.outputDigest = keccak256("another answer");
        other.workId = ~committed.workId;
        _assertNoContradiction(jobId, settlement, committed, other, IDisputes.NotEquivocation.selector);
        (other.workId, other.node) = (committed.workId, bob.cold);
        _assertNoContradiction(jobId, settlement, committed, other, IDisputes.NotEquivocation.selector);
        other.node = alice.cold;
        settlement.refund++;
        _assertNoContradiction(jobId, settlement, committed, other, IDisputes.ReceiptMismatch.selector);
        settlement.refund--;
        IDisputes.SignedReceipt memory signed = IDisputes.SignedReceipt(other, sign(other, alice.hotKey));
        vm.expectEmit();
        emit IDisputes.EquivocationProven(alice.cold, committed.workId, challenger, client, 2_500 ether);
        vm.prank(challenger);
        disputes.proveContradiction(jobId, proof.spec, settlement, committed, signed, alice.hot);
        _assertNoContradiction(jobId, settlement, committed, other, IDisputes.AlreadyProven.selector);
    }

    function test_a_receipt_that_its_spec_gives_the_lie_costs_half_the_stake() public {
        uint256 snapshot = vm.snapshotState();
        for (uint256 i = 0; i < 7; i++) {
            IJobQueue.Receipt memory lie = _honest(IDisputes.Lane.Sessions);
            if (i == 0) lie.inTokens = proof.spec.maxInTokens + 1;
            if (i == 1) lie.outTokens = proof.spec.maxOutTokens + 1;
            if (i == 2) lie.recipeId = baseOnly;
            if (i == 3) lie.inputDigest = ~lie.inputDigest;
            if (i == 4) lie.fee++;
            if (i == 5) lie.workId = ~lie.workId;
            if (i == 6) lie.seed++;
            IDisputes.SignedReceipt memory signed =
                IDisputes.SignedReceipt(lie, _signature(sessions.hashReceipt(lie), alice.hotKey));
            vm.expectEmit();
            emit IDisputes.FalseReceiptProven(alice.cold, lie.workId, challenger, client, 2_500 ether);
            vm.prank(challenger);
            disputes.proveFalseReceipt(IDisputes.Lane.Sessions, proof.spec, signed, alice.hot);
            assertEq(nodes.node(alice.cold).stake, 2_500 ether);
            vm.expectRevert(abi.encodeWithSelector(IDisputes.AlreadyProven.selector, alice.cold, lie.workId));
            disputes.proveFalseReceipt(IDisputes.Lane.Sessions, proof.spec, signed, alice.hot);
            vm.revertToState(snapshot);
        }
    }

    function test_an_honest_receipt_proves_nothing() public {
        for (uint8 lane = 0; lane < 2; lane++) {
            IJobQueue.Receipt memory honest = _honest(IDisputes.Lane(lane));
            bytes32 digest = lane == 0 ? queue.hashReceipt(honest) : sessions.hashReceipt(honest);
            IDisputes.SignedReceipt memory signed = IDisputes.SignedReceipt(honest, _signature(digest, alice.hotKey));
            vm.expectRevert(IDisputes.NotFalse.selector);
            disputes.proveFalseReceipt(IDisputes.Lane(lane), proof.spec, signed, alice.hot);
            signed.signature = _signature(digest, bob.hotKey);
            vm.expectRevert(IDisputes.BadSignature.selector);
            disputes.proveFalseReceipt(IDisputes.Lane(lane), proof.spec, signed, alice.hot);
        }
    }

    /// @dev Every wei that is slashed has a place.
    function testFuzz_parts_sum_to_what_is_slashed(uint96 leaving) public {
        vm.startPrank(alice.cold);
        nodes.beginUnstake(bound(leaving, 0, 5_000 ether));
        skip(UNSTAKE_DELAY);
        if (nodes.node(alice.cold).unstaking > 0) nodes.withdrawStake();
        vm.stopPrank();
        uint256 slashed = nodes.node(alice.cold).stake / 2;
        _prove();
        assertEq(vault.creditsOf(challenger) + vault.creditsOf(client) + vault.creditsOf(BURNT), slashed);
        assertEq(nodes.forfeitPool(), 0);
    }

    function test_constructor_revertsWhen_not_wired() public {
        vm.expectPartialRevert(INodeRegistry.NotAModule.selector);
        new Disputes(nodes, queue, sessions, address(governance), disputeTerms());
    }

    function _sign() private {
        proof.hotKey = alice.hot;
        proof.first.signature = sign(proof.first.receipt, alice.hotKey);
        proof.second.signature = sign(proof.second.receipt, alice.hotKey);
    }

    function _prove() private {
        Proof memory p = proof;
        vm.prank(challenger);
        disputes.proveEquivocation(p.lane, p.spec, p.first, p.second, p.hotKey);
    }

    function _assertRefused(bytes4 reason) private {
        Proof memory p = proof;
        vm.prank(challenger);
        vm.expectPartialRevert(reason);
        disputes.proveEquivocation(p.lane, p.spec, p.first, p.second, p.hotKey);
    }

    function _assertNoContradiction(
        uint64 jobId,
        IJobQueue.Settlement memory settlement,
        IJobQueue.Receipt memory committed,
        IJobQueue.Receipt memory other,
        bytes4 reason
    ) private {
        IDisputes.SignedReceipt memory signed = IDisputes.SignedReceipt(other, sign(other, alice.hotKey));
        IJobQueue.JobSpec memory spec = proof.spec;
        vm.expectPartialRevert(reason);
        disputes.proveContradiction(jobId, spec, settlement, committed, signed, alice.hot);
    }

    /// @dev What follows from the proof's spec on a lane; the queue's seed is for the queue to check.
    function _honest(IDisputes.Lane lane) private view returns (IJobQueue.Receipt memory receipt) {
        receipt = receiptFor(1, proof.spec, alice);
        if (lane == IDisputes.Lane.Queue) return receipt;
        bytes32 order = sessions.hashOrder(proof.spec);
        (receipt.specHash, receipt.workId, receipt.seed) = (order, order, uint64(bytes8(order)));
    }

    function _signature(bytes32 digest, uint256 key) private pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        return abi.encodePacked(r, s, v);
    }
}
