// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {IAdapterRegistry} from "./IAdapterRegistry.sol";
import {IJobQueue} from "./IJobQueue.sol";
import {IVault} from "./IVault.sol";

/// @title The signed lane: a client's deposit for one node, and cumulative vouchers against it.
/// @notice The client signs each order (a JobSpec in this contract's domain) and pays with vouchers, whenever it and the
/// node see fit; only the last one need ever reach the chain. A deposit belongs to one node, so it never backs orders to
/// many. Either side alone can bring a session to its end: the node at once, the client after `closeDelaySecs`, in which
/// the node can settle the last voucher it holds.
interface ISessions {
    enum State {
        None,
        Open,
        Closing,
        Closed
    }

    struct Session {
        address client;
        address node; // operator
        uint96 deposit; // ever paid in
        uint96 settled; // of it, paid out by vouchers
        uint40 closeAt; // when anyone may close it; zero unless closing
        State state;
    }

    /// @notice Signed by the client (EIP-712, low s; ERC-1271 if it is a contract). It supersedes all earlier ones.
    /// @dev A contract can take its word back: a node that serves one settles what it holds without delay.
    struct Voucher {
        bytes32 sessionId;
        uint96 cumulativeFee; // of all receipts of the session
        bytes32 receiptsRoot; // keccak256(abi.encode(lines))
        uint40 deadline; // unix seconds; it cannot be settled after it
    }

    /// @notice What a session's receipts under one recipe come to, since it was opened.
    struct Line {
        uint64 recipeId;
        uint96 cumulativeFee;
        bytes32 receipts; // Merkle root of the receipts' digests (OpenZeppelin's double-hashed leaves)
    }

    event SessionOpened(bytes32 indexed sessionId, address indexed client, address indexed node, uint96 deposit);
    event SessionToppedUp(bytes32 indexed sessionId, uint96 amount);
    /// @dev With it comes one IJobQueue.Paid per (payee, role) and line; they sum to `fee`.
    event SessionSettled(bytes32 indexed sessionId, address indexed node, uint96 fee, Voucher voucher, Line[] lines);
    event SessionClosing(bytes32 indexed sessionId, uint40 closeAt);
    event SessionClosed(bytes32 indexed sessionId, uint96 refund);

    error WrongState(bytes32 sessionId, State state);
    error NotAParty(address caller);
    error NotStaked(address node);
    error VoucherExpired(uint40 deadline);
    error VoucherNotNewer(uint96 settled);
    error OverDeposit(uint96 deposit);
    error LinesMismatch();
    error BadSignature();
    error CannotCloseYet(uint40 closeAt);
    error TooManyLines(uint256 count);
    error BadDelay();
    error PayPerUse(uint64 recipeId);
    error NotAModule(address account);

    /// @notice Moves `deposit` of the caller's Vault balance into a session with a staked node.
    /// @param nonce The caller's choice, never used before with this node.
    function open(address node, uint96 deposit, uint256 nonce) external returns (bytes32 sessionId);
    /// @notice The client: adds to the deposit of an open session.
    function topUp(bytes32 sessionId, uint96 amount) external;
    /// @notice Anyone: pays out what a voucher adds to the one settled before. `lines` are ascending by recipe, at most
    /// 12, and sum to the voucher's fee; none ever shrinks. A recipe with use fees is for the queue lane alone.
    function settle(Voucher calldata voucher, Line[] calldata lines, bytes calldata signature) external;
    /// @notice The client: starts the delay after which the rest of the deposit returns.
    function requestClose(bytes32 sessionId) external;
    /// @notice Anyone once the delay is over, the node at any time: what is not settled returns to the client's balance.
    /// @dev The node's operator, never its hot key: closing gives up what vouchers still promise.
    function close(bytes32 sessionId) external;

    /// @notice Authority only: stops `open`, and nothing else.
    function pause() external;
    /// @notice Authority only.
    function unpause() external;

    function vault() external view returns (IVault);
    function adapters() external view returns (IAdapterRegistry);
    function closeDelaySecs() external view returns (uint32);
    function session(bytes32 sessionId) external view returns (Session memory);
    /// @notice What the session's receipts under a recipe have been paid.
    function paid(bytes32 sessionId, uint64 recipeId) external view returns (uint96);
    /// @notice Fees ever settled under a recipe in this lane; the basis of its legs' rounding.
    function recipeFees(uint64 recipeId) external view returns (uint256);
    /// @notice keccak256(abi.encode(chainId, this contract, client, node, nonce))
    function sessionIdOf(address client, address node, uint256 nonce) external view returns (bytes32);
    function hashVoucher(Voucher calldata voucher) external view returns (bytes32);
    /// @notice EIP-712 digest of an order: the workId of its receipt.
    function hashOrder(IJobQueue.JobSpec calldata spec) external view returns (bytes32);
    /// @notice EIP-712 digest of this lane's receipts.
    function hashReceipt(IJobQueue.Receipt memory receipt) external view returns (bytes32);
}
