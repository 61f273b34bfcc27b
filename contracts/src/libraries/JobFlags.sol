// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

/// @title The bits of a spec's `flags`, as IJobQueue says what they mean.
library JobFlags {
    uint32 internal constant GUARDED = 1;
    uint32 internal constant PUBLISH = 2;
    uint32 internal constant PRIVATE = 4;
    uint32 internal constant AUDITABLE = 8;
    uint32 internal constant ALL = 15;

    function has(uint32 flags, uint32 flag) internal pure returns (bool) {
        return flags & flag != 0;
    }
}
