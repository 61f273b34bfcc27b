// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/ERC20Permit.sol";

/// @title The token of development networks: anyone may mint any amount. Never deploy it where tokens have a price.
contract DevToken is ERC20, ERC20Permit {
    constructor() ERC20("OpenLoRA Dev Token", "OLRA") ERC20Permit("OpenLoRA Dev Token") {}

    function mint(address account, uint256 amount) external {
        _mint(account, amount);
    }
}
