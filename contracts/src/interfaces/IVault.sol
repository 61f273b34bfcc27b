// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

/// @title Sole custodian of the market's one ERC-20 token.
/// @notice Every token the market holds lies here, in exactly one of three places: an account's *balance* (its own
/// deposit, withdrawable at once), a module's *pot* (escrow, stakes and bonds held by the contract named), or an
/// account's *credits* (earned, claimable at once). The modules are fixed at deployment and nobody can add one.
/// `token.balanceOf(vault) >= Σ balances + Σ pots + Σ credits`.
/// @dev The token is chosen at deployment. One whose transfers return nothing is taken. One that keeps a part of a deposit is
/// refused at the deposit. What a token adds by itself (gifts, rebasing) belongs to nobody and stays. One that takes from its
/// holders by itself leaves nothing for whoever withdraws last: do not deploy with it.
interface IVault {
    /// @dev The only contracts that hold pots. Their addresses may lie ahead of their deployment; each checks on its own
    /// that it is one of them.
    struct Modules {
        address nodes;
        address queue;
        address sessions;
        address outputs;
        address disputes;
    }

    event Deposited(address indexed account, uint256 amount);
    event Withdrawn(address indexed account, address indexed to, uint256 amount);
    event CreditsClaimed(address indexed account, address indexed to, uint256 amount);

    error InsufficientBalance(address account, uint256 balance, uint256 needed);
    error NotAModule(address account);
    error InsufficientPot(address module, uint256 pot, uint256 needed);
    error TransferFellShort(uint256 expected, uint256 received);
    error LengthMismatch();

    /// @notice Moves `amount` tokens from the caller into `account`'s balance (balance-delta checked).
    function deposit(address account, uint256 amount) external;
    /// @notice As `deposit`, with an ERC-2612 permit; a permit already used by a front-runner is no error.
    function depositWithPermit(address account, uint256 amount, uint256 deadline, uint8 v, bytes32 r, bytes32 s)
        external;
    /// @notice Sends `amount` of the caller's balance to `to`.
    function withdraw(address to, uint256 amount) external;
    /// @notice Sends all the caller's credits to `to`. Returns the amount, which may be zero.
    function claimCredits(address to) external returns (uint256 amount);

    /// @notice Module only: balance of `account` → the calling module's pot.
    function lock(address account, uint256 amount) external;
    /// @notice Module only: the calling module's pot → balance of `account`.
    function release(address account, uint256 amount) external;
    /// @notice Module only: the calling module's pot → credits of each account.
    function credit(address[] calldata accounts, uint256[] calldata amounts) external;

    function token() external view returns (address);
    function balanceOf(address account) external view returns (uint256);
    function creditsOf(address account) external view returns (uint256);
    function potOf(address module) external view returns (uint256);
    function isModule(address account) external view returns (bool);
}
