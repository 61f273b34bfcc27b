// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

/// @title A client that is a contract and reads the output of its jobs.
interface IOutputReceiver {
    /// @notice The Outputs contract calls it once a job with the PUBLISH flag is published, with a fixed amount of gas.
    /// The publication stands whatever becomes of the call. Check the caller. The job's window still runs: an output that
    /// must not turn out to be slashed is used after it is final.
    /// @param output The output document, whose sha2-256 digest is the receipt's.
    function onOutput(uint64 jobId, bytes calldata output) external;
}
