// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";

import {IJobQueue} from "../interfaces/IJobQueue.sol";

/// @title What a job may cost and what it did cost, in token wei. The fee of counts within the limits is <= the escrow.
library JobPrice {
    using SafeCast for uint256;

    uint256 private constant TOKENS_PER_PRICE = 1_000;

    function escrow(IJobQueue.JobSpec calldata spec) internal pure returns (uint96) {
        return Math.ceilDiv(_weigh(spec, spec.maxInTokens, spec.maxOutTokens), TOKENS_PER_PRICE).toUint96();
    }

    function fee(IJobQueue.JobSpec calldata spec, uint32 inTokens, uint32 outTokens) internal pure returns (uint96) {
        return (_weigh(spec, inTokens, outTokens) / TOKENS_PER_PRICE).toUint96();
    }

    function _weigh(IJobQueue.JobSpec calldata spec, uint32 inTokens, uint32 outTokens) private pure returns (uint256) {
        return uint256(inTokens) * spec.inPricePerK + uint256(outTokens) * spec.outPricePerK;
    }
}
