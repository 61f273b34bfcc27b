// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";

import {IAdapterRegistry} from "../interfaces/IAdapterRegistry.sol";

/// @title A recipe's legs under construction: at most 32, one per (payee, role), none of zero.
library LegList {
    using SafeCast for uint256;

    uint256 internal constant MAX_LEGS = 32;

    struct List {
        IAdapterRegistry.Leg[] items;
        uint256 count;
    }

    function create() internal pure returns (List memory list) {
        list.items = new IAdapterRegistry.Leg[](MAX_LEGS);
    }

    function add(List memory list, address payee, IAdapterRegistry.Role role, uint256 wideBps) internal pure {
        uint16 bps = wideBps.toUint16();
        if (bps == 0) return;
        for (uint256 i = 0; i < list.count; i++) {
            IAdapterRegistry.Leg memory leg = list.items[i];
            if (leg.payee == payee && leg.role == role) {
                leg.bps += bps;
                return;
            }
        }
        if (list.count == MAX_LEGS) revert IAdapterRegistry.TooMany(MAX_LEGS + 1, MAX_LEGS);
        list.items[list.count++] = IAdapterRegistry.Leg({payee: payee, role: role, bps: bps});
    }
}
