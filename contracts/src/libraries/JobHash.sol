// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {IJobQueue} from "../interfaces/IJobQueue.sol";

/// @title EIP-712 struct hashes of specs and receipts, and the hash that stands for a settlement.
/// @dev All members are one word each, so a struct's words as they lie, in calldata or in memory, are its ABI encoding and
/// its EIP-712 encodeData. A word of calldata with dirty upper bits hashes to what no honest struct does.
library JobHash {
    bytes32 internal constant JOB_SPEC_TYPEHASH = keccak256(
        "JobSpec(address client,uint64 recipeId,bytes32 inputDigest,uint32 maxInTokens,uint32 maxOutTokens,uint96 inPricePerK,uint96 outPricePerK,uint40 deadline,uint32 leaseSecs,uint32 flags,uint256 nonce)"
    );
    bytes32 internal constant RECEIPT_TYPEHASH = keccak256(
        "Receipt(bytes32 workId,address node,uint64 recipeId,bytes32 specHash,bytes32 inputDigest,bytes32 outputDigest,uint32 inTokens,uint32 outTokens,uint64 seed,bytes32 fingerprintRoot,bytes32 dataAttrRoot,uint16 engineProfile,uint8 finishReason,uint40 finishedAt,uint96 fee)"
    );

    function structHash(IJobQueue.JobSpec calldata spec) internal pure returns (bytes32 hash) {
        bytes32 typehash = JOB_SPEC_TYPEHASH;
        assembly ("memory-safe") {
            let free := mload(0x40)
            mstore(free, typehash)
            calldatacopy(add(free, 0x20), spec, 0x160)
            hash := keccak256(free, 0x180)
        }
    }

    /// @dev The typehash lies before the struct while it is hashed, and what lay there is put back.
    function structHash(IJobQueue.Receipt memory receipt) internal pure returns (bytes32 hash) {
        bytes32 typehash = RECEIPT_TYPEHASH;
        assembly ("memory-safe") {
            let start := sub(receipt, 0x20)
            let kept := mload(start)
            mstore(start, typehash)
            hash := keccak256(start, 0x200)
            mstore(start, kept)
        }
    }

    /// @dev keccak256(abi.encode(settlement)), as are both of these.
    function digest(IJobQueue.Settlement calldata settlement) internal pure returns (bytes32 hash) {
        assembly ("memory-safe") {
            let free := mload(0x40)
            calldatacopy(free, settlement, 0xa0)
            hash := keccak256(free, 0xa0)
        }
    }

    function digestInMemory(IJobQueue.Settlement memory settlement) internal pure returns (bytes32 hash) {
        assembly ("memory-safe") {
            hash := keccak256(settlement, 0xa0)
        }
    }
}
