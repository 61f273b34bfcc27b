// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {IJobQueue} from "src/interfaces/IJobQueue.sol";

import {MarketTest} from "./utils/MarketTest.sol";

/// @notice What the market's calls cost as whole transactions: intrinsic gas and calldata (EIP-2028) included.
/// @dev `isolate` runs each call as a transaction of its own, with cold storage and refunds. The figures are kept in
/// snapshots/JobQueue.json; FORGE_SNAPSHOT_CHECK=true fails on any change. Default profile only: `lite` is not optimised.
/// forge-config: default.isolate = true
contract GasTest is MarketTest {
    uint256 private constant BATCH = 64;

    function setUp() public override {
        super.setUp();
        // Steady state: nobody's first time.
        IJobQueue.JobSpec memory spec = newSpec();
        (uint64 jobId, IJobQueue.Receipt memory receipt) = committedJob(spec, alice);
        skip(WINDOW);
        finalize(jobId, spec, receipt);
        submit(newSpec());
    }

    function test_gas_oneJob() public {
        IJobQueue.JobSpec memory spec = newSpec();
        vm.prank(client);
        queue.submit(spec, "");
        record("submit", 1);
        uint64 jobId = queue.jobCount();

        vm.prank(alice.hot);
        queue.claim(jobId, spec);
        record("claim", 1);

        IJobQueue.Receipt memory receipt = receiptFor(jobId, spec, alice);
        bytes memory signature = sign(receipt, alice.hotKey);
        vm.prank(alice.hot);
        queue.commit(jobId, spec, receipt, signature);
        record("commit", 1);
    }

    function test_gas_batch() public {
        uint64[] memory jobIds = new uint64[](BATCH);
        IJobQueue.JobSpec[] memory specs = new IJobQueue.JobSpec[](BATCH);
        IJobQueue.Receipt[] memory receipts = new IJobQueue.Receipt[](BATCH);
        for (uint256 i = 0; i < BATCH; i++) {
            specs[i] = newSpec();
        }
        vm.prank(client);
        queue.submitMany(specs, new bytes[](BATCH));
        record("submitMany of 64, a job", BATCH);
        for (uint256 i = 0; i < BATCH; i++) {
            jobIds[i] = uint64(queue.jobCount() - BATCH + 1 + i);
            claim(jobIds[i], specs[i], alice);
            receipts[i] = receiptFor(jobIds[i], specs[i], alice);
            commit(jobIds[i], specs[i], receipts[i], alice);
        }
        skip(WINDOW);
        queue.finalizeBatch(jobIds, specs, receipts);
        record("finalizeBatch of 64, a job", BATCH);
    }

    function record(string memory what, uint256 jobs) private {
        vm.snapshotValue("JobQueue", what, vm.lastCallGas().gasTotalUsed / jobs);
    }
}
