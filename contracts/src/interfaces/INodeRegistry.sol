// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {IVault} from "./IVault.sol";

/// @title Operators, their stake, and the hot key each authorises.
/// @notice A node is named by its operator (the cold key that stakes). The hot key claims, commits and signs receipts;
/// it can never move stake. Stake in withdrawal stays slashable until withdrawn; stake locked as bonds cannot leave.
interface INodeRegistry {
    struct Node {
        address hotKey;
        uint96 stake; // includes what is in withdrawal
        uint96 unstaking;
        uint96 bonded; // locked under live claims, <= stake - unstaking
        uint24 liveClaims; // whose bonds are locked: claimed or committed, and not final
        uint40 unstakeAt; // when `unstaking` may leave
        bytes32 encryptionKey; // X25519 public key
        bytes32 metadata; // sha2-256 digest of the node's metadata document
        bytes peerId; // libp2p peer id, at most 64 bytes
    }

    /// @dev `signature` is `key`'s (EIP-712, low s; ERC-1271 if it is a contract) of
    /// `HotKey(address operator,uint40 deadline)`, where the operator is the caller. A contract can take its word back: no
    /// receipt that it signed proves anything for good, so take none from it.
    struct HotKeyConsent {
        address key;
        uint40 deadline; // unix seconds
        bytes signature;
    }

    event NodeRegistered(address indexed operator, address indexed hotKey, bytes peerId);
    event HotKeySet(address indexed operator, address indexed hotKey);
    event MetadataSet(address indexed operator, bytes32 encryptionKey, bytes32 metadata, bytes peerId);
    event Staked(address indexed operator, uint256 amount);
    event UnstakeBegun(address indexed operator, uint256 amount, uint40 availableAt);
    event StakeWithdrawn(address indexed operator, uint256 amount);
    event BondForfeited(address indexed operator, uint256 amount);
    event Slashed(address indexed operator, uint256 amount);
    /// @dev What was forfeited or slashed, once it is known who gets it: both sums are equal when nothing waits.
    event ForfeitPaid(address indexed beneficiary, uint256 amount);

    error AlreadyRegistered(address operator);
    error NotRegistered(address operator);
    error HotKeyInUse(address hotKey);
    error ZeroAddress();
    error PeerIdTooLong(uint256 length);
    error InsufficientStake(address operator, uint256 free, uint256 needed);
    error UnstakeNotReady(uint40 availableAt);
    error NothingUnstaking(address operator);
    error ClaimsLive(address operator, uint256 count);
    error NotAHotKey(address caller);
    error TooManyLiveClaims(address operator, uint256 limit);
    error ConsentExpired(uint40 deadline);
    error NoConsent(address hotKey);
    error NotTheQueue(address caller);
    error NotDisputes(address caller);
    error NotAModule(address account);

    /// @notice Registers the caller as an operator. One hot key serves one operator at a time, and only one it agreed to.
    function register(HotKeyConsent calldata hotKey, bytes32 encryptionKey, bytes32 metadata, bytes calldata peerId)
        external;
    /// @notice Replaces the caller's hot key at once; the former one may serve another operator.
    function setHotKey(HotKeyConsent calldata hotKey) external;
    function setMetadata(bytes32 encryptionKey, bytes32 metadata, bytes calldata peerId) external;
    /// @notice Moves `amount` of the caller's Vault balance into its stake.
    function stake(uint256 amount) external;
    /// @notice Starts the exit delay for `amount` more of the caller's unbonded stake (and restarts it for all).
    function beginUnstake(uint256 amount) external;
    /// @notice After the delay, and once none of its claims is live, moves the unstaking amount back to the caller's
    /// Vault balance: what was at stake when it committed stays so until the job is final.
    function withdrawStake() external;

    /// @notice Queue only: one live claim more, and `amount` of free stake (stake - unstaking - bonded) locked for it.
    /// @return operator Whom the hot key serves.
    function lockBond(address hotKey, uint256 amount, uint256 maxLiveClaims) external returns (address operator);
    /// @notice Queue only: `claims` live claims less, and their bonds, `amount` together, are free stake again.
    function unlockBonds(address operator, uint256 amount, uint256 claims) external;
    /// @notice Queue only: one live claim less. Of its bond, `lost` leaves the stake and waits here until the job has
    /// ended; the rest is free stake again.
    /// @return forfeited What waits: `lost`, unless slashings were owed more of the bond than it leaves.
    function forfeitBond(address operator, uint256 amount, uint256 lost) external returns (uint96 forfeited);
    /// @notice Disputes only: one of `parts` of the stake is taken, what is in withdrawal included. Live bonds stay whole
    /// while their claims live: where only they are left, the rest is `owed`, and burnt out of them as the claims end,
    /// before anybody else has a part of them: a node could lose them to its own accomplices.
    /// @return amount What was taken at once, first from the stake that is not in withdrawal; it waits here to be paid out.
    function slash(address operator, uint256 parts) external returns (uint256 amount);
    /// @notice Queue, Outputs and Disputes only: what was forfeited or slashed becomes `beneficiary`'s credits.
    function payForfeit(address beneficiary, uint256 amount) external;

    function vault() external view returns (IVault);
    /// @notice The one contract that may lock, release and forfeit bonds.
    function queue() external view returns (address);
    /// @notice Condemns a job whose node keeps silent; divides the bond.
    function outputs() external view returns (address);
    /// @notice The one contract that may slash.
    function disputes() external view returns (address);
    /// @notice Until when an operator answers for what a hot key signed: an exit delay after its replacement, without end
    /// while it is the operator's, zero when it never was.
    function liableUntil(address operator, address hotKey) external view returns (uint40);
    function unstakeDelaySecs() external view returns (uint32);
    /// @notice Forfeited bonds whose jobs have not ended yet, and what is being slashed.
    function forfeitPool() external view returns (uint256);
    /// @notice All zero for an address that is no operator.
    function node(address operator) external view returns (Node memory);
    /// @notice The operator a hot key serves; zero when none.
    function operatorOf(address hotKey) external view returns (address);
    /// @notice The EIP-712 digest by which a hot key agrees to serve `operator`.
    function hashConsent(address operator, uint40 deadline) external view returns (bytes32);
    /// @notice What slashings are still to take of the stake that live claims hold.
    function owed(address operator) external view returns (uint256);
    /// @notice What a new bond or an exit may take: stake - unstaking - bonded.
    function freeStake(address operator) external view returns (uint256);
}
