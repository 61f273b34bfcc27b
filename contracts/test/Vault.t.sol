// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {stdError} from "forge-std/StdError.sol";

import {Vault} from "src/Vault.sol";
import {IVault} from "src/interfaces/IVault.sol";

import {MarketTest} from "./utils/MarketTest.sol";
import {FeeToken, OddToken, ReentrantToken} from "./utils/Tokens.sol";

contract VaultTest is MarketTest {
    address private payer = makeAddr("payer");

    function test_deposit_credits_the_named_account() public {
        token.mint(payer, 10 ether);
        vm.startPrank(payer);
        token.approve(address(vault), 10 ether);
        vm.expectEmit();
        emit IVault.Deposited(alice.cold, 4 ether);
        uint256 before = vault.balanceOf(alice.cold);
        vault.deposit(alice.cold, 4 ether);
        assertEq(vault.balanceOf(alice.cold), before + 4 ether);
        assertEq(vault.balanceOf(payer), 0);
    }

    function test_deposit_revertsWhen_token_takes_a_fee() public {
        FeeToken fee = new FeeToken();
        Vault feeVault = new Vault(fee, IVault.Modules(address(0), address(0), address(0), address(0), address(0)));
        fee.mint(payer, 100 ether);
        vm.startPrank(payer);
        fee.approve(address(feeVault), 100 ether);
        vm.expectRevert(abi.encodeWithSelector(IVault.TransferFellShort.selector, 100 ether, 99 ether));
        feeVault.deposit(payer, 100 ether);
    }

    function test_deposit_revertsWhen_token_reenters() public {
        ReentrantToken hooked = new ReentrantToken();
        Vault hookedVault =
            new Vault(hooked, IVault.Modules(address(0), address(0), address(0), address(0), address(0)));
        hooked.arm(hookedVault);
        hooked.mint(payer, 100 ether);
        vm.startPrank(payer);
        hooked.approve(address(hookedVault), 100 ether);
        vm.expectRevert(ReentrancyGuardTransient.ReentrancyGuardReentrantCall.selector);
        hookedVault.deposit(payer, 100 ether);
    }

    function test_a_token_that_returns_nothing_is_taken() public {
        (OddToken odd, Vault oddVault) = _oddVault();
        vm.startPrank(payer);
        oddVault.deposit(payer, 100 ether);
        oddVault.withdraw(client, 40 ether);
        assertEq(odd.balanceOf(client), 40 ether);
        assertEq(oddVault.balanceOf(payer), 60 ether);
    }

    function test_what_a_token_adds_is_nobodys() public {
        (OddToken odd, Vault oddVault) = _oddVault();
        odd.setBalance(address(oddVault), 7 ether);
        vm.startPrank(payer);
        oddVault.deposit(payer, 100 ether);
        assertEq(oddVault.balanceOf(payer), 100 ether);
        vm.expectRevert(abi.encodeWithSelector(IVault.InsufficientBalance.selector, payer, 100 ether, 101 ether));
        oddVault.withdraw(payer, 101 ether);
    }

    function test_a_token_that_shrinks_fails_whoever_withdraws_last() public {
        (OddToken odd, Vault oddVault) = _oddVault();
        vm.startPrank(payer);
        oddVault.deposit(client, 50 ether);
        oddVault.deposit(payer, 50 ether);
        odd.setBalance(address(oddVault), 90 ether);
        oddVault.withdraw(payer, 50 ether);
        vm.startPrank(client);
        vm.expectRevert(stdError.arithmeticError);
        oddVault.withdraw(client, 50 ether);
        oddVault.withdraw(client, 40 ether);
    }

    function test_depositWithPermit_works_even_when_front_run() public {
        (address holder, uint256 key) = makeAddrAndKey("holder");
        token.mint(holder, 10 ether);
        uint256 deadline = block.timestamp + 1;
        bytes32 permitType =
            keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
        bytes32 structHash = keccak256(abi.encode(permitType, holder, address(vault), 10 ether, 0, deadline));
        bytes32 digest = keccak256(abi.encodePacked(hex"1901", token.DOMAIN_SEPARATOR(), structHash));
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);

        token.permit(holder, address(vault), 10 ether, deadline, v, r, s); // the front-runner
        vm.prank(holder);
        vault.depositWithPermit(holder, 10 ether, deadline, v, r, s);
        assertEq(vault.balanceOf(holder), 10 ether);
    }

    function test_withdraw_sends_to_the_named_address() public {
        vm.prank(client);
        vault.withdraw(payer, 3 ether);
        assertEq(token.balanceOf(payer), 3 ether);
    }

    function test_withdraw_revertsWhen_balance_is_short() public {
        vm.prank(payer);
        vm.expectRevert(abi.encodeWithSelector(IVault.InsufficientBalance.selector, payer, 0, 1));
        vault.withdraw(payer, 1);
    }

    function test_claimCredits_pays_once() public {
        vm.prank(client);
        vault.withdraw(address(this), 5 ether);
        token.approve(address(vault), 5 ether);
        vault.deposit(client, 5 ether);
        vm.startPrank(address(queue));
        vault.lock(client, 5 ether);
        vault.credit(_one(payer), _one(uint256(5 ether)));
        vm.stopPrank();

        vm.startPrank(payer);
        assertEq(vault.claimCredits(payer), 5 ether);
        assertEq(vault.claimCredits(payer), 0);
        assertEq(token.balanceOf(payer), 5 ether);
    }

    function test_module_calls_revertWhen_caller_is_no_module() public {
        bytes memory refusal = abi.encodeWithSelector(IVault.NotAModule.selector, address(this));
        vm.expectRevert(refusal);
        vault.lock(client, 1);
        vm.expectRevert(refusal);
        vault.release(client, 1);
        vm.expectRevert(refusal);
        vault.credit(_one(client), _one(uint256(1)));
    }

    function test_pots_are_separate() public {
        vm.prank(address(queue));
        vault.lock(client, 5 ether);
        uint256 staked = vault.potOf(address(nodes));
        vm.startPrank(address(nodes));
        vm.expectRevert(abi.encodeWithSelector(IVault.InsufficientPot.selector, address(nodes), staked, staked + 1));
        vault.release(client, staked + 1);
    }

    function test_credit_revertsWhen_lengths_differ() public {
        vm.prank(address(queue));
        vm.expectRevert(IVault.LengthMismatch.selector);
        vault.credit(_one(client), new uint256[](2));
    }

    function testFuzz_moves_keep_the_total(uint96 locked, uint96 released, uint96 credited) public {
        locked = uint96(bound(locked, 0, vault.balanceOf(client)));
        released = uint96(bound(released, 0, locked));
        credited = uint96(bound(credited, 0, locked - released));
        uint256 before = vault.balanceOf(client);
        vm.startPrank(address(queue));
        vault.lock(client, locked);
        vault.release(client, released);
        vault.credit(_one(payer), _one(uint256(credited)));
        assertEq(vault.potOf(address(queue)), locked - released - credited);
        assertEq(vault.balanceOf(client) + vault.potOf(address(queue)) + vault.creditsOf(payer), before);
    }

    function _one(address account) private pure returns (address[] memory list) {
        list = new address[](1);
        list[0] = account;
    }

    function _one(uint256 amount) private pure returns (uint256[] memory list) {
        list = new uint256[](1);
        list[0] = amount;
    }

    /// @dev The payer has 100 of the token.
    function _oddVault() private returns (OddToken odd, Vault oddVault) {
        odd = new OddToken();
        odd.setBalance(payer, 100 ether);
        oddVault =
            new Vault(IERC20(address(odd)), IVault.Modules(address(0), address(0), address(0), address(0), address(0)));
    }
}
