// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";

import {Disputes} from "src/Disputes.sol";
import {JobQueue} from "src/JobQueue.sol";
import {NodeRegistry} from "src/NodeRegistry.sol";
import {Outputs} from "src/Outputs.sol";
import {Sessions} from "src/Sessions.sol";
import {Vault} from "src/Vault.sol";
import {DevToken} from "src/dev/DevToken.sol";
import {IAdapterRegistry} from "src/interfaces/IAdapterRegistry.sol";
import {IDisputes} from "src/interfaces/IDisputes.sol";
import {IJobQueue} from "src/interfaces/IJobQueue.sol";
import {INodeRegistry} from "src/interfaces/INodeRegistry.sol";
import {IOutputs} from "src/interfaces/IOutputs.sol";
import {ISessions} from "src/interfaces/ISessions.sol";
import {JobFlags} from "src/libraries/JobFlags.sol";

import {MarketTest} from "./utils/MarketTest.sol";

/// @notice Moves jobs at random, and keeps the books in the plainest way: one row a job.
/// @dev Every action is made legal first, so that a revert is a finding (`fail_on_revert`).
contract MarketHandler is MarketTest {
    struct Ghost {
        IJobQueue.JobSpec spec;
        IJobQueue.Receipt receipt;
        IJobQueue.State state; // as stored: a lapsed claim is Claimed
        bool byAlice;
        uint256 committedAt;
        uint256 until;
        uint256 bond;
        uint256 forfeited;
        uint256 heldAt;
        uint256 questionBond; // while a question is open
        uint256 challengeBond; // while a dispute is
        uint256 auditPay; // while an audit is
        Holder holder;
    }

    enum Holder {
        Nobody,
        Outputs,
        Disputes
    }

    struct GhostSession {
        bytes32 id;
        bool byAlice;
        uint96 deposit;
        uint96[2] settled; // by recipe
        uint256 closeAt;
        bool closed;
    }

    address private constant BURNT = 0x000000000000000000000000000000000000dEaD;

    bytes private constant OUTPUT = "forty-two";
    uint256 private constant VERIFIERS = 8;
    uint72 private constant USE_FEE = 0.7 ether;

    address internal challenger = makeAddr("challenger");
    uint64 internal priced; // recipe of an adapter that costs a fee a use
    address[] private _verifiers;
    uint256 private _works;
    uint256 private _donated; // to the audits, and not spent
    uint64 public count;
    uint256 public sessionFees;
    GhostSession[] private _sessionGhosts;
    uint256 public fees;
    uint256 public withdrawn;
    mapping(uint64 jobId => Ghost) private _ghosts;

    /// @dev One call in four does what would leave the others little to do.
    modifier seldom(uint256 seed) {
        if (seed % 4 == 0) _;
    }

    function setUp() public override {
        super.setUp();
        fund(challenger, 100_000 ether);
        for (uint256 i = 0; i < VERIFIERS; i++) {
            _verifiers.push(makeAddr(string.concat("verifier", vm.toString(i))));
            fund(_verifiers[i], 10_000 ether);
            vm.prank(_verifiers[i]);
            disputes.enlist();
        }
        vm.prank(authorA);
        adapters.setAccess(ADAPTER_A, IAdapterRegistry.Access.PayPerUse, USE_FEE);
        (bytes32[] memory digests, int32[] memory weights) = ensembleOf(3, -1);
        priced = adapters.registerRecipe(BASE_ID, digests, weights);
        IDisputes.DisputeTerms memory terms = disputeTerms();
        terms.auditBps = 10_000;
        vm.prank(owner);
        disputes.setTerms(terms);
        skip(1);
    }

    /// @dev One to four jobs, of which two at most must be published.
    function submitJobs(uint32 maxIn, uint32 maxOut, uint96 price, uint8 kind) external {
        if (queue.paused()) return;
        IJobQueue.JobSpec[] memory specs = new IJobQueue.JobSpec[](1 + kind % 4);
        for (uint256 i = 0; i < specs.length; i++) {
            specs[i] = _specOf(maxIn, maxOut, price, uint256(kind) + i);
            _ghosts[count + uint64(i) + 1].spec = specs[i];
            _ghosts[count + uint64(i) + 1].state = IJobQueue.State.Open;
        }
        vm.prank(client);
        assertEq(queue.submitMany(specs, new bytes[](specs.length)), count + 1);
        count += uint64(specs.length);
    }

    function claimJobs(uint256 pick, bool byAlice, uint8 howMany) external {
        for (uint256 i = 0; i <= howMany % 4; i++) {
            _claim(pick, byAlice);
        }
    }

    function _specOf(uint32 maxIn, uint32 maxOut, uint96 price, uint256 kind)
        private
        returns (IJobQueue.JobSpec memory spec)
    {
        spec = newSpec();
        spec.deadline = uint40(block.timestamp + 1 days);
        if (kind % 2 == 0) spec.leaseSecs = 1 hours;
        spec.maxInTokens = uint32(bound(maxIn, 0, 1_000));
        spec.maxOutTokens = uint32(bound(maxOut, 0, 1_000));
        (spec.inPricePerK, spec.outPricePerK) = (uint96(bound(price, 0, 10 ether)), uint96(bound(price, 0, 999)));
        if (kind % 4 == 0) spec.recipeId = baseOnly;
        if (kind % 4 == 1) (spec.recipeId, spec.flags) = (priced, JobFlags.GUARDED);
        if (kind % 3 == 0) spec.flags |= JobFlags.PUBLISH;
    }

    function _claim(uint256 pick, bool byAlice) private {
        (uint64 jobId, bool found) = _pick(pick, IJobQueue.State.Open);
        Ghost storage ghost = _ghosts[jobId];
        Operator memory operator = byAlice ? alice : bob;
        if (!found || queue.paused() || block.timestamp > ghost.spec.deadline) return;
        if (nodes.freeStake(operator.cold) < _bond()) return;
        if (ghost.state == IJobQueue.State.Claimed) ghost.forfeited += _forfeit(ghost);
        claim(jobId, ghost.spec, operator);
        ghost.state = IJobQueue.State.Claimed;
        (ghost.byAlice, ghost.bond) = (byAlice, _bond());
        ghost.until = queue.job(jobId).leaseDeadline;
    }

    function releaseJob(uint256 pick) external {
        (uint64 jobId, bool found) = _pick(pick, IJobQueue.State.Claimed);
        if (!found) return;
        Ghost storage ghost = _ghosts[jobId];
        vm.prank(_operator(jobId).hot);
        queue.release(jobId);
        (ghost.state, ghost.bond) = (IJobQueue.State.Open, 0);
    }

    function commitJobs(uint256 pick, uint32 inTokens, uint32 outTokens, uint8 howMany) external {
        for (uint256 i = 0; i <= howMany % 4; i++) {
            _commit(pick, inTokens, outTokens);
        }
    }

    function _commit(uint256 pick, uint32 inTokens, uint32 outTokens) private {
        (uint64 jobId, bool found) = _pick(pick, IJobQueue.State.Claimed);
        if (!found) return;
        Ghost storage ghost = _ghosts[jobId];
        ghost.receipt = receiptFor(
            jobId,
            ghost.spec,
            _operator(jobId),
            uint32(bound(inTokens, 0, ghost.spec.maxInTokens)),
            uint32(bound(outTokens, 0, ghost.spec.maxOutTokens))
        );
        ghost.receipt.outputDigest = sha256(OUTPUT);
        ghost.receipt.fingerprintRoot = keccak256(bytes.concat(keccak256(abi.encode(uint32(0), OUTPUT))));
        commit(jobId, ghost.spec, ghost.receipt, _operator(jobId));
        ghost.state = IJobQueue.State.Committed;
        (ghost.committedAt, ghost.until) = (block.timestamp, block.timestamp + WINDOW);
        if (ghost.spec.flags & JobFlags.PUBLISH != 0) _hold(ghost, Holder.Outputs);
    }

    function demand(uint256 pick, bool aChunk) external {
        (uint64 jobId, bool found) = _pick(pick, IJobQueue.State.Committed);
        Ghost storage ghost = _ghosts[jobId];
        IOutputs.Kind kind = aChunk ? IOutputs.Kind.Chunk : IOutputs.Kind.Output;
        if (!found || block.timestamp >= ghost.until || outputs.asked(jobId, kind, 0)) return;
        (IJobQueue.Settlement memory settlement, IJobQueue.Receipt memory receipt) = _papers(ghost);
        if (aChunk && receipt.outTokens == 0) return;
        vm.prank(challenger);
        if (aChunk) outputs.demandChunk(jobId, settlement, receipt, 0);
        else outputs.demandOutput(jobId, settlement, receipt);
        ghost.questionBond = 1 ether + uint256(receipt.outTokens) * 0.001 ether;
        _hold(ghost, Holder.Outputs);
    }

    /// @dev In time the answer is given, by whomever; later the node is at fault.
    function answerOrCondemn(uint256 pick, bool late) external {
        (uint64 jobId, bool found) = _pick(pick, IJobQueue.State.Held, Holder.Outputs);
        Ghost storage ghost = _ghosts[jobId];
        if (!found) return;
        if (late && block.timestamp <= ghost.heldAt + 10 minutes) vm.warp(ghost.heldAt + 10 minutes + 1);
        if (block.timestamp <= ghost.heldAt + 10 minutes) {
            if (outputs.question(jobId).kind != IOutputs.Kind.Chunk) outputs.publishOutput(jobId, OUTPUT);
            else outputs.openChunk(jobId, OUTPUT, new bytes32[](0));
            _resume(ghost);
        } else {
            (IJobQueue.Settlement memory settlement,) = _papers(ghost);
            outputs.resolve(jobId, settlement);
            _end(ghost, IJobQueue.State.Slashed);
        }
        ghost.questionBond = 0;
    }

    function challengeJob(uint256 pick, bool draw) external {
        (uint64 jobId, bool found) = _pick(pick, IJobQueue.State.Committed);
        Ghost storage ghost = _ghosts[jobId];
        if (!found || block.timestamp >= ghost.until || disputes.dispute(jobId).openedAt != 0) return;
        if (disputes.verifiers().length < 7) return;
        (IJobQueue.Settlement memory settlement, IJobQueue.Receipt memory receipt) = _papers(ghost);
        vm.prank(challenger);
        disputes.challenge(jobId, ghost.spec, settlement, receipt);
        ghost.challengeBond = 20 ether;
        _hold(ghost, Holder.Disputes);
        if (draw) _drawPanel(jobId);
    }

    function auditJob(uint256 pick, uint96 donation) external {
        donation = uint96(bound(donation, 0, 1 ether));
        vm.prank(challenger);
        disputes.fundAudits(donation);
        _donated += donation;
        _beginRound();
        (uint64 jobId, bool found) = _pick(pick, IJobQueue.State.Committed);
        Ghost storage ghost = _ghosts[jobId];
        if (!found || block.timestamp >= ghost.until || disputes.dispute(jobId).openedAt != 0) return;
        if (ghost.committedAt >= disputes.round(disputes.roundCount()).begunAt || disputes.verifiers().length < 7) {
            return;
        }
        (IJobQueue.Settlement memory settlement, IJobQueue.Receipt memory receipt) = _papers(ghost);
        ghost.auditPay = Math.min(receipt.fee, disputes.auditFund());
        disputes.audit(jobId, disputes.roundCount(), ghost.spec, settlement, receipt);
        _hold(ghost, Holder.Disputes);
        _drawPanel(jobId);
    }

    /// @dev Two bits of `votes` a member: silent, PASS, FAIL or AMBIGUOUS.
    function judge(uint256 pick, uint16 votes, uint8 mood) external {
        if (mood % 3 == 0) votes = 0xaaaa; // all FAIL
        if (mood % 3 == 1) votes = 0x5555; // all PASS
        (uint64 jobId, bool found) = _pick(pick, IJobQueue.State.Held, Holder.Disputes);
        Ghost storage ghost = _ghosts[jobId];
        if (!found) return;
        IDisputes.Dispute memory open = disputes.dispute(jobId);
        if (block.timestamp <= open.commitBy) _castVotes(jobId, open, votes);
        if (block.timestamp <= open.revealBy) vm.warp(open.revealBy + 1);
        (IJobQueue.Settlement memory settlement,) = _papers(ghost);
        disputes.resolve(jobId, settlement);
        IDisputes.Verdict verdict = disputes.dispute(jobId).verdict;
        if (verdict == IDisputes.Verdict.Fail) _end(ghost, IJobQueue.State.Slashed);
        else if (verdict == IDisputes.Verdict.Ambiguous) _end(ghost, IJobQueue.State.Annulled);
        else _resume(ghost);
        if (verdict != IDisputes.Verdict.None) _donated -= ghost.auditPay;
        (ghost.challengeBond, ghost.auditPay) = (0, 0);
    }

    function moveVerifier(uint256 pick) external {
        address account = _verifiers[pick % VERIFIERS];
        IDisputes.Verifier memory verifier = disputes.verifier(account);
        vm.startPrank(account);
        if (verifier.enlistedAt == 0) {
            disputes.enlist();
        } else if (verifier.leavesAt == 0 && disputes.verifiers().length == VERIFIERS) {
            disputes.retire();
        } else if (verifier.leavesAt > 0 && block.timestamp >= verifier.leavesAt && verifier.duties == 0) {
            disputes.withdraw(account);
        }
        vm.stopPrank();
    }

    function finalizeJobs(uint256 pick) external {
        (uint64 first, bool found) = _pick(pick, IJobQueue.State.Committed);
        if (!found) return;
        uint64[] memory jobIds = new uint64[](count);
        uint256 n = 0;
        for (uint64 jobId = first; jobId <= count && n < 8; jobId++) {
            IJobQueue.State state = _ghosts[jobId].state;
            if (state < IJobQueue.State.Committed || _isRefunded(state)) continue;
            bool due = state == IJobQueue.State.Committed && n < 4; // later ones may find their window open
            if (due && block.timestamp < _ghosts[jobId].until) vm.warp(_ghosts[jobId].until);
            jobIds[n++] = jobId;
        }
        IJobQueue.Settlement[] memory settlements = new IJobQueue.Settlement[](n);
        assembly ("memory-safe") {
            mstore(jobIds, n)
        }
        for (uint256 i = 0; i < n; i++) {
            Ghost storage ghost = _ghosts[jobIds[i]];
            settlements[i] = settlementOf(ghost.spec, ghost.receipt);
            if (ghost.state != IJobQueue.State.Committed || block.timestamp < ghost.until) continue;
            fees += ghost.receipt.fee;
            _end(ghost, IJobQueue.State.Finalized);
        }
        queue.finalizeBatch(jobIds, settlements);
    }

    function cancelJob(uint256 pick) external seldom(pick) {
        (uint64 jobId, bool found) = _pick(pick, IJobQueue.State.Open);
        if (!found) return;
        vm.prank(client);
        queue.cancel(jobId, _ghosts[jobId].spec);
        _end(_ghosts[jobId], IJobQueue.State.Cancelled);
    }

    function expireJob(uint256 pick) external {
        (uint64 jobId, bool found) = _pick(pick, IJobQueue.State.Open);
        if (!found || block.timestamp <= _ghosts[jobId].spec.deadline) return;
        queue.expire(jobId, _ghosts[jobId].spec);
        _end(_ghosts[jobId], IJobQueue.State.Expired);
    }

    function openSession(uint96 deposit, bool byAlice) external {
        deposit = uint96(bound(deposit, 0, 1_000 ether));
        if (nodes.freeStake((byAlice ? alice : bob).cold) == 0) return;
        GhostSession storage ghost = _sessionGhosts.push();
        ghost.id = openSession(byAlice ? alice : bob, deposit, _sessionGhosts.length);
        (ghost.byAlice, ghost.deposit) = (byAlice, deposit);
    }

    function topUpSession(uint256 pick, uint96 amount) external {
        (GhostSession storage ghost, bool found) = _pickSession(pick);
        if (!found || ghost.closeAt != 0) return;
        amount = uint96(bound(amount, 0, 100 ether));
        vm.prank(client);
        sessions.topUp(ghost.id, amount);
        ghost.deposit += amount;
    }

    function settleSession(uint256 pick, uint96 added, bool underEnsemble) external {
        (GhostSession storage ghost, bool found) = _pickSession(pick);
        uint96 left = found ? ghost.deposit - ghost.settled[0] - ghost.settled[1] : 0;
        if (left == 0) return;
        added = uint96(bound(added, 1, left));
        ghost.settled[underEnsemble ? 1 : 0] += added;
        settle(ghost.id, ghost.settled[0], ghost.settled[1]);
        sessionFees += added;
    }

    function closeSession(uint256 pick, bool byNode) external {
        (GhostSession storage ghost, bool found) = _pickSession(pick);
        if (!found) return;
        if (!byNode && ghost.closeAt == 0) {
            vm.prank(client);
            sessions.requestClose(ghost.id);
            ghost.closeAt = block.timestamp + CLOSE_DELAY;
            return;
        }
        if (!byNode && block.timestamp < ghost.closeAt) {
            if (pick % 8 != 0) return; // a day, in which all jobs would end
            vm.warp(ghost.closeAt);
        }
        address node = (ghost.byAlice ? alice : bob).cold;
        if (byNode) vm.prank(node);
        sessions.close(ghost.id);
        ghost.closed = true;
    }

    function slashNode(bool byAlice, uint256 seed) external seldom(seed) {
        address node = (byAlice ? alice : bob).cold;
        uint256 owed = nodes.owed(node);
        uint256 due = (nodes.node(node).stake - owed) / 2;
        uint256 slashed = Math.min(due, nodes.freeStake(node) + nodes.node(node).unstaking);
        uint256 burnt = vault.creditsOf(BURNT);
        uint256 won = vault.creditsOf(challenger);
        proveEquivocation(keccak256(abi.encode(++_works)), byAlice ? alice : bob, challenger);
        assertEq(vault.creditsOf(challenger) - won, slashed / 2);
        assertEq(vault.creditsOf(BURNT) - burnt, slashed - slashed / 2 - slashed / 4);
        assertEq(nodes.owed(node), owed + due - slashed);
    }

    function setPaused(uint256 seed) external {
        bool paused = seed % 4 == 0;
        if (queue.paused() == paused) return;
        vm.prank(paused ? guardian : owner);
        if (paused) queue.pause();
        else queue.unpause();
    }

    function setBond(uint96 bond) external {
        IJobQueue.Params memory params = defaultParams();
        params.bond = uint96(bound(bond, 0, 20 ether));
        setParams(params);
    }

    function moveStake(uint256 amount, uint8 move) external {
        Operator memory operator = move % 2 == 0 ? alice : bob;
        vm.startPrank(operator.cold);
        if (move % 3 == 0) nodes.stake(bound(amount, 0, vault.balanceOf(operator.cold)));
        if (move % 3 == 1) nodes.beginUnstake(bound(amount, 0, nodes.freeStake(operator.cold)));
        INodeRegistry.Node memory node = nodes.node(operator.cold);
        bool leaves = node.unstaking > 0 && block.timestamp >= node.unstakeAt && node.liveClaims == 0;
        if (move % 3 == 2 && leaves) nodes.withdrawStake();
        vm.stopPrank();
    }

    function takeOut(uint256 amount, uint8 who) external {
        address[] memory all = everyone();
        address account = all[who % all.length];
        vm.startPrank(account);
        withdrawn += vault.claimCredits(address(0xcafe));
        amount = bound(amount, 0, vault.balanceOf(account) / 100);
        vault.withdraw(address(0xcafe), amount);
        withdrawn += amount;
        vm.stopPrank();
    }

    /// @dev Mostly less than a lease.
    function pass(uint32 time) external {
        skip(bound(time, 1, time % 4 == 0 ? 1 hours : 1 minutes));
        vm.roll(block.number + 1);
    }

    // What the books say

    function everyone() public view returns (address[] memory all) {
        address[11] memory parties = [
            client,
            alice.cold,
            bob.cold,
            authorA,
            authorB,
            dataPayee1,
            dataPayee2,
            basePayee,
            treasury,
            challenger,
            address(this)
        ];
        all = new address[](parties.length + VERIFIERS);
        for (uint256 i = 0; i < all.length; i++) {
            all[i] = i < parties.length ? parties[i] : _verifiers[i - parties.length];
        }
    }

    /// @dev Over all jobs: bonds of open questions and of open disputes; the verifiers' stakes; what audits have not spent,
    /// and what of it open ones may.
    function judgesBooks()
        external
        view
        returns (uint256 questions, uint256 challenges, uint256 stakes, uint256 donated, uint256 pays)
    {
        donated = _donated;
        for (uint64 jobId = 1; jobId <= count; jobId++) {
            questions += _ghosts[jobId].questionBond;
            challenges += _ghosts[jobId].challengeBond;
            pays += _ghosts[jobId].auditPay;
        }
        for (uint256 i = 0; i < VERIFIERS; i++) {
            stakes += disputes.verifier(_verifiers[i]).stake;
        }
    }

    /// @dev Over all jobs: escrow held, bonds held of each node, forfeits waiting.
    function books() external view returns (uint256 escrow, uint256 bondsAlice, uint256 bondsBob, uint256 forfeits) {
        for (uint64 jobId = 1; jobId <= count; jobId++) {
            Ghost storage ghost = _ghosts[jobId];
            if (!_isLive(ghost.state)) continue;
            escrow += queue.escrowOf(ghost.spec) + (ghost.spec.recipeId == priced ? USE_FEE : 0);
            if (ghost.byAlice) bondsAlice += ghost.bond;
            else bondsBob += ghost.bond;
            forfeits += ghost.forfeited;
        }
    }

    /// @dev Claimed, and not yet final, released, or taken over.
    function liveClaimsOf(bool byAlice) external view returns (uint256 live) {
        for (uint64 jobId = 1; jobId <= count; jobId++) {
            Ghost storage ghost = _ghosts[jobId];
            bool bonded = _isLive(ghost.state) && ghost.state != IJobQueue.State.Open;
            if (bonded && ghost.byAlice == byAlice) live++;
        }
    }

    function stateOfGhost(uint64 jobId) public view returns (IJobQueue.State) {
        Ghost storage ghost = _ghosts[jobId];
        bool lapsed = ghost.state == IJobQueue.State.Claimed && block.timestamp > ghost.until;
        return lapsed ? IJobQueue.State.Open : ghost.state;
    }

    function contracts() external view returns (DevToken, Vault, NodeRegistry, JobQueue, Sessions, Outputs, Disputes) {
        return (token, vault, nodes, queue, sessions, outputs, disputes);
    }

    /// @dev Over all sessions that are not closed: what they hold; and whether each says what is booked.
    function sessionBooks() external view returns (uint256 held, bool asBooked) {
        asBooked = true;
        for (uint256 i = 0; i < _sessionGhosts.length; i++) {
            GhostSession storage ghost = _sessionGhosts[i];
            uint96 settled = ghost.settled[0] + ghost.settled[1];
            if (!ghost.closed) held += ghost.deposit - settled;
            ISessions.Session memory session = sessions.session(ghost.id);
            asBooked = asBooked && session.settled == settled && session.settled <= session.deposit
                && session.deposit == (ghost.closed ? settled : ghost.deposit)
                && sessions.paid(ghost.id, ensemble) == ghost.settled[1]
                && (session.state == ISessions.State.Closed) == ghost.closed;
        }
    }

    function operators() external view returns (address, address) {
        return (alice.cold, bob.cold);
    }

    /// @dev Of the bond of a lapsed lease, what slashings and the tenth that is burnt leave for the job.
    function _forfeit(Ghost storage ghost) private view returns (uint256) {
        uint256 gone = nodes.owed((ghost.byAlice ? alice : bob).cold) + ghost.bond / 10;
        return ghost.bond - Math.min(ghost.bond, gone);
    }

    function _end(Ghost storage ghost, IJobQueue.State end) private {
        (ghost.state, ghost.bond, ghost.forfeited) = (end, 0, 0);
    }

    function _hold(Ghost storage ghost, Holder holder) private {
        (ghost.state, ghost.heldAt, ghost.holder) = (IJobQueue.State.Held, block.timestamp, holder);
    }

    function _resume(Ghost storage ghost) private {
        (ghost.state, ghost.holder) = (IJobQueue.State.Committed, Holder.Nobody);
        ghost.until += block.timestamp - ghost.heldAt;
    }

    function _drawPanel(uint64 jobId) private {
        vm.roll(vm.getBlockNumber() + 3);
        try disputes.draw(jobId) {} catch {} // those who are leaving may leave too few
    }

    function _beginRound() private {
        if (block.timestamp < disputes.round(disputes.roundCount()).begunAt + WINDOW) return;
        disputes.beginRound();
        vm.roll(vm.getBlockNumber() + 3);
        disputes.seal();
    }

    function _papers(Ghost storage ghost)
        private
        view
        returns (IJobQueue.Settlement memory settlement, IJobQueue.Receipt memory receipt)
    {
        receipt = ghost.receipt;
        settlement = settlementOf(ghost.spec, receipt);
    }

    function _castVotes(uint64 jobId, IDisputes.Dispute memory open, uint16 votes) private {
        for (uint256 i = 0; i < open.panel.length; i++) {
            IDisputes.Verdict verdict = IDisputes.Verdict((votes >> 2 * i) & 3);
            bytes32 commitment =
                keccak256(abi.encode(block.chainid, address(disputes), jobId, open.panel[i], verdict, bytes32(0)));
            vm.prank(open.panel[i]);
            disputes.commitVote(jobId, commitment);
        }
        vm.warp(open.commitBy + 1);
        for (uint256 i = 0; i < open.panel.length; i++) {
            IDisputes.Verdict verdict = IDisputes.Verdict((votes >> 2 * i) & 3);
            if (verdict == IDisputes.Verdict.None) continue;
            vm.prank(open.panel[i]);
            disputes.revealVote(jobId, verdict, 0);
        }
    }

    function _isLive(IJobQueue.State state) private pure returns (bool) {
        return state <= IJobQueue.State.Committed || state == IJobQueue.State.Held;
    }

    /// @dev Ended without a receipt: a batch that names it is refused.
    function _isRefunded(IJobQueue.State state) private pure returns (bool) {
        return state == IJobQueue.State.Cancelled || state == IJobQueue.State.Expired;
    }

    function _bond() private view returns (uint256) {
        return queue.params(queue.paramsVersion()).bond;
    }

    function _operator(uint64 jobId) private view returns (Operator memory) {
        return _ghosts[jobId].byAlice ? alice : bob;
    }

    /// @dev The first session from a random one on that is not closed.
    function _pickSession(uint256 seed) private view returns (GhostSession storage ghost, bool found) {
        uint256 n = _sessionGhosts.length;
        for (uint256 i = 0; i < n; i++) {
            ghost = _sessionGhosts[(seed % n + i) % n];
            if (!ghost.closed) return (ghost, true);
        }
        assembly ("memory-safe") {
            ghost.slot := 0 // none: not to be used
        }
    }

    function _pick(uint256 seed, IJobQueue.State state) private view returns (uint64 jobId, bool found) {
        return _pick(seed, state, Holder.Nobody);
    }

    /// @dev The first job from a random one on that reads as `state`, and is held by `holder`.
    function _pick(uint256 seed, IJobQueue.State state, Holder holder) private view returns (uint64 jobId, bool found) {
        if (count == 0) return (0, false);
        for (uint64 i = 0; i < count; i++) {
            jobId = uint64((seed % count + i) % count + 1);
            if (stateOfGhost(jobId) == state && _ghosts[jobId].holder == holder) return (jobId, true);
        }
        return (0, false);
    }
}

contract MarketInvariants is MarketTest {
    MarketHandler private _handler;

    function setUp() public override {
        _handler = new MarketHandler();
        _handler.setUp();
        (token, vault, nodes, queue, sessions, outputs, disputes) = _handler.contracts();
        bytes4[] memory actions = new bytes4[](29);
        actions[0] = MarketHandler.submitJobs.selector;
        actions[1] = MarketHandler.claimJobs.selector;
        actions[2] = MarketHandler.releaseJob.selector;
        actions[3] = MarketHandler.commitJobs.selector;
        actions[4] = MarketHandler.finalizeJobs.selector;
        actions[5] = MarketHandler.cancelJob.selector;
        actions[6] = MarketHandler.expireJob.selector;
        actions[7] = MarketHandler.setBond.selector;
        actions[8] = MarketHandler.moveStake.selector;
        actions[9] = MarketHandler.takeOut.selector;
        actions[10] = MarketHandler.pass.selector;
        actions[11] = bytes4(keccak256("openSession(uint96,bool)"));
        actions[12] = MarketHandler.topUpSession.selector;
        actions[13] = MarketHandler.settleSession.selector;
        actions[14] = MarketHandler.closeSession.selector;
        actions[15] = MarketHandler.setPaused.selector;
        actions[16] = MarketHandler.slashNode.selector;
        actions[17] = MarketHandler.demand.selector;
        actions[18] = MarketHandler.answerOrCondemn.selector;
        actions[19] = MarketHandler.challengeJob.selector;
        actions[20] = MarketHandler.judge.selector;
        actions[21] = MarketHandler.moveVerifier.selector;
        actions[22] = MarketHandler.auditJob.selector;
        for (uint256 i = 0; i < 3; i++) {
            (actions[23 + i], actions[26 + i]) = (actions[1], actions[3]); // what most others need
        }
        targetSelector(FuzzSelector(address(_handler), actions));
        targetContract(address(_handler));
    }

    /// @dev One campaign for all: they share its cost.
    function invariant_the_market_is_sound() public view {
        _assertBooksBalance();
        _assertStatesAreAsBooked();
        _assertSessionsAreAsBooked();
        _assertTokensAreAccountedFor();
    }

    function _assertBooksBalance() private view {
        (uint256 escrow, uint256 bondsAlice, uint256 bondsBob, uint256 forfeits) = _handler.books();
        (address alice_, address bob_) = _handler.operators();
        assertEq(vault.potOf(address(queue)), escrow, "escrow is held exactly while a job is live");
        assertEq(nodes.node(alice_).bonded, bondsAlice, "locked stake is the live bonds");
        assertEq(nodes.node(bob_).bonded, bondsBob, "locked stake is the live bonds");
        assertLe(nodes.owed(alice_), bondsAlice, "only live bonds owe");
        assertLe(nodes.owed(bob_), bondsBob, "only live bonds owe");
        assertEq(nodes.forfeitPool(), forfeits, "forfeits wait for their job");
        uint256 stakes = uint256(nodes.node(alice_).stake) + nodes.node(bob_).stake;
        assertEq(vault.potOf(address(nodes)), stakes + forfeits, "stakes and forfeits are the registry's pot");
        uint256 fees = queue.recipeFees(1) + queue.recipeFees(2) + queue.recipeFees(3);
        assertEq(fees, _handler.fees(), "cumulative fees");
        (uint256 questions, uint256 challenges, uint256 verifiers, uint256 donated, uint256 pays) =
            _handler.judgesBooks();
        assertEq(vault.potOf(address(outputs)), questions, "bonds of open questions");
        assertEq(
            vault.potOf(address(disputes)), challenges + verifiers + donated, "open bonds, verifiers' stakes, the fund"
        );
        assertEq(disputes.auditFund(), donated - pays, "the fund is what no open audit may spend");
    }

    function _assertStatesAreAsBooked() private view {
        (address alice_, address bob_) = _handler.operators();
        assertEq(nodes.node(alice_).liveClaims, _handler.liveClaimsOf(true));
        assertEq(nodes.node(bob_).liveClaims, _handler.liveClaimsOf(false));
        for (uint64 jobId = 1; jobId <= _handler.count(); jobId++) {
            assertEq(uint256(stateOf(jobId)), uint256(_handler.stateOfGhost(jobId)));
        }
    }

    function _assertSessionsAreAsBooked() private view {
        (uint256 held, bool asBooked) = _handler.sessionBooks();
        assertTrue(asBooked);
        assertEq(vault.potOf(address(sessions)), held, "the pot is the open deposits' rest");
        assertEq(sessions.recipeFees(1) + sessions.recipeFees(2), _handler.sessionFees(), "cumulative fees");
    }

    function _assertTokensAreAccountedFor() private view {
        uint256 held = vault.potOf(address(queue)) + vault.potOf(address(nodes)) + vault.potOf(address(sessions))
            + vault.potOf(address(outputs)) + vault.potOf(address(disputes));
        address[] memory accounts = _handler.everyone();
        held += vault.creditsOf(0x000000000000000000000000000000000000dEaD);
        for (uint256 i = 0; i < accounts.length; i++) {
            held += vault.balanceOf(accounts[i]) + vault.creditsOf(accounts[i]);
        }
        assertEq(token.balanceOf(address(vault)), held, "every token has a place");
        assertEq(token.totalSupply(), held + _handler.withdrawn(), "and none was made");
    }
}
