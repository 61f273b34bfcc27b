// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {IERC20Permit} from "@openzeppelin/contracts/token/ERC20/extensions/IERC20Permit.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";

import {IVault} from "./interfaces/IVault.sol";

/// @title Implementation of IVault.
contract Vault is IVault, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    IERC20 private immutable _token;
    // Code, not storage: every lock and release asks who calls.
    address private immutable _nodes;
    address private immutable _queue;
    address private immutable _sessions;
    address private immutable _outputs;
    address private immutable _disputes;

    mapping(address account => uint256) private _balances;
    mapping(address account => uint256) private _credits;
    mapping(address module => uint256) private _pots;

    constructor(IERC20 token_, Modules memory modules) {
        _token = token_;
        (_nodes, _queue, _sessions) = (modules.nodes, modules.queue, modules.sessions);
        (_outputs, _disputes) = (modules.outputs, modules.disputes);
    }

    modifier onlyModule() {
        if (!isModule(msg.sender)) revert NotAModule(msg.sender);
        _;
    }

    /// @inheritdoc IVault
    function deposit(address account, uint256 amount) external nonReentrant {
        _deposit(account, amount);
    }

    /// @inheritdoc IVault
    function depositWithPermit(address account, uint256 amount, uint256 deadline, uint8 v, bytes32 r, bytes32 s)
        external
        nonReentrant
    {
        // Whoever saw the permit in the mempool may have used it already: what counts is the allowance it left.
        try IERC20Permit(address(_token)).permit(msg.sender, address(this), amount, deadline, v, r, s) {} catch {}
        _deposit(account, amount);
    }

    /// @inheritdoc IVault
    function withdraw(address to, uint256 amount) external nonReentrant {
        _debit(msg.sender, amount);
        emit Withdrawn(msg.sender, to, amount);
        _token.safeTransfer(to, amount);
    }

    /// @inheritdoc IVault
    function claimCredits(address to) external nonReentrant returns (uint256 amount) {
        amount = _credits[msg.sender];
        if (amount == 0) return 0;
        _credits[msg.sender] = 0;
        emit CreditsClaimed(msg.sender, to, amount);
        _token.safeTransfer(to, amount);
    }

    /// @inheritdoc IVault
    function lock(address account, uint256 amount) external onlyModule {
        _debit(account, amount);
        _pots[msg.sender] += amount;
    }

    /// @inheritdoc IVault
    function release(address account, uint256 amount) external onlyModule {
        _takeFromPot(amount);
        _balances[account] += amount;
    }

    /// @inheritdoc IVault
    function credit(address[] calldata accounts, uint256[] calldata amounts) external onlyModule {
        if (accounts.length != amounts.length) revert LengthMismatch();
        uint256 total = 0;
        for (uint256 i = 0; i < accounts.length; i++) {
            _credits[accounts[i]] += amounts[i];
            total += amounts[i];
        }
        _takeFromPot(total);
    }

    /// @inheritdoc IVault
    function token() external view returns (address) {
        return address(_token);
    }

    /// @inheritdoc IVault
    function balanceOf(address account) external view returns (uint256) {
        return _balances[account];
    }

    /// @inheritdoc IVault
    function creditsOf(address account) external view returns (uint256) {
        return _credits[account];
    }

    /// @inheritdoc IVault
    function potOf(address module) external view returns (uint256) {
        return _pots[module];
    }

    /// @inheritdoc IVault
    function isModule(address account) public view returns (bool) {
        return
            account == _queue || account == _nodes || account == _sessions || account == _outputs
                || account == _disputes;
    }

    function _deposit(address account, uint256 amount) private {
        uint256 before = _token.balanceOf(address(this));
        _token.safeTransferFrom(msg.sender, address(this), amount);
        uint256 received = _token.balanceOf(address(this)) - before;
        if (received < amount) revert TransferFellShort(amount, received);
        _balances[account] += amount;
        emit Deposited(account, amount);
    }

    function _debit(address account, uint256 amount) private {
        uint256 balance = _balances[account];
        if (balance < amount) revert InsufficientBalance(account, balance, amount);
        unchecked {
            _balances[account] = balance - amount;
        }
    }

    function _takeFromPot(uint256 amount) private {
        uint256 pot = _pots[msg.sender];
        if (pot < amount) revert InsufficientPot(msg.sender, pot, amount);
        unchecked {
            _pots[msg.sender] = pot - amount;
        }
    }
}
