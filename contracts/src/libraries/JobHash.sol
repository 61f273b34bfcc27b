// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {IJobQueue} from "../interfaces/IJobQueue.sol";

/// @title EIP-712 struct hashes of specs and receipts.
/// @dev All members are static, so a struct's ABI encoding is its EIP-712 encodeData.
library JobHash {
    bytes32 internal constant JOB_SPEC_TYPEHASH = keccak256(
        "JobSpec(address client,uint64 recipeId,bytes32 inputDigest,uint32 maxInTokens,uint32 maxOutTokens,uint96 inPricePerK,uint96 outPricePerK,uint40 deadline,uint32 leaseSecs,uint32 flags,uint256 nonce)"
    );
    bytes32 internal constant RECEIPT_TYPEHASH = keccak256(
        "Receipt(bytes32 workId,address node,uint64 recipeId,bytes32 specHash,bytes32 inputDigest,bytes32 outputDigest,uint32 inTokens,uint32 outTokens,uint64 seed,bytes32 fingerprintRoot,bytes32 dataAttrRoot,uint16 engineProfile,uint8 finishReason,uint40 finishedAt,uint96 fee)"
    );

    function structHash(IJobQueue.JobSpec calldata spec) internal pure returns (bytes32) {
        return keccak256(abi.encode(JOB_SPEC_TYPEHASH, spec));
    }

    function structHash(IJobQueue.Receipt calldata receipt) internal pure returns (bytes32) {
        return keccak256(abi.encode(RECEIPT_TYPEHASH, receipt));
    }
}
