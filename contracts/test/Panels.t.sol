// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {IAccessManaged} from "@openzeppelin/contracts/access/manager/IAccessManaged.sol";

import {IDisputes} from "src/interfaces/IDisputes.sol";
import {IJobQueue} from "src/interfaces/IJobQueue.sol";
import {INodeRegistry} from "src/interfaces/INodeRegistry.sol";
import {JobFlags} from "src/libraries/JobFlags.sol";
import {Panel} from "src/libraries/Panel.sol";

import {MarketTest} from "./utils/MarketTest.sol";

/// @notice Numeric disputes: challenges and audits, panels drawn by lot, votes, verdicts.
contract PanelsTest is MarketTest {
    address private constant BURNT = 0x000000000000000000000000000000000000dEaD;
    uint96 private constant CHALLENGE_BOND = 20 ether;
    uint96 private constant STAKE = 100 ether;
    uint96 private constant PENALTY = 10 ether;
    bytes32 private constant SALT = keccak256("salt");

    address private challenger = makeAddr("challenger");
    address[] private everyVerifier;
    IJobQueue.JobSpec private spec;
    IJobQueue.Receipt private receipt;
    uint64 private jobId;

    function setUp() public override {
        super.setUp();
        fund(challenger, 1_000 ether);
        for (uint256 i = 0; i < 9; i++) {
            everyVerifier.push(_enlist(string.concat("verifier", vm.toString(i))));
        }
        skip(1);
        spec = newSpec();
        (jobId, receipt) = committedJob(spec, alice);
    }

    // Verdicts

    function test_four_of_five_FAIL_slash_the_node() public {
        uint256 before = vault.balanceOf(client);
        _challenge();
        assertEq(vault.balanceOf(challenger), 1_000 ether - CHALLENGE_BOND);
        uint256 slashed = BOND + (5_000 ether - BOND) / 2;
        _vote(0, 4, 1);
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Slashed));
        assertEq(vault.balanceOf(client), before + queue.escrowOf(spec));
        assertEq(vault.balanceOf(challenger), 1_000 ether, "the bond returns");
        assertEq(vault.creditsOf(challenger), slashed / 2);
        assertEq(vault.creditsOf(client), slashed / 4);
        uint256 share = slashed * 15 / 100 / 5;
        address[] memory panel = disputes.dispute(jobId).panel;
        for (uint256 i = 0; i < 5; i++) {
            assertEq(vault.creditsOf(panel[i]), share);
            assertEq(disputes.verifier(panel[i]).duties, 0);
        }
        assertEq(vault.creditsOf(BURNT), slashed - slashed / 2 - slashed / 4 - 5 * share, "a tenth, and dust");
        assertEq(nodes.forfeitPool(), 0);
        assertEq(vault.potOf(address(disputes)), 9 * STAKE);
    }

    function test_three_PASS_give_the_bond_to_node_and_verifiers() public {
        skip(WINDOW - 1);
        _challenge();
        _vote(3, 2, 0);
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Committed));
        assertEq(vault.creditsOf(alice.cold), CHALLENGE_BOND / 2);
        address[] memory panel = disputes.dispute(jobId).panel;
        assertEq(vault.creditsOf(panel[4]), CHALLENGE_BOND / 2 / 5);
        assertEq(vault.balanceOf(challenger), 1_000 ether - CHALLENGE_BOND);
        assertEq(queue.job(jobId).finalizableAt, block.timestamp + 1, "the window stood still");
        skip(1);
        finalize(jobId, spec, receipt);
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Finalized));
    }

    function test_AMBIGUOUS_refunds_and_slashes_nobody() public {
        uint256 before = vault.balanceOf(client);
        _challenge();
        _vote(1, 3, 1);
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Annulled));
        assertEq(vault.balanceOf(client), before + queue.escrowOf(spec));
        assertEq(vault.balanceOf(challenger), 1_000 ether);
        assertEq(nodes.node(alice.cold).stake, 5_000 ether);
        assertEq(nodes.node(alice.cold).bonded, 0);
        assertEq(nodes.node(alice.cold).liveClaims, 0);
        assertEq(vault.potOf(address(queue)), 0);
    }

    function test_two_PASS_are_no_verdict_for_the_node() public {
        _challenge();
        _vote(2, 3, 0);
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Annulled));
    }

    /// @dev Three FAIL and two silent are no verdict against the node.
    function test_FAIL_needs_four_votes_and_not_four_fifths_of_those_cast() public {
        _challenge();
        _vote(0, 3, 0);
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Annulled));
        assertEq(nodes.node(alice.cold).stake, 5_000 ether);
    }

    function test_without_a_quorum_the_job_goes_on() public {
        _challenge();
        _vote(0, 2, 0);
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Committed));
        assertEq(vault.balanceOf(challenger), 1_000 ether);
        skip(WINDOW);
        finalize(jobId, spec, receipt);
    }

    function test_an_undrawn_dispute_ends_too() public {
        _openChallenge();
        vm.warp(disputes.dispute(jobId).revealBy);
        IJobQueue.Settlement memory settlement = settlementOf(spec, receipt);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NotYet.selector, block.timestamp));
        disputes.resolve(jobId, settlement);
        skip(1);
        disputes.resolve(jobId, settlement);
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Committed));
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NoDispute.selector, jobId));
        disputes.resolve(jobId, settlement);
    }

    function test_stake_in_withdrawal_is_slashed_by_a_verdict() public {
        vm.prank(alice.cold);
        nodes.beginUnstake(4_995 ether);
        _challenge();
        _vote(0, 5, 0);
        assertEq(nodes.node(alice.cold).unstaking, 4_995 ether - 4_995 ether / 2);
    }

    /// @dev However long the exit began before the commit: what was at stake at the commit is there for the verdict.
    function test_stake_does_not_leave_while_a_job_may_be_disputed() public {
        vm.prank(alice.cold);
        nodes.beginUnstake(4_995 ether);
        vm.warp(nodes.node(alice.cold).unstakeAt);
        vm.startPrank(alice.cold);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.ClaimsLive.selector, alice.cold, 1));
        nodes.withdrawStake();
        vm.stopPrank();
    }

    // Votes

    function test_who_does_not_reveal_pays_those_who_did() public {
        _challenge();
        address[] memory panel = _vote(0, 4, 0);
        assertEq(disputes.verifier(panel[4]).stake, STAKE - PENALTY);
        uint256 slashed = BOND + (5_000 ether - BOND) / 2;
        assertEq(vault.creditsOf(panel[0]), PENALTY / 4 + slashed * 15 / 100 / 4);
        assertEq(vault.creditsOf(panel[4]), 0);
        assertEq(vault.potOf(address(disputes)), 9 * STAKE - PENALTY);
    }

    function test_penalties_that_nobody_earned_are_burnt() public {
        _challenge();
        address[] memory panel = _vote(0, 0, 0);
        for (uint256 i = 0; i < 5; i++) {
            assertEq(disputes.verifier(panel[i]).stake, STAKE - PENALTY);
        }
        assertEq(vault.creditsOf(BURNT), 5 * PENALTY);
    }

    function test_a_commitment_that_is_the_mark_of_a_reveal_is_refused() public {
        _challenge();
        vm.prank(disputes.dispute(jobId).panel[0]);
        vm.expectRevert(IDisputes.VoteMismatch.selector);
        disputes.commitVote(jobId, bytes32(uint256(1)));
    }

    /// @dev Quorum counts signers: one member of the panel is one vote, however often it speaks.
    function test_a_verifier_has_one_vote() public {
        _challenge();
        address member = disputes.dispute(jobId).panel[0];
        bytes32 commitment = _commitment(member, IDisputes.Verdict.Fail);
        vm.startPrank(member);
        disputes.commitVote(jobId, commitment);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.AlreadyVoted.selector, member));
        disputes.commitVote(jobId, commitment);
        vm.warp(disputes.dispute(jobId).revealBy);
        disputes.revealVote(jobId, IDisputes.Verdict.Fail, SALT);
        vm.expectRevert(IDisputes.VoteMismatch.selector);
        disputes.revealVote(jobId, IDisputes.Verdict.Fail, SALT);
        assertEq(disputes.dispute(jobId).fails, 1);
        assertEq(disputes.dispute(jobId).revealed, 1);
    }

    function test_votes_revertWhen_not_on_the_panel() public {
        _challenge();
        vm.prank(challenger);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NotOnPanel.selector, challenger));
        disputes.commitVote(jobId, SALT);
    }

    function test_votes_revertWhen_out_of_time() public {
        _challenge();
        IDisputes.Dispute memory open = disputes.dispute(jobId);
        vm.startPrank(open.panel[0]);
        disputes.commitVote(jobId, _commitment(open.panel[0], IDisputes.Verdict.Pass));
        vm.warp(open.commitBy);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NotYet.selector, open.commitBy));
        disputes.revealVote(jobId, IDisputes.Verdict.Pass, SALT);
        vm.warp(open.commitBy + 1);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.TooLate.selector, open.commitBy));
        disputes.commitVote(jobId, SALT);
        vm.warp(open.revealBy + 1);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.TooLate.selector, open.revealBy));
        disputes.revealVote(jobId, IDisputes.Verdict.Pass, SALT);
    }

    /// @dev A copied commitment cannot be opened: it names its verifier, its job, the contract and the chain.
    function test_a_vote_revertsWhen_it_is_not_the_one_committed_to() public {
        _challenge();
        IDisputes.Dispute memory open = disputes.dispute(jobId);
        vm.prank(open.panel[0]);
        disputes.commitVote(jobId, _commitment(open.panel[0], IDisputes.Verdict.Pass));
        vm.prank(open.panel[1]);
        disputes.commitVote(jobId, _commitment(open.panel[0], IDisputes.Verdict.Pass));
        vm.prank(open.panel[2]);
        disputes.commitVote(jobId, _commitment(open.panel[2], IDisputes.Verdict.None));
        vm.warp(open.commitBy + 1);
        vm.prank(open.panel[0]);
        vm.expectRevert(IDisputes.VoteMismatch.selector);
        disputes.revealVote(jobId, IDisputes.Verdict.Fail, SALT);
        vm.prank(open.panel[1]);
        vm.expectRevert(IDisputes.VoteMismatch.selector);
        disputes.revealVote(jobId, IDisputes.Verdict.Pass, SALT);
        vm.prank(open.panel[2]);
        vm.expectRevert(IDisputes.VoteMismatch.selector);
        disputes.revealVote(jobId, IDisputes.Verdict.None, SALT);
    }

    // Challenges

    function test_a_job_is_challenged_once() public {
        _challenge();
        _vote(3, 0, 0);
        (IJobQueue.Settlement memory settlement, IJobQueue.Receipt memory of_) = (settlementOf(spec, receipt), receipt);
        vm.prank(challenger);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.AlreadyDisputed.selector, jobId));
        disputes.challenge(jobId, spec, settlement, of_);
    }

    function test_challenge_revertsWhen_the_papers_are_anothers() public {
        (IJobQueue.Settlement memory settlement, IJobQueue.Receipt memory of_) = (settlementOf(spec, receipt), receipt);
        IJobQueue.JobSpec memory other = newSpec();
        bytes memory refusal = abi.encodeWithSelector(IDisputes.ReceiptMismatch.selector, jobId);
        vm.startPrank(challenger);
        vm.expectRevert(refusal);
        disputes.challenge(jobId, other, settlement, of_);
        of_.outTokens++;
        vm.expectRevert(refusal);
        disputes.challenge(jobId, spec, settlement, of_);
        of_.outTokens--;
        settlement.fee++;
        vm.expectRevert(refusal);
        disputes.challenge(jobId, spec, settlement, of_);
    }

    function test_challenge_revertsWhen_the_client_waived_it() public {
        spec = newSpec();
        spec.flags = JobFlags.PRIVATE;
        (jobId, receipt) = committedJob(spec, alice);
        (IJobQueue.Settlement memory settlement, IJobQueue.Receipt memory of_) = (settlementOf(spec, receipt), receipt);
        vm.prank(challenger);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NumericAuditWaived.selector, jobId));
        disputes.challenge(jobId, spec, settlement, of_);
        spec = newSpec();
        spec.flags = JobFlags.PRIVATE | JobFlags.AUDITABLE;
        (jobId, receipt) = committedJob(spec, alice);
        _openChallenge();
    }

    function test_challenge_revertsWhen_there_are_few_verifiers() public {
        for (uint256 i = 0; i < 3; i++) {
            _leave(everyVerifier[i]);
        }
        spec = newSpec();
        (jobId, receipt) = committedJob(spec, alice);
        (IJobQueue.Settlement memory settlement, IJobQueue.Receipt memory of_) = (settlementOf(spec, receipt), receipt);
        vm.prank(challenger);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.TooFewVerifiers.selector, 6));
        disputes.challenge(jobId, spec, settlement, of_);
    }

    // Drawing

    function test_the_panel_is_drawn_by_a_later_block() public {
        _openChallenge();
        uint256 drawBlock = disputes.dispute(jobId).drawBlock;
        assertEq(drawBlock, vm.getBlockNumber() + 2);
        vm.roll(drawBlock);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NotYet.selector, drawBlock));
        disputes.draw(jobId);
        vm.roll(drawBlock + 1);
        disputes.draw(jobId);
        assertEq(disputes.dispute(jobId).panel.length, 5);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.AlreadyDrawn.selector, jobId));
        disputes.draw(jobId);
    }

    function test_a_forgotten_draw_is_moved() public {
        _openChallenge();
        vm.roll(vm.getBlockNumber() + 2 + 257);
        vm.expectEmit();
        emit IDisputes.DrawMoved(jobId, uint64(vm.getBlockNumber() + 2));
        disputes.draw(jobId);
        assertEq(disputes.dispute(jobId).panel.length, 0);
        vm.roll(vm.getBlockNumber() + 3);
        disputes.draw(jobId);
        assertEq(disputes.dispute(jobId).panel.length, 5);
    }

    function test_a_draw_is_not_moved_while_the_chains_history_knows_its_block() public {
        _openChallenge();
        vm.roll(disputes.dispute(jobId).drawBlock + 1);
        startHistory();
        vm.roll(vm.getBlockNumber() + 257);
        disputes.draw(jobId);
        assertEq(disputes.dispute(jobId).panel.length, 5);
    }

    function test_a_round_is_sealed_while_the_chains_history_knows_its_block() public {
        uint64 drawBlock = disputes.round(disputes.beginRound()).drawBlock;
        vm.roll(drawBlock + 1);
        bytes32 drawn = blockhash(drawBlock);
        startHistory();
        vm.roll(drawBlock + 8_192);
        vm.expectPartialRevert(IDisputes.NotYet.selector);
        disputes.seal();
        vm.roll(drawBlock + 8_191);
        disputes.seal();
        assertEq(disputes.round(1).seed, drawn);
    }

    function test_draw_revertsWhen_too_late() public {
        _openChallenge();
        vm.roll(vm.getBlockNumber() + 3);
        uint40 drawBy = disputes.dispute(jobId).drawBy;
        vm.warp(drawBy + 1);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.TooLate.selector, drawBy));
        disputes.draw(jobId);
    }

    /// @dev Neither the parties, nor who came with the dispute, nor who will be gone when it ends.
    function test_who_is_not_drawn() public {
        address late = makeAddr("late");
        fund(late, STAKE);
        vm.prank(alice.cold);
        disputes.enlist();
        fund(challenger, STAKE);
        vm.prank(challenger);
        disputes.enlist();
        for (uint256 i = 0; i < 4; i++) {
            vm.prank(everyVerifier[i]);
            disputes.retire();
        }
        vm.warp(disputes.verifier(everyVerifier[0]).leavesAt - 2 hours);
        spec = newSpec();
        (jobId, receipt) = committedJob(spec, alice);
        _openChallenge();
        vm.prank(late);
        disputes.enlist();
        vm.roll(vm.getBlockNumber() + 3);
        disputes.draw(jobId);
        address[] memory panel = disputes.dispute(jobId).panel;
        for (uint256 i = 0; i < 5; i++) {
            bool staying = false;
            for (uint256 j = 4; j < 9; j++) {
                staying = staying || panel[i] == everyVerifier[j];
            }
            assertTrue(staying);
        }
    }

    function test_draw_revertsWhen_too_few_may_sit() public {
        for (uint256 i = 0; i < 5; i++) {
            vm.prank(everyVerifier[i]);
            disputes.retire();
        }
        vm.warp(disputes.verifier(everyVerifier[0]).leavesAt - 2 hours);
        spec = newSpec();
        (jobId, receipt) = committedJob(spec, alice);
        _openChallenge();
        vm.roll(vm.getBlockNumber() + 3);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.TooFewVerifiers.selector, 4));
        disputes.draw(jobId);
    }

    function testFuzz_a_lot_is_five_distinct_accounts_in_any_order(bytes32 seed, uint8 count, uint8 turn) public pure {
        count = uint8(bound(count, 5, 40));
        (Panel.Lot memory lot, Panel.Lot memory turned) = (Panel.create(seed), Panel.create(seed));
        for (uint160 i = 0; i < count; i++) {
            Panel.enter(lot, address(i + 1));
            Panel.enter(turned, address((i + turn) % count + 1));
        }
        assertEq(lot.count, 5);
        for (uint256 i = 0; i < 5; i++) {
            assertEq(lot.accounts[i], turned.accounts[i], "order does not matter");
            assertTrue(i == 0 || lot.lots[i - 1] < lot.lots[i], "ascending, so distinct");
        }
    }

    // Audits

    function test_an_audit_is_drawn_by_a_round_after_the_commit() public {
        _auditAll();
        (IJobQueue.Settlement memory settlement, IJobQueue.Receipt memory of_) = (settlementOf(spec, receipt), receipt);
        uint64 number = 0;
        bytes memory refusal = abi.encodeWithSelector(IDisputes.NotSelected.selector, jobId, number);
        vm.expectRevert(refusal);
        disputes.audit(jobId, number, spec, settlement, of_);
        skip(1);
        number = disputes.beginRound();
        assertEq(number, 1);
        vm.expectPartialRevert(IDisputes.NotYet.selector);
        disputes.beginRound();
        vm.expectPartialRevert(IDisputes.NotYet.selector);
        disputes.seal();
        vm.roll(vm.getBlockNumber() + 3);
        disputes.seal();
        vm.expectPartialRevert(IDisputes.NotYet.selector);
        disputes.seal();
        assertTrue(disputes.isSelected(jobId, 1));
        assertEq(disputes.round(1).seed, blockhash(disputes.round(1).drawBlock));

        IJobQueue.JobSpec memory laterSpec = newSpec();
        (uint64 later, IJobQueue.Receipt memory laterReceipt) = committedJob(laterSpec, alice);
        IJobQueue.Settlement memory laterSettlement = settlementOf(laterSpec, laterReceipt);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NotSelected.selector, later, 1));
        disputes.audit(later, 1, laterSpec, laterSettlement, laterReceipt);

        vm.prank(challenger);
        disputes.audit(jobId, number, spec, settlement, of_);
        assertEq(vault.balanceOf(challenger), 1_000 ether, "without a bond");
        _draw();
        _vote(5, 0, 0);
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Committed));
        assertEq(vault.creditsOf(alice.cold), 0);
        skip(WINDOW);
        disputes.beginRound();
    }

    /// @dev Held jobs' windows move on, and so do the rounds: whether an answer was there when one began does not.
    function test_a_question_is_no_way_out_of_an_audit() public {
        IDisputes.DisputeTerms memory terms = _auditAll();
        (jobId, receipt) = _published("an answer");
        (IJobQueue.Settlement memory settlement, IJobQueue.Receipt memory of_) = (settlementOf(spec, receipt), receipt);
        skip(1);
        _round();
        vm.prank(challenger);
        outputs.demandOutput(jobId, settlement, of_);
        skip(10 minutes);
        outputs.publishOutput(jobId, "an answer");
        terms.roundSecs = 1 minutes;
        vm.prank(owner);
        disputes.setTerms(terms);
        disputes.beginRound();
        disputes.audit(jobId, 1, spec, settlement, of_);
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Held));
    }

    /// @dev Whatever they say, so that none of it pays better; and the fund pays no audit that it was not asked for.
    function test_an_audit_pays_its_voters_the_jobs_fee_while_the_fund_lasts() public {
        _auditAll();
        skip(1);
        _round();
        uint96 fee = receipt.fee;
        vm.prank(challenger);
        disputes.fundAudits(fee + 1);
        assertEq(vault.balanceOf(challenger), 1_000 ether - fee - 1);
        _audit();
        assertEq(disputes.auditFund(), 1);
        address[] memory panel = _vote(3, 0, 1);
        assertEq(vault.creditsOf(panel[3]), (fee + PENALTY) / 4);
        assertEq(vault.creditsOf(panel[4]), 0);

        spec = newSpec();
        (jobId, receipt) = committedJob(spec, alice);
        skip(WINDOW - 1);
        _round();
        _audit();
        assertEq(disputes.auditFund(), 0);
        panel = _vote(5, 0, 0);
        assertEq(vault.potOf(address(disputes)), 9 * STAKE - PENALTY, "what cannot be shared is burnt");
    }

    function test_what_no_quorum_earned_returns_to_the_fund() public {
        _auditAll();
        skip(1);
        _round();
        vm.prank(challenger);
        disputes.fundAudits(100 ether);
        _audit();
        assertEq(disputes.auditFund(), 100 ether - receipt.fee);
        _vote(2, 0, 0);
        assertEq(disputes.auditFund(), 100 ether);
        assertEq(vault.potOf(address(disputes)), 9 * STAKE - 3 * PENALTY + 100 ether);
    }

    function test_no_job_is_selected_at_a_share_of_zero() public {
        IDisputes.DisputeTerms memory terms = disputeTerms();
        terms.auditBps = 0;
        vm.prank(owner);
        disputes.setTerms(terms);
        skip(1);
        disputes.beginRound();
        vm.roll(vm.getBlockNumber() + 3);
        disputes.seal();
        assertFalse(disputes.isSelected(jobId, 1));
        (IJobQueue.Settlement memory settlement, IJobQueue.Receipt memory of_) = (settlementOf(spec, receipt), receipt);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NotSelected.selector, jobId, 1));
        disputes.audit(jobId, 1, spec, settlement, of_);
    }

    // Verifiers

    function test_a_verifier_leaves_with_its_stake() public {
        address leaving = everyVerifier[3];
        _leave(leaving);
        assertEq(vault.balanceOf(leaving), STAKE);
        assertEq(disputes.verifiers().length, 8);
        assertEq(disputes.verifiers()[3], everyVerifier[8], "the last took its place");
        _leave(everyVerifier[7]);
        assertEq(disputes.verifiers().length, 7);
        vm.prank(leaving);
        disputes.enlist();
        assertEq(disputes.verifiers()[7], leaving);
    }

    function test_a_verifier_on_duty_does_not_leave() public {
        _challenge();
        address member = disputes.dispute(jobId).panel[0];
        vm.startPrank(member);
        disputes.retire();
        vm.expectPartialRevert(IDisputes.NotYet.selector);
        disputes.withdraw(member);
        skip(UNSTAKE_DELAY);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.StillOnDuty.selector, member));
        disputes.withdraw(member);
    }

    function test_a_verifier_that_cannot_pay_a_penalty_is_retired() public {
        IDisputes.DisputeTerms memory terms = disputeTerms();
        terms.missPenalty = 60 ether;
        vm.prank(owner);
        disputes.setTerms(terms);
        _challenge();
        address[] memory panel = _vote(0, 0, 0);
        assertEq(disputes.verifier(panel[0]).stake, 40 ether);
        assertEq(disputes.verifier(panel[0]).leavesAt, block.timestamp);
        disputes.withdraw(panel[0]);
        assertEq(vault.balanceOf(panel[0]), 40 ether);
    }

    function test_who_has_retired_keeps_nobodys_place() public {
        address account = everyVerifier[0];
        vm.prank(account);
        disputes.retire();
        vm.warp(disputes.verifier(account).leavesAt);
        uint256 count = disputes.verifiers().length;
        vm.prank(makeAddr("stranger"));
        disputes.withdraw(account);
        assertEq(disputes.verifiers().length, count - 1);
        assertEq(vault.balanceOf(account), disputeTerms().verifierStake);
    }

    function test_verifiers_revertWhen_out_of_turn() public {
        address stranger = makeAddr("stranger");
        vm.startPrank(stranger);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NotAVerifier.selector, stranger));
        disputes.retire();
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NotAVerifier.selector, stranger));
        disputes.withdraw(stranger);
        vm.startPrank(everyVerifier[0]);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.AlreadyVerifier.selector, everyVerifier[0]));
        disputes.enlist();
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NotYet.selector, 0));
        disputes.withdraw(everyVerifier[0]);
        disputes.retire();
        vm.expectRevert(abi.encodeWithSelector(IDisputes.NotAVerifier.selector, everyVerifier[0]));
        disputes.retire();
    }

    function test_enlist_revertsWhen_full() public {
        for (uint256 i = 9; i < 128; i++) {
            _enlist(string.concat("verifier", vm.toString(i)));
        }
        fund(client, STAKE);
        vm.prank(client);
        vm.expectRevert(abi.encodeWithSelector(IDisputes.TooManyVerifiers.selector, 128));
        disputes.enlist();
        uint256 before = gasleft();
        _openChallenge();
        vm.roll(vm.getBlockNumber() + 3);
        disputes.draw(jobId);
        assertLt(before - gasleft(), 3_000_000, "bounded, unoptimised");
    }

    // Terms

    function test_terms_are_the_owners_and_bounded() public {
        IDisputes.DisputeTerms memory terms = disputeTerms();
        vm.expectRevert(abi.encodeWithSelector(IAccessManaged.AccessManagedUnauthorized.selector, address(this)));
        disputes.setTerms(terms);
        for (uint256 i = 0; i < 6; i++) {
            terms = disputeTerms();
            if (i == 0) terms.drawSecs = 0;
            if (i == 1) terms.commitSecs = 0;
            if (i == 2) terms.revealSecs = 0;
            if (i == 3) terms.missPenalty = terms.verifierStake + 1;
            if (i == 4) terms.auditBps = 10_001;
            if (i == 5) terms.revealSecs = UNSTAKE_DELAY - terms.drawSecs - terms.commitSecs;
            vm.prank(owner);
            vm.expectRevert(IDisputes.BadTerms.selector);
            disputes.setTerms(terms);
        }
        terms.revealSecs--;
        vm.prank(owner);
        disputes.setTerms(terms);
        assertEq(disputes.terms().revealSecs, terms.revealSecs);
    }

    function test_live_terms_leave_an_open_dispute_alone() public {
        _challenge();
        IDisputes.DisputeTerms memory terms = disputeTerms();
        (terms.commitSecs, terms.revealSecs, terms.challengeBond, terms.missPenalty) = (1, 1, 0, 0);
        vm.prank(owner);
        disputes.setTerms(terms);
        address[] memory panel = _vote(4, 0, 0);
        assertEq(vault.creditsOf(alice.cold), CHALLENGE_BOND / 2);
        assertEq(disputes.verifier(panel[4]).stake, STAKE - PENALTY);
    }

    function test_pausing_blocks_no_dispute() public {
        pause();
        _challenge();
        _vote(0, 5, 0);
        assertEq(uint256(stateOf(jobId)), uint256(IJobQueue.State.Slashed));
    }

    function _enlist(string memory name) private returns (address account) {
        account = makeAddr(name);
        fund(account, STAKE);
        vm.prank(account);
        disputes.enlist();
    }

    function _leave(address account) private {
        vm.prank(account);
        disputes.retire();
        vm.warp(disputes.verifier(account).leavesAt);
        disputes.withdraw(account);
    }

    function _auditAll() private returns (IDisputes.DisputeTerms memory terms) {
        terms = disputeTerms();
        terms.auditBps = 10_000;
        vm.prank(owner);
        disputes.setTerms(terms);
    }

    function _round() private {
        disputes.beginRound();
        vm.roll(vm.getBlockNumber() + 3);
        disputes.seal();
    }

    function _audit() private {
        IJobQueue.Settlement memory settlement = settlementOf(spec, receipt);
        disputes.audit(jobId, disputes.roundCount(), spec, settlement, receipt);
        _draw();
    }

    function _published(bytes memory output) private returns (uint64 id, IJobQueue.Receipt memory made) {
        id = submit(spec);
        claim(id, spec, alice);
        made = receiptFor(id, spec, alice);
        made.outputDigest = sha256(output);
        commit(id, spec, made, alice);
    }

    function _openChallenge() private {
        (IJobQueue.Settlement memory settlement, IJobQueue.Receipt memory of_) = (settlementOf(spec, receipt), receipt);
        vm.prank(challenger);
        disputes.challenge(jobId, spec, settlement, of_);
    }

    function _draw() private {
        vm.roll(vm.getBlockNumber() + 3);
        disputes.draw(jobId);
    }

    function _challenge() private {
        _openChallenge();
        _draw();
    }

    /// @dev The panel votes in its order; whoever is left keeps silent. Then the dispute is resolved.
    function _vote(uint256 passes, uint256 fails, uint256 unsure) private returns (address[] memory panel) {
        IDisputes.Dispute memory open = disputes.dispute(jobId);
        panel = open.panel;
        for (uint256 i = 0; i < passes + fails + unsure; i++) {
            vm.prank(panel[i]);
            disputes.commitVote(jobId, _commitment(panel[i], _verdict(i, passes, fails)));
        }
        vm.warp(open.commitBy + 1);
        for (uint256 i = 0; i < passes + fails + unsure; i++) {
            vm.prank(panel[i]);
            disputes.revealVote(jobId, _verdict(i, passes, fails), SALT);
        }
        vm.warp(open.revealBy + 1);
        IJobQueue.Settlement memory settlement = settlementOf(spec, receipt);
        disputes.resolve(jobId, settlement);
    }

    function _verdict(uint256 place, uint256 passes, uint256 fails) private pure returns (IDisputes.Verdict) {
        if (place < passes) return IDisputes.Verdict.Pass;
        return place < passes + fails ? IDisputes.Verdict.Fail : IDisputes.Verdict.Ambiguous;
    }

    function _commitment(address account, IDisputes.Verdict verdict) private view returns (bytes32) {
        return keccak256(abi.encode(block.chainid, address(disputes), jobId, account, verdict, SALT));
    }
}
