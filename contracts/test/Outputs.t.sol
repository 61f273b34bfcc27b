// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {IAccessManaged} from "@openzeppelin/contracts/access/manager/IAccessManaged.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";

import {Outputs} from "src/Outputs.sol";
import {Oracle} from "src/examples/Oracle.sol";
import {IJobQueue} from "src/interfaces/IJobQueue.sol";
import {IOutputReceiver} from "src/interfaces/IOutputReceiver.sol";
import {IOutputs} from "src/interfaces/IOutputs.sol";
import {JobFlags} from "src/libraries/JobFlags.sol";

import {MarketTest} from "./utils/MarketTest.sol";
import {Glutton, Bomber, Reverter, Thief} from "./utils/Receivers.sol";

contract OutputsTest is MarketTest {
    address private constant BURNT = 0x000000000000000000000000000000000000dEaD;
    bytes private constant OUTPUT = '{"v":1,"text":"forty-two","token_ids":[42],"finish_reason":"stop"}';
    uint96 private constant QUESTION_BOND = 1 ether + 128 * 0.001 ether;

    address private asker = makeAddr("asker");
    IJobQueue.JobSpec private spec;
    IJobQueue.Receipt private receipt;
    uint64 private jobId;

    function setUp() public override {
        super.setUp();
        fund(asker, 1_000 ether);
        spec = newSpec();
    }

    // Demands

    function test_a_demanded_output_is_published_and_the_bond_pays_the_node() public {
        _commit();
        _demand();
        assertEq(vault.balanceOf(asker), 1_000 ether - QUESTION_BOND);
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Held));
        vm.expectEmit();
        emit IOutputs.OutputPublished(jobId, sha256(OUTPUT), OUTPUT, false);
        outputs.publishOutput(jobId, OUTPUT);
        assertEq(vault.creditsOf(alice.cold), QUESTION_BOND);
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Committed));
        assertEq(uint256(outputs.question(jobId).kind), uint256(IOutputs.Kind.None));
        _finalizeAfter(WINDOW);
    }

    function test_a_contract_that_demands_is_not_called() public {
        Glutton demanding = new Glutton();
        asker = address(demanding);
        fund(asker, 10 ether);
        _commit();
        _demand();
        vm.expectEmit();
        emit IOutputs.OutputPublished(jobId, sha256(OUTPUT), OUTPUT, false);
        outputs.publishOutput(jobId, OUTPUT);
        assertEq(demanding.given(), 0);
    }

    function test_an_output_withheld_costs_the_bond_and_refunds_the_client() public {
        _commit();
        uint256 before = vault.balanceOf(client);
        _demand();
        skip(10 minutes);
        IJobQueue.Settlement memory settlement = settlementOf(spec, receipt);
        vm.expectRevert(abi.encodeWithSelector(IOutputs.StillTime.selector, uint40(block.timestamp)));
        outputs.resolve(jobId, settlement);
        skip(1);
        vm.expectEmit();
        emit IOutputs.Unanswered(jobId, alice.cold, asker, IOutputs.Kind.Output, BOND);
        vm.prank(makeAddr("anyone"));
        outputs.resolve(jobId, settlement);
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Slashed));
        assertEq(vault.balanceOf(client), before + queue.escrowOf(spec), "all of the escrow");
        assertEq(vault.balanceOf(asker), 1_000 ether, "the question's bond returns");
        assertEq(vault.creditsOf(asker), BOND / 2);
        assertEq(vault.creditsOf(client), BOND / 4);
        assertEq(vault.creditsOf(BURNT), BOND - BOND / 2 - BOND / 4);
        assertEq(nodes.node(alice.cold).stake, 5_000 ether - BOND);
        assertEq(nodes.node(alice.cold).liveClaims, 0);
        assertEq(nodes.forfeitPool(), 0);
        assertEq(vault.potOf(address(queue)), 0);
        assertEq(vault.potOf(address(outputs)), 0);
    }

    function test_the_window_stands_still_while_a_question_is_open() public {
        _commit();
        skip(WINDOW - 1);
        _demand();
        skip(5 minutes);
        outputs.publishOutput(jobId, OUTPUT);
        assertEq(queue.job(jobId).finalizableAt, block.timestamp + 1);
        _demandChunk(0); // and others can still ask
    }

    function test_a_held_job_leaves_the_rest_of_a_batch_alone() public {
        _commit();
        IJobQueue.JobSpec memory otherSpec = newSpec();
        (uint64 other, IJobQueue.Receipt memory otherReceipt) = committedJob(otherSpec, bob);
        _demand();
        skip(WINDOW);
        uint64[] memory ids = new uint64[](2);
        IJobQueue.Settlement[] memory settlements = new IJobQueue.Settlement[](2);
        (ids[0], ids[1]) = (jobId, other);
        (settlements[0], settlements[1]) = (settlementOf(spec, receipt), settlementOf(otherSpec, otherReceipt));
        queue.finalizeBatch(ids, settlements);
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Held), "disputed never finalizes");
        assertEq(uint256(stateOf(other)), uint256(IJobQueue.State.Finalized));
    }

    function test_finalize_revertsWhen_all_is_held() public {
        _commit();
        _demand();
        skip(WINDOW);
        uint64[] memory ids = new uint64[](1);
        IJobQueue.Settlement[] memory settlements = new IJobQueue.Settlement[](1);
        (ids[0], settlements[0]) = (jobId, settlementOf(spec, receipt));
        vm.expectRevert(abi.encodeWithSelector(IJobQueue.WrongState.selector, jobId, IJobQueue.State.Held));
        queue.finalizeBatch(ids, settlements);
    }

    function test_demand_revertsWhen_the_window_is_over() public {
        _commit();
        skip(WINDOW);
        (IJobQueue.Settlement memory settlement, IJobQueue.Receipt memory of_) = (settlementOf(spec, receipt), receipt);
        vm.prank(asker);
        vm.expectPartialRevert(IJobQueue.WindowOver.selector);
        outputs.demandOutput(jobId, settlement, of_);
    }

    function test_demand_revertsWhen_the_receipt_is_anothers() public {
        _commit();
        (IJobQueue.Settlement memory settlement, IJobQueue.Receipt memory of_) = (settlementOf(spec, receipt), receipt);
        of_.outputDigest = ~of_.outputDigest;
        vm.startPrank(asker);
        vm.expectRevert(abi.encodeWithSelector(IOutputs.ReceiptMismatch.selector, jobId));
        outputs.demandOutput(jobId, settlement, of_);
        settlement.receiptHash = queue.hashReceipt(of_);
        vm.expectRevert(abi.encodeWithSelector(IOutputs.ReceiptMismatch.selector, jobId));
        outputs.demandOutput(jobId, settlement, of_);
    }

    function test_demand_revertsWhen_too_long_to_publish() public {
        spec.maxOutTokens = 10_000;
        jobId = submit(spec);
        claim(jobId, spec, alice);
        receipt = receiptFor(jobId, spec, alice, 1, 8_193);
        commit(jobId, spec, receipt, alice);
        (IJobQueue.Settlement memory settlement, IJobQueue.Receipt memory of_) = (settlementOf(spec, receipt), receipt);
        vm.expectRevert(abi.encodeWithSelector(IOutputs.TooLongToPublish.selector, 8_193, 8_192));
        outputs.demandOutput(jobId, settlement, of_);
    }

    function test_an_output_is_demanded_once() public {
        _commit();
        _demand();
        outputs.publishOutput(jobId, OUTPUT);
        (IJobQueue.Settlement memory settlement, IJobQueue.Receipt memory of_) = (settlementOf(spec, receipt), receipt);
        vm.prank(asker);
        vm.expectRevert(abi.encodeWithSelector(IOutputs.AlreadyAsked.selector, jobId, IOutputs.Kind.Output));
        outputs.demandOutput(jobId, settlement, of_);
        assertTrue(outputs.asked(jobId, IOutputs.Kind.Publication, 0));
        assertFalse(outputs.asked(jobId, IOutputs.Kind.Chunk, 0));
    }

    function test_publish_revertsWhen_it_is_not_the_answer() public {
        _commit();
        vm.expectRevert(abi.encodeWithSelector(IOutputs.NoQuestion.selector, jobId, IOutputs.Kind.Output));
        outputs.publishOutput(jobId, OUTPUT);
        _demand();
        vm.expectRevert(abi.encodeWithSelector(IOutputs.DigestMismatch.selector, sha256("another")));
        outputs.publishOutput(jobId, "another");
        vm.expectRevert(abi.encodeWithSelector(IOutputs.NoQuestion.selector, jobId, IOutputs.Kind.Chunk));
        outputs.openChunk(jobId, "", new bytes32[](0));
        uint40 answerBy = outputs.question(jobId).answerBy;
        vm.warp(answerBy + 1);
        vm.expectRevert(abi.encodeWithSelector(IOutputs.TooLate.selector, answerBy));
        outputs.publishOutput(jobId, OUTPUT);
    }

    function test_live_terms_leave_an_open_question_alone() public {
        _commit();
        _demand();
        IOutputs.OutputTerms memory terms = outputTerms();
        (terms.answerSecs, terms.bond) = (1, 500 ether);
        vm.prank(owner);
        outputs.setTerms(terms);
        skip(9 minutes);
        outputs.publishOutput(jobId, OUTPUT);
        assertEq(vault.creditsOf(alice.cold), QUESTION_BOND);
    }

    // Chunks

    function test_a_chunk_is_opened_under_the_fingerprint_root() public {
        bytes32 sibling = keccak256("sibling");
        bytes32 leaf = _leaf(3, "three");
        bytes32 root = leaf < sibling ? keccak256(abi.encode(leaf, sibling)) : keccak256(abi.encode(sibling, leaf));
        _commitWith(sha256(OUTPUT), root);
        _demandChunk(3);
        bytes32[] memory proof = new bytes32[](1);
        proof[0] = sibling;
        vm.expectRevert(abi.encodeWithSelector(IOutputs.BadOpening.selector, 3));
        outputs.openChunk(jobId, "four", proof);
        vm.expectRevert(abi.encodeWithSelector(IOutputs.BadOpening.selector, 3));
        outputs.openChunk(jobId, "three", new bytes32[](33));
        vm.expectRevert(abi.encodeWithSelector(IOutputs.NoQuestion.selector, jobId, IOutputs.Kind.Output));
        outputs.publishOutput(jobId, OUTPUT);
        vm.expectEmit();
        emit IOutputs.ChunkOpened(jobId, 3, "three");
        outputs.openChunk(jobId, "three", proof);
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Committed));
    }

    /// @dev Or a node would have an accomplice ask for a chunk that it has ready, and keep the others to itself.
    function test_a_chunk_that_was_opened_spares_no_other() public {
        bytes32[2] memory leaves = [_leaf(0, "zero"), _leaf(1, "one")];
        bool inOrder = leaves[0] < leaves[1];
        _commitWith(
            sha256(OUTPUT), keccak256(inOrder ? abi.encode(leaves[0], leaves[1]) : abi.encode(leaves[1], leaves[0]))
        );
        bytes32[] memory proof = new bytes32[](1);
        proof[0] = leaves[1];
        _demandChunk(0);
        outputs.openChunk(jobId, "zero", proof);
        assertTrue(outputs.asked(jobId, IOutputs.Kind.Chunk, 0));
        (IJobQueue.Settlement memory settlement, IJobQueue.Receipt memory of_) = (settlementOf(spec, receipt), receipt);
        vm.prank(asker);
        vm.expectRevert(abi.encodeWithSelector(IOutputs.AlreadyAsked.selector, jobId, IOutputs.Kind.Chunk));
        outputs.demandChunk(jobId, settlement, of_, 0);
        _demandChunk(1);
        skip(10 minutes + 1);
        outputs.resolve(jobId, settlement);
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Slashed));
    }

    function test_a_proof_is_no_longer_than_any_tree_is_high() public {
        bytes32[] memory proof = new bytes32[](33);
        _commitWith(sha256(OUTPUT), MerkleProof.processProof(proof, _leaf(0, "zero")));
        _demandChunk(0);
        vm.expectRevert(abi.encodeWithSelector(IOutputs.BadOpening.selector, 0));
        outputs.openChunk(jobId, "zero", proof);
    }

    function test_an_opening_of_another_chunk_is_bad() public {
        _commitWith(sha256(OUTPUT), _leaf(0, "zero"));
        _demandChunk(1);
        vm.expectRevert(abi.encodeWithSelector(IOutputs.BadOpening.selector, 1));
        outputs.openChunk(jobId, "zero", new bytes32[](0));
        skip(10 minutes + 1);
        outputs.resolve(jobId, settlementOf(spec, receipt));
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Slashed));
    }

    function test_demandChunk_revertsWhen_there_is_none() public {
        _commit(); // 128 tokens: four chunks
        (IJobQueue.Settlement memory settlement, IJobQueue.Receipt memory of_) = (settlementOf(spec, receipt), receipt);
        vm.prank(asker);
        vm.expectRevert(abi.encodeWithSelector(IOutputs.NoSuchChunk.selector, 4, 4));
        outputs.demandChunk(jobId, settlement, of_, 4);
    }

    function test_demandChunk_revertsWhen_the_node_keeps_no_fingerprints() public {
        _commitWith(sha256(OUTPUT), 0);
        (IJobQueue.Settlement memory settlement, IJobQueue.Receipt memory of_) = (settlementOf(spec, receipt), receipt);
        vm.prank(asker);
        vm.expectRevert(abi.encodeWithSelector(IOutputs.NoSuchChunk.selector, 0, 0));
        outputs.demandChunk(jobId, settlement, of_, 0);
    }

    // Publication as part of the job

    function test_a_contract_submits_and_is_called_with_the_output() public {
        Oracle oracle = new Oracle(queue, outputs, ensemble);
        bytes memory document = '{"v":1,"prompt":"What is six times seven?"}';
        token.mint(asker, 100 ether);
        vm.startPrank(asker);
        token.approve(address(oracle), 100 ether);
        spec = oracle.specFor(document, 1 ether, 3 ether);
        vm.expectEmit();
        emit IJobQueue.JobSubmitted(1, address(oracle), queue.hashSpec(spec), spec, document);
        jobId = oracle.ask(document, 1 ether, 3 ether);
        vm.stopPrank();

        claim(jobId, spec, alice);
        receipt = receiptFor(jobId, spec, alice);
        receipt.outputDigest = sha256(OUTPUT);
        commit(jobId, spec, receipt, alice);
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Held), "until it is published");
        skip(1 minutes);
        vm.expectEmit();
        emit IOutputs.OutputPublished(jobId, sha256(OUTPUT), OUTPUT, true);
        outputs.publishOutput(jobId, OUTPUT);
        assertEq(oracle.answerOf(jobId), sha256(OUTPUT));
        assertFalse(oracle.isFinal(jobId));
        _finalizeAfter(WINDOW);
        assertTrue(oracle.isFinal(jobId));
        assertEq(vault.balanceOf(address(oracle)), queue.escrowOf(spec) - receipt.fee);
        uint256 before = token.balanceOf(asker);
        vm.prank(asker);
        oracle.ask(document, 1 ether, 3 ether);
        assertEq(before - token.balanceOf(asker), receipt.fee, "the refund pays for the next question");
        assertEq(vault.balanceOf(address(oracle)), 0);
        vm.prank(asker);
        oracle.ask(document, 0, 0); // and costs nothing where nothing is missing
        vm.expectRevert(abi.encodeWithSelector(Oracle.OnlyOutputs.selector, address(this)));
        oracle.onOutput(jobId, "forged");
    }

    function test_a_job_that_must_be_published_and_is_not_is_slashed_by_anyone() public {
        _publishJob(client);
        skip(10 minutes + 1);
        address anyone = makeAddr("anyone");
        IJobQueue.Settlement memory settlement = settlementOf(spec, receipt);
        vm.prank(anyone);
        outputs.resolve(jobId, settlement);
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Slashed));
        assertEq(vault.creditsOf(anyone), BOND / 2);
        vm.expectRevert(abi.encodeWithSelector(IOutputs.NoQuestion.selector, jobId, IOutputs.Kind.None));
        outputs.resolve(jobId, settlement);
    }

    function test_a_client_without_code_is_not_called() public {
        _publishJob(client);
        vm.expectEmit();
        emit IOutputs.OutputPublished(jobId, sha256(OUTPUT), OUTPUT, false);
        outputs.publishOutput(jobId, OUTPUT);
    }

    /// @dev Reverting, burning all its gas, answering without end, calling back: nothing stops a publication.
    function test_no_callback_blocks_a_publication() public {
        address[4] memory receivers =
            [address(new Reverter()), address(new Glutton()), address(new Bomber()), address(new Thief(outputs))];
        for (uint256 i = 0; i < receivers.length; i++) {
            fund(receivers[i], 100 ether);
            spec = newSpec();
            _publishJob(receivers[i]);
            uint256 before = gasleft();
            vm.expectEmit();
            emit IOutputs.OutputPublished(jobId, sha256(OUTPUT), OUTPUT, i == 1); // gas is all that the second wants
            outputs.publishOutput(jobId, OUTPUT);
            assertLt(before - gasleft(), outputs.CALLBACK_GAS() + 150_000, "nor costs more than it may");
            assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Committed));
        }
    }

    /// @dev Else the node could publish with so little gas that the callback fails.
    function testFuzz_a_callback_has_all_its_gas_or_the_publication_reverts(uint256 gasLimit) public {
        Glutton glutton = new Glutton();
        fund(address(glutton), 100 ether);
        _publishJob(address(glutton));
        gasLimit = bound(gasLimit, 50_000, 500_000);
        try outputs.publishOutput{gas: gasLimit}(jobId, OUTPUT) {
            assertGt(glutton.given(), outputs.CALLBACK_GAS() - 5_000);
        } catch {
            assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Held));
        }
    }

    function test_expect_revertsWhen_caller_is_not_the_queue() public {
        vm.expectRevert(abi.encodeWithSelector(IOutputs.NotTheQueue.selector, address(this)));
        outputs.expect(1, alice.cold, client, 0);
    }

    // The queue's side

    function test_holding_revertsWhen_caller_is_no_judge() public {
        IJobQueue.Settlement memory settlement;
        bytes memory refusal = abi.encodeWithSelector(IJobQueue.NotAJudge.selector, address(this));
        vm.expectRevert(refusal);
        queue.hold(1);
        vm.expectRevert(refusal);
        queue.resume(1, 0);
        vm.expectRevert(refusal);
        queue.condemn(1, settlement);
        vm.expectRevert(refusal);
        queue.annul(1, settlement);
    }

    function test_judges_revert_when_the_job_is_in_another_state() public {
        IJobQueue.Settlement memory settlement;
        uint64 open = submit(spec);
        bytes memory refusal = abi.encodeWithSelector(IJobQueue.WrongState.selector, open, IJobQueue.State.Open);
        vm.startPrank(address(outputs));
        vm.expectRevert(refusal);
        queue.hold(open);
        vm.expectRevert(refusal);
        queue.resume(open, 0);
        vm.expectRevert(refusal);
        queue.condemn(open, settlement);
        vm.expectRevert(refusal);
        queue.annul(open, settlement);
    }

    function test_resolve_revertsWhen_the_settlement_is_anothers() public {
        _commit();
        _demand();
        skip(10 minutes + 1);
        IJobQueue.Settlement memory settlement = settlementOf(spec, receipt);
        settlement.client = asker;
        vm.expectRevert(abi.encodeWithSelector(IJobQueue.SettlementMismatch.selector, jobId));
        outputs.resolve(jobId, settlement);
    }

    function test_forfeits_of_a_slashed_job_are_the_clients() public {
        jobId = submit(spec);
        claim(jobId, spec, bob);
        skip(spec.leaseSecs + 1);
        claim(jobId, spec, alice);
        receipt = receiptFor(jobId, spec, alice);
        commit(jobId, spec, receipt, alice);
        _demand();
        skip(10 minutes + 1);
        outputs.resolve(jobId, settlementOf(spec, receipt));
        assertEq(vault.creditsOf(client), BOND - BOND / 10 + BOND / 4);
        assertEq(nodes.forfeitPool(), 0);
    }

    function test_pausing_blocks_no_answer_and_no_resolution() public {
        _commit();
        pause();
        _demand();
        outputs.publishOutput(jobId, OUTPUT);
        _demandChunk(0);
        skip(10 minutes + 1);
        outputs.resolve(jobId, settlementOf(spec, receipt));
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Slashed));
    }

    // Terms

    function test_terms_are_the_owners() public {
        IOutputs.OutputTerms memory terms = outputTerms();
        vm.expectRevert(abi.encodeWithSelector(IAccessManaged.AccessManagedUnauthorized.selector, address(this)));
        outputs.setTerms(terms);
        terms.answerSecs = 0;
        vm.prank(owner);
        vm.expectRevert(IOutputs.BadTerms.selector);
        outputs.setTerms(terms);
        terms.answerSecs = UNSTAKE_DELAY;
        vm.prank(owner);
        vm.expectRevert(IOutputs.BadTerms.selector);
        outputs.setTerms(terms);
        terms.answerSecs = UNSTAKE_DELAY - 1;
        vm.prank(owner);
        outputs.setTerms(terms);
        assertEq(outputs.terms().answerSecs, UNSTAKE_DELAY - 1);
    }

    function test_constructor_revertsWhen_not_wired() public {
        vm.expectPartialRevert(IOutputs.NotAModule.selector);
        new Outputs(nodes, queue, address(governance), outputTerms());
    }

    function _commit() private {
        _commitWith(sha256(OUTPUT), keccak256("fingerprints"));
    }

    function _commitWith(bytes32 outputDigest, bytes32 fingerprintRoot) private {
        jobId = submit(spec);
        claim(jobId, spec, alice);
        receipt = receiptFor(jobId, spec, alice);
        (receipt.outputDigest, receipt.fingerprintRoot) = (outputDigest, fingerprintRoot);
        commit(jobId, spec, receipt, alice);
    }

    function _publishJob(address client_) private {
        (spec.client, spec.flags) = (client_, JobFlags.PUBLISH);
        (spec.inPricePerK, spec.outPricePerK) = (0.01 ether, 0.01 ether);
        _commit();
    }

    function _demand() private {
        (IJobQueue.Settlement memory settlement, IJobQueue.Receipt memory of_) = (settlementOf(spec, receipt), receipt);
        vm.expectEmit();
        emit IOutputs.QuestionAsked(
            jobId, alice.cold, asker, IOutputs.Kind.Output, 0, uint40(block.timestamp + 10 minutes), QUESTION_BOND
        );
        vm.prank(asker);
        outputs.demandOutput(jobId, settlement, of_);
    }

    function _demandChunk(uint32 chunk) private {
        (IJobQueue.Settlement memory settlement, IJobQueue.Receipt memory of_) = (settlementOf(spec, receipt), receipt);
        vm.prank(asker);
        outputs.demandChunk(jobId, settlement, of_, chunk);
    }

    function _finalizeAfter(uint256 secs) private {
        skip(secs);
        finalize(jobId, spec, receipt);
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Finalized));
    }

    function _leaf(uint32 chunk, bytes memory data) private pure returns (bytes32) {
        return keccak256(bytes.concat(keccak256(abi.encode(chunk, data))));
    }
}
