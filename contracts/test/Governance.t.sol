// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {IAccessManaged} from "@openzeppelin/contracts/access/manager/IAccessManaged.sol";
import {IAccessManager} from "@openzeppelin/contracts/access/manager/IAccessManager.sol";

import {Governance} from "src/Governance.sol";
import {IJobQueue} from "src/interfaces/IJobQueue.sol";

import {MarketTest} from "./utils/MarketTest.sol";

contract GovernanceTest is MarketTest {
    uint32 private constant TIMELOCK = 2 days;

    bytes private _change;

    function setUp() public override {
        super.setUp();
        IJobQueue.Params memory params = defaultParams();
        params.bond = 2 * BOND;
        _change = abi.encodeCall(queue.setParams, (params));
    }

    function timelockSecs() internal pure override returns (uint32) {
        return TIMELOCK;
    }

    function test_parameters_change_once_announced_and_waited_for() public {
        _govern(_change);
        assertEq(queue.paramsVersion(), 2);
        assertEq(queue.params(2).bond, 2 * BOND);
        assertEq(queue.params(1).bond, BOND, "the former version stays");
    }

    function test_parameters_revertWhen_not_announced() public {
        vm.prank(owner);
        vm.expectPartialRevert(IAccessManager.AccessManagerNotScheduled.selector);
        governance.execute(address(queue), _change);
    }

    function test_parameters_revertWhen_too_early() public {
        vm.prank(owner);
        (bytes32 id,) = governance.schedule(address(queue), _change, 0);
        vm.warp(block.timestamp + TIMELOCK - 1);
        vm.prank(owner);
        vm.expectRevert(abi.encodeWithSelector(IAccessManager.AccessManagerNotReady.selector, id));
        governance.execute(address(queue), _change);
    }

    function test_the_owner_cannot_shorten_its_own_timelock_at_once() public {
        vm.prank(owner);
        vm.expectPartialRevert(IAccessManager.AccessManagerNotScheduled.selector);
        governance.grantRole(0, owner, 0);
    }

    function test_a_guardian_pauses_at_once_and_does_nothing_else() public {
        vm.startPrank(guardian);
        queue.pause();
        assertTrue(queue.paused());
        vm.expectRevert(abi.encodeWithSelector(IAccessManaged.AccessManagedUnauthorized.selector, guardian));
        queue.unpause();
        vm.expectRevert(abi.encodeWithSelector(IAccessManaged.AccessManagedUnauthorized.selector, guardian));
        queue.setParams(defaultParams());
        vm.stopPrank();
        _govern(abi.encodeCall(queue.unpause, ()));
        assertFalse(queue.paused());
    }

    function test_nobody_elses_parameters_are_announced() public {
        vm.prank(guardian);
        vm.expectPartialRevert(IAccessManager.AccessManagerUnauthorizedCall.selector);
        governance.schedule(address(queue), _change, 0);
    }

    function test_the_oldest_agent_is_named_once_announced_and_waited_for() public {
        bytes memory change = abi.encodeCall(governance.setMinAgentVersion, (1, 2, 3));
        _announce(address(governance), change);
        vm.expectEmit(address(governance));
        emit Governance.MinAgentVersionSet(1, 2, 3);
        vm.prank(owner);
        governance.execute(address(governance), change);
        (uint16 major, uint16 minor, uint16 patch) = governance.minAgentVersion();
        assertEq(major, 1);
        assertEq(minor, 2);
        assertEq(patch, 3);
    }

    function test_the_oldest_agent_revertWhen_not_announced() public {
        vm.prank(owner);
        vm.expectPartialRevert(IAccessManager.AccessManagerNotScheduled.selector);
        governance.setMinAgentVersion(1, 2, 3);
    }

    function test_the_oldest_agent_revertWhen_not_the_owner() public {
        vm.prank(guardian);
        vm.expectRevert(
            abi.encodeWithSelector(IAccessManager.AccessManagerUnauthorizedAccount.selector, guardian, uint64(0))
        );
        governance.setMinAgentVersion(1, 2, 3);
    }

    /// @dev The owner's call of the queue, announced and waited for.
    function _govern(bytes memory call) private {
        _announce(address(queue), call);
        vm.prank(owner);
        governance.execute(address(queue), call);
    }

    function _announce(address target, bytes memory call) private {
        vm.prank(owner);
        governance.schedule(target, call, 0);
        vm.warp(vm.getBlockTimestamp() + TIMELOCK);
    }
}
