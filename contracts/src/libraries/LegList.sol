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
        if (bps > 0) _find(list, payee, role).bps += bps;
    }

    function addUse(List memory list, address payee, uint72 perUse) internal pure {
        if (perUse > 0) _find(list, payee, IAdapterRegistry.Role.Use).perUse += perUse;
    }

    /// @dev The leg of (payee, role), new if there is none.
    function _find(List memory list, address payee, IAdapterRegistry.Role role)
        private
        pure
        returns (IAdapterRegistry.Leg memory leg)
    {
        for (uint256 i = 0; i < list.count; i++) {
            leg = list.items[i];
            if (leg.payee == payee && leg.role == role) return leg;
        }
        if (list.count == MAX_LEGS) revert IAdapterRegistry.TooMany(MAX_LEGS + 1, MAX_LEGS);
        leg = IAdapterRegistry.Leg({payee: payee, role: role, bps: 0, perUse: 0});
        list.items[list.count++] = leg;
    }
}
