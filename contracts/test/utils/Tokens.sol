// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

import {IVault} from "src/interfaces/IVault.sol";

/// @notice Keeps one part in a hundred of every transfer.
contract FeeToken is ERC20("Fee", "FEE") {
    function mint(address account, uint256 amount) external {
        _mint(account, amount);
    }

    function _update(address from, address to, uint256 amount) internal override {
        super._update(from, to, amount);
        if (from != address(0) && to != address(0)) super._update(to, address(this), amount / 100);
    }
}

/// @notice Calls the vault from within a transfer, as a token with hooks would let its sender do.
contract ReentrantToken is ERC20("Reentrant", "RE") {
    IVault public vault;

    function arm(IVault vault_) external {
        vault = vault_;
        _mint(address(this), 10 ether);
        _approve(address(this), address(vault_), type(uint256).max);
    }

    function mint(address account, uint256 amount) external {
        _mint(account, amount);
    }

    function _update(address from, address to, uint256 amount) internal override {
        super._update(from, to, amount);
        if (address(vault) != address(0) && to == address(vault) && from != address(this)) {
            vault.deposit(from, 1 ether);
        }
    }
}

/// @notice Returns nothing from its transfers, and its balances can be changed by anyone.
contract OddToken {
    mapping(address account => uint256) public balanceOf;

    function setBalance(address account, uint256 balance) external {
        balanceOf[account] = balance;
    }

    function transfer(address to, uint256 amount) external {
        balanceOf[msg.sender] -= amount;
        balanceOf[to] += amount;
    }

    function transferFrom(address from, address to, uint256 amount) external {
        balanceOf[from] -= amount;
        balanceOf[to] += amount;
    }
}
