// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {AccessManager} from "@openzeppelin/contracts/access/manager/AccessManager.sol";

import {IJobQueue} from "./interfaces/IJobQueue.sol";
import {ISessions} from "./interfaces/ISessions.sol";

/// @title Who may change the market, and how long everyone can see it coming.
/// @notice The owner's calls wait `timelockSecs` between their announcement and their effect; guardians may pause at
/// once, and nothing else. What can be changed at all is new parameters for future claims: no call of the governance
/// moves, freezes or takes anybody's money.
contract Governance is AccessManager {
    uint64 public constant GUARDIAN_ROLE = 1;

    struct Version {
        uint16 major;
        uint16 minor;
        uint16 patch;
    }

    event MinAgentVersionSet(uint16 major, uint16 minor, uint16 patch);

    /// @notice The oldest release of the node's program that works with this market; all zero when any does. Operators
    /// ask it before they upgrade; no contract does.
    Version public minAgentVersion;

    constructor(address owner, address guardian, uint32 timelockSecs, IJobQueue queue, ISessions sessions)
        AccessManager(owner)
    {
        _grantRole(ADMIN_ROLE, owner, 0, timelockSecs);
        _grantRole(GUARDIAN_ROLE, guardian, 0, 0);
        _setTargetFunctionRole(address(queue), IJobQueue.pause.selector, GUARDIAN_ROLE);
        _setTargetFunctionRole(address(sessions), ISessions.pause.selector, GUARDIAN_ROLE);
    }

    /// @notice Owner only, after the timelock.
    function setMinAgentVersion(uint16 major, uint16 minor, uint16 patch) external onlyAuthorized {
        minAgentVersion = Version(major, minor, patch);
        emit MinAgentVersionSet(major, minor, patch);
    }
}
