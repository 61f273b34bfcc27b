// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";

import {IJobQueue} from "src/interfaces/IJobQueue.sol";

/// @notice A hot key that is a contract: it signs what its own key signed.
contract ContractHotKey is IERC1271 {
    address private immutable _key;

    constructor(address key) {
        _key = key;
    }

    function isValidSignature(bytes32 digest, bytes calldata signature) external view returns (bytes4) {
        return ECDSA.recoverCalldata(digest, signature) == _key ? IERC1271.isValidSignature.selector : bytes4(0);
    }

    function claim(IJobQueue queue, uint64 jobId, IJobQueue.JobSpec calldata spec) external {
        queue.claim(jobId, spec);
    }

    function commit(IJobQueue queue, uint64 jobId, IJobQueue.JobSpec calldata spec, IJobQueue.Answer calldata answer)
        external
    {
        queue.commit(jobId, spec, answer);
    }
}

/// @notice An account that refuses every call: it must never be able to hold up a settlement.
contract Refuser {
    fallback() external payable {
        revert("no");
    }
}
