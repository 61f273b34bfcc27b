// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";

import {IAdapterRegistry} from "../interfaces/IAdapterRegistry.sol";
import {IJobQueue} from "../interfaces/IJobQueue.sol";
import {ISessions} from "../interfaces/ISessions.sol";
import {Tally} from "./Tally.sol";

/// @title Divides fees among a recipe's legs and the node, exactly.
library Royalties {
    using SafeCast for uint256;
    using Tally for Tally.Table;

    uint256 private constant BPS = 10_000;

    /// @dev Every leg gets floor(cum' * bps / 10,000) - floor(cum * bps / 10,000) of the recipe's cumulative fee, and the
    /// node the rest, so no wei is made or lost however fees are batched. Several legs may round up at once, which a fee
    /// of a few dozen wei cannot cover: hence the minimum.
    /// @param fees Cumulative fees by recipe; moved on by `fee`.
    /// @param jobs How many jobs the fee is for: each pays the recipe's use fees beside it. Zero where nobody counts them,
    /// which such a recipe does not bear.
    /// @param credits Gains `fee` in all, and the use fees.
    function divide(
        mapping(uint64 recipeId => uint256) storage fees,
        Tally.Table memory credits,
        IAdapterRegistry adapters,
        uint64 recipeId,
        address node,
        uint256 fee,
        uint256 jobs
    ) internal {
        if (fee == 0 && jobs == 0) return;
        uint256 cumBefore = fees[recipeId];
        uint256 cumAfter = cumBefore + fee;
        fees[recipeId] = cumAfter;
        uint256 left = fee;
        IAdapterRegistry.Leg[] memory legs = adapters.recipeLegs(recipeId);
        for (uint256 i = 0; i < legs.length; i++) {
            if (legs[i].perUse > 0) {
                if (jobs == 0) revert ISessions.PayPerUse(recipeId);
                _pay(credits, legs[i].payee, IAdapterRegistry.Role.Use, recipeId, jobs * legs[i].perUse);
                continue;
            }
            uint256 amount = Math.min(left, cumAfter * legs[i].bps / BPS - cumBefore * legs[i].bps / BPS);
            left -= amount;
            _pay(credits, legs[i].payee, legs[i].role, recipeId, amount);
        }
        _pay(credits, node, IAdapterRegistry.Role.Node, recipeId, left);
    }

    function _pay(
        Tally.Table memory credits,
        address payee,
        IAdapterRegistry.Role role,
        uint64 recipeId,
        uint256 amount
    ) private {
        if (amount == 0) return;
        credits.add(payee, amount);
        emit IJobQueue.Paid(payee, role, recipeId, amount.toUint96());
    }
}
