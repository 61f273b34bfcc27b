// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {Blockhash} from "@openzeppelin/contracts/utils/Blockhash.sol";
import {Test} from "forge-std/Test.sol";

import {AdapterRegistry} from "src/AdapterRegistry.sol";
import {DevToken} from "src/dev/DevToken.sol";
import {Disputes} from "src/Disputes.sol";
import {Governance} from "src/Governance.sol";
import {JobQueue} from "src/JobQueue.sol";
import {NodeRegistry} from "src/NodeRegistry.sol";
import {Outputs} from "src/Outputs.sol";
import {Sessions} from "src/Sessions.sol";
import {Vault} from "src/Vault.sol";
import {IAdapterRegistry} from "src/interfaces/IAdapterRegistry.sol";
import {IDisputes} from "src/interfaces/IDisputes.sol";
import {IJobQueue} from "src/interfaces/IJobQueue.sol";
import {INodeRegistry} from "src/interfaces/INodeRegistry.sol";
import {IOutputs} from "src/interfaces/IOutputs.sol";
import {ISessions} from "src/interfaces/ISessions.sol";
import {IVault} from "src/interfaces/IVault.sol";

/// @notice A deployed market with a client, two nodes, and two recipes; and the words to move a job along.
abstract contract MarketTest is Test {
    uint96 internal constant BOND = 5 ether;
    uint16 internal constant MAX_LIVE_CLAIMS = 100;
    uint32 internal constant WINDOW = 30 minutes;
    uint32 internal constant MAX_LEASE = 1 hours;
    uint32 internal constant MAX_DURATION = 1 days;
    uint32 internal constant UNSTAKE_DELAY = 7 days;
    uint32 internal constant CLOSE_DELAY = 1 days;
    bytes32 internal constant BASE_ID = keccak256("base");
    bytes32 internal constant ADAPTER_A = bytes32(uint256(0xa));
    bytes32 internal constant ADAPTER_B = bytes32(uint256(0xb));
    address private constant SYSTEM = 0xffffFFFfFFffffffffffffffFfFFFfffFFFfFFfE; // who fills the history: EIP-2935
    bytes private constant HISTORY_CODE =
        hex"3373fffffffffffffffffffffffffffffffffffffffe14604657602036036042575f35600143038111604257611fff81430311604257611fff9006545f5260205ff35b5f5ffd5b5f35611fff60014303065500";

    struct Operator {
        address cold;
        address hot;
        uint256 hotKey;
    }

    DevToken internal token;
    Vault internal vault;
    AdapterRegistry internal adapters;
    NodeRegistry internal nodes;
    JobQueue internal queue;
    Sessions internal sessions;
    Outputs internal outputs;
    Disputes internal disputes;
    Governance internal governance;

    address internal owner = makeAddr("owner");
    address internal guardian = makeAddr("guardian");
    address internal treasury = makeAddr("treasury");
    address internal client;
    uint256 internal clientKey;
    address internal basePayee = makeAddr("basePayee");
    address internal authorA = makeAddr("authorA");
    address internal authorB = makeAddr("authorB");
    address internal dataPayee1 = makeAddr("dataPayee1");
    address internal dataPayee2 = makeAddr("dataPayee2");
    Operator internal alice;
    Operator internal bob;

    uint64 internal baseOnly; // recipe without adapters
    uint64 internal ensemble; // A with a datanet and weight 3, B without one and weight -1
    uint256 private _nonce;

    function setUp() public virtual {
        vm.warp(1_800_000_000);
        vm.roll(1_000);
        (client, clientKey) = makeAddrAndKey("client");
        deployMarket();
        alice = newOperator("alice");
        bob = newOperator("bob");
        fund(client, 1_000_000 ether);
        registerRecipes();
    }

    function deployMarket() internal {
        token = new DevToken();
        uint256 nonce = vm.getNonce(address(this));
        address nodesAddress = vm.computeCreateAddress(address(this), nonce + 2);
        address queueAddress = vm.computeCreateAddress(address(this), nonce + 3);
        address sessionsAddress = vm.computeCreateAddress(address(this), nonce + 4);
        address outputsAddress = vm.computeCreateAddress(address(this), nonce + 5);
        address disputesAddress = vm.computeCreateAddress(address(this), nonce + 6);
        address governanceAddress = vm.computeCreateAddress(address(this), nonce + 7);
        vault = new Vault(
            token, IVault.Modules(nodesAddress, queueAddress, sessionsAddress, outputsAddress, disputesAddress)
        );
        adapters = new AdapterRegistry(treasury);
        nodes = new NodeRegistry(vault, queueAddress, outputsAddress, disputesAddress, UNSTAKE_DELAY);
        queue = new JobQueue(nodes, adapters, governanceAddress, defaultParams());
        sessions = new Sessions(nodes, adapters, governanceAddress, CLOSE_DELAY);
        outputs = new Outputs(nodes, queue, governanceAddress, outputTerms());
        disputes = new Disputes(nodes, queue, sessions, governanceAddress, disputeTerms());
        governance = new Governance(owner, guardian, timelockSecs(), queue, sessions);
    }

    /// @dev None, so that the owner's calls take effect at once where the timelock is not what a test is about.
    function timelockSecs() internal view virtual returns (uint32) {
        return 0;
    }

    function defaultParams() internal pure returns (IJobQueue.Params memory) {
        return IJobQueue.Params({
            bond: BOND,
            maxLiveClaims: MAX_LIVE_CLAIMS,
            windowSecs: WINDOW,
            maxLeaseSecs: MAX_LEASE,
            maxDurationSecs: MAX_DURATION
        });
    }

    function outputTerms() internal pure returns (IOutputs.OutputTerms memory) {
        return
            IOutputs.OutputTerms({
                answerSecs: 10 minutes, bond: 1 ether, bondPerToken: 0.001 ether, maxOutTokens: 8_192
            });
    }

    function disputeTerms() internal pure returns (IDisputes.DisputeTerms memory) {
        return IDisputes.DisputeTerms({
            challengeBond: 20 ether,
            verifierStake: 100 ether,
            missPenalty: 10 ether,
            drawSecs: 10 minutes,
            commitSecs: 1 hours,
            revealSecs: 1 hours,
            roundSecs: WINDOW,
            auditBps: 500
        });
    }

    function fund(address account, uint256 amount) internal {
        token.mint(account, amount);
        vm.startPrank(account);
        token.approve(address(vault), amount);
        vault.deposit(account, amount);
        vm.stopPrank();
    }

    function newOperator(string memory name) internal returns (Operator memory operator) {
        operator.cold = makeAddr(name);
        (operator.hot, operator.hotKey) = makeAddrAndKey(string.concat(name, ".hot"));
        fund(operator.cold, 10_000 ether);
        INodeRegistry.HotKeyConsent memory agreed = consent(operator.cold, operator.hot, operator.hotKey);
        vm.startPrank(operator.cold);
        nodes.register(agreed, bytes32(uint256(1)), bytes32(uint256(2)), hex"0024");
        nodes.stake(5_000 ether);
        vm.stopPrank();
    }

    /// @dev The hot key agrees, for an hour, to serve the operator.
    function consent(address operator, address hot, uint256 key)
        internal
        view
        returns (INodeRegistry.HotKeyConsent memory)
    {
        uint40 deadline = uint40(block.timestamp + 1 hours);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, nodes.hashConsent(operator, deadline));
        return INodeRegistry.HotKeyConsent(hot, deadline, abi.encodePacked(r, s, v));
    }

    function setHotKey(Operator memory operator, address hot, uint256 key) internal {
        INodeRegistry.HotKeyConsent memory agreed = consent(operator.cold, hot, key);
        vm.prank(operator.cold);
        nodes.setHotKey(agreed);
    }

    function registerRecipes() internal {
        adapters.registerBase(BASE_ID, basePayee, "base");
        IAdapterRegistry.Share[] memory shares = new IAdapterRegistry.Share[](2);
        shares[0] = IAdapterRegistry.Share(dataPayee1, 7_000);
        shares[1] = IAdapterRegistry.Share(dataPayee2, 3_000);
        uint32[] memory datanets = new uint32[](1);
        datanets[0] = adapters.createDatanet(bytes32(uint256(1)), shares, "data");
        vm.prank(authorA);
        adapters.registerAdapter(ADAPTER_A, BASE_ID, datanets, "a");
        vm.prank(authorB);
        adapters.registerAdapter(ADAPTER_B, BASE_ID, new uint32[](0), "b");
        baseOnly = adapters.registerRecipe(BASE_ID, new bytes32[](0), new int32[](0));
        (bytes32[] memory digests, int32[] memory weights) = ensembleOf(3, -1);
        ensemble = adapters.registerRecipe(BASE_ID, digests, weights);
    }

    function ensembleOf(int32 a, int32 b) internal pure returns (bytes32[] memory digests, int32[] memory weights) {
        (digests, weights) = (new bytes32[](2), new int32[](2));
        (digests[0], digests[1]) = (ADAPTER_A, ADAPTER_B);
        (weights[0], weights[1]) = (a, b);
    }

    // A job's life

    function newSpec() internal returns (IJobQueue.JobSpec memory) {
        return IJobQueue.JobSpec({
            client: client,
            recipeId: ensemble,
            inputDigest: keccak256(abi.encode("input", _nonce)),
            maxInTokens: 512,
            maxOutTokens: 256,
            inPricePerK: 1 ether,
            outPricePerK: 3 ether,
            deadline: uint40(block.timestamp + 1 hours),
            leaseSecs: 120,
            flags: 0,
            nonce: uint256(keccak256(abi.encode(_nonce++)))
        });
    }

    function submit(IJobQueue.JobSpec memory spec) internal returns (uint64 jobId) {
        vm.prank(spec.client);
        return queue.submit(spec, "");
    }

    function claim(uint64 jobId, IJobQueue.JobSpec memory spec, Operator memory operator) internal {
        vm.prank(operator.hot);
        queue.claim(jobId, spec);
        vm.roll(vm.getBlockNumber() + 1); // the claim's block has its hash
    }

    /// @dev From here on as on a chain with EIP-2935, whose history knows of the last block, and of no other yet.
    function startHistory() internal {
        vm.etch(Blockhash.HISTORY_STORAGE_ADDRESS, HISTORY_CODE);
        vm.prank(SYSTEM);
        (bool kept,) = Blockhash.HISTORY_STORAGE_ADDRESS.call(abi.encode(blockhash(vm.getBlockNumber() - 1)));
        assertTrue(kept);
    }

    function receiptFor(uint64 jobId, IJobQueue.JobSpec memory spec, Operator memory operator)
        internal
        view
        returns (IJobQueue.Receipt memory)
    {
        return receiptFor(jobId, spec, operator, spec.maxInTokens / 2, spec.maxOutTokens / 2);
    }

    function receiptFor(
        uint64 jobId,
        IJobQueue.JobSpec memory spec,
        Operator memory operator,
        uint32 inTokens,
        uint32 outTokens
    ) internal view returns (IJobQueue.Receipt memory) {
        return IJobQueue.Receipt({
            workId: keccak256(abi.encode(address(queue), jobId)),
            node: operator.cold,
            recipeId: spec.recipeId,
            specHash: queue.hashSpec(spec),
            inputDigest: spec.inputDigest,
            outputDigest: keccak256(abi.encode("output", jobId)),
            inTokens: inTokens,
            outTokens: outTokens,
            seed: seedOf(jobId, spec),
            fingerprintRoot: keccak256(abi.encode("fingerprint", jobId)),
            dataAttrRoot: keccak256(abi.encode("attribution", jobId)),
            engineProfile: 1,
            finishReason: 0,
            finishedAt: uint40(block.timestamp),
            fee: queue.feeOf(spec, inTokens, outTokens)
        });
    }

    function seedOf(uint64 jobId, IJobQueue.JobSpec memory spec) internal view returns (uint64) {
        bytes32 claimHash = blockhash(queue.job(jobId).claimBlock);
        return uint64(bytes8(keccak256(abi.encodePacked(queue.hashSpec(spec), claimHash))));
    }

    function answerOf(IJobQueue.Receipt memory receipt) internal pure returns (IJobQueue.Answer memory) {
        return IJobQueue.Answer({
            outputDigest: receipt.outputDigest,
            inTokens: receipt.inTokens,
            outTokens: receipt.outTokens,
            seed: receipt.seed,
            fingerprintRoot: receipt.fingerprintRoot,
            dataAttrRoot: receipt.dataAttrRoot,
            engineProfile: receipt.engineProfile,
            finishReason: receipt.finishReason,
            finishedAt: receipt.finishedAt
        });
    }

    function settlementOf(IJobQueue.JobSpec memory spec, IJobQueue.Receipt memory receipt)
        internal
        view
        returns (IJobQueue.Settlement memory)
    {
        return IJobQueue.Settlement({
            receiptHash: queue.hashReceipt(receipt),
            client: spec.client,
            recipeId: spec.recipeId,
            fee: receipt.fee,
            refund: queue.escrowOf(spec) - receipt.fee
        });
    }

    function sign(IJobQueue.Receipt memory receipt, uint256 key) internal view returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, queue.hashReceipt(receipt));
        return abi.encodePacked(r, s, v);
    }

    function commit(
        uint64 jobId,
        IJobQueue.JobSpec memory spec,
        IJobQueue.Receipt memory receipt,
        Operator memory operator
    ) internal {
        vm.prank(operator.hot);
        queue.commit(jobId, spec, answerOf(receipt));
    }

    function finalize(uint64 jobId, IJobQueue.JobSpec memory spec, IJobQueue.Receipt memory receipt) internal {
        uint64[] memory jobIds = new uint64[](1);
        IJobQueue.Settlement[] memory settlements = new IJobQueue.Settlement[](1);
        (jobIds[0], settlements[0]) = (jobId, settlementOf(spec, receipt));
        queue.finalizeBatch(jobIds, settlements);
    }

    function setParams(IJobQueue.Params memory params) internal returns (uint16 version) {
        vm.prank(owner);
        return queue.setParams(params);
    }

    function pause() internal {
        vm.prank(guardian);
        queue.pause();
    }

    /// @dev Two receipts for one work, as a node that cheats signs them, and the proof sent by `challenger`.
    function proveEquivocation(bytes32 workId, Operator memory operator, address challenger) internal {
        IJobQueue.JobSpec memory spec = newSpec();
        IJobQueue.Receipt memory first = receiptFor(1, spec, operator);
        IJobQueue.Receipt memory second = receiptFor(2, spec, operator);
        (first.workId, second.workId) = (workId, workId);
        (bytes memory firstSignature, bytes memory secondSignature) =
            (sign(first, operator.hotKey), sign(second, operator.hotKey));
        vm.prank(challenger);
        disputes.proveEquivocation(
            IDisputes.Lane.Queue,
            spec,
            IDisputes.SignedReceipt(first, firstSignature),
            IDisputes.SignedReceipt(second, secondSignature),
            operator.hot
        );
    }

    // Sessions

    function openSession(Operator memory operator, uint96 deposit, uint256 nonce) internal returns (bytes32) {
        vm.prank(client);
        return sessions.open(operator.cold, deposit, nonce);
    }

    /// @dev A voucher for fees under both recipes, signed by `key`, for an hour.
    function voucherFor(bytes32 sessionId, uint96 baseOnlyFee, uint96 ensembleFee, uint256 key)
        internal
        view
        returns (ISessions.Voucher memory voucher, ISessions.Line[] memory lines, bytes memory signature)
    {
        lines = new ISessions.Line[](2);
        lines[0] = ISessions.Line(baseOnly, baseOnlyFee, keccak256("receipts"));
        lines[1] = ISessions.Line(ensemble, ensembleFee, keccak256("more receipts"));
        voucher = ISessions.Voucher({
            sessionId: sessionId,
            cumulativeFee: baseOnlyFee + ensembleFee,
            receiptsRoot: keccak256(abi.encode(lines)),
            deadline: uint40(block.timestamp + 1 hours)
        });
        signature = signVoucher(voucher, key);
    }

    function signVoucher(ISessions.Voucher memory voucher, uint256 key) internal view returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, sessions.hashVoucher(voucher));
        return abi.encodePacked(r, s, v);
    }

    function settle(bytes32 sessionId, uint96 baseOnlyFee, uint96 ensembleFee) internal {
        (ISessions.Voucher memory voucher, ISessions.Line[] memory lines, bytes memory signature) =
            voucherFor(sessionId, baseOnlyFee, ensembleFee, clientKey);
        sessions.settle(voucher, lines, signature);
    }

    /// @dev Submitted, claimed and committed by `operator`.
    function committedJob(IJobQueue.JobSpec memory spec, Operator memory operator)
        internal
        returns (uint64 jobId, IJobQueue.Receipt memory receipt)
    {
        jobId = submit(spec);
        claim(jobId, spec, operator);
        receipt = receiptFor(jobId, spec, operator);
        commit(jobId, spec, receipt, operator);
    }

    function stateOf(uint64 jobId) internal view returns (IJobQueue.State) {
        return queue.job(jobId).state;
    }
}
