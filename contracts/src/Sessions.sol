// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {AccessManaged} from "@openzeppelin/contracts/access/manager/AccessManaged.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {Pausable} from "@openzeppelin/contracts/utils/Pausable.sol";

import {IAdapterRegistry} from "./interfaces/IAdapterRegistry.sol";
import {IJobQueue} from "./interfaces/IJobQueue.sol";
import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {ISessions} from "./interfaces/ISessions.sol";
import {IVault} from "./interfaces/IVault.sol";
import {JobHash} from "./libraries/JobHash.sol";
import {PartySignature} from "./libraries/PartySignature.sol";
import {Royalties} from "./libraries/Royalties.sol";
import {Tally} from "./libraries/Tally.sol";

/// @title Implementation of ISessions.
contract Sessions is ISessions, EIP712, AccessManaged, Pausable {
    using JobHash for IJobQueue.JobSpec;
    using JobHash for IJobQueue.Receipt;
    using Tally for Tally.Table;

    bytes32 private constant VOUCHER_TYPEHASH =
        keccak256("Voucher(bytes32 sessionId,uint96 cumulativeFee,bytes32 receiptsRoot,uint40 deadline)");
    uint256 private constant MAX_LINES = 12; // of 32 legs each: one settlement's gas must fit a transaction

    /// @dev A settlement touches the first two slots. A closed session has deposit == settled, so that no voucher of it
    /// can ever be newer and within the deposit; its client stays, so that its id is never opened again.
    struct Record {
        address client;
        uint96 deposit;
        address node;
        uint96 settled;
        uint40 closeAt;
        bool closed;
    }

    /// @inheritdoc ISessions
    IVault public immutable vault;
    /// @inheritdoc ISessions
    IAdapterRegistry public immutable adapters;
    INodeRegistry private immutable _nodes;
    /// @inheritdoc ISessions
    uint32 public immutable closeDelaySecs;

    mapping(bytes32 sessionId => Record) private _sessions;
    /// @inheritdoc ISessions
    mapping(bytes32 sessionId => mapping(uint64 recipeId => uint96)) public paid;
    /// @inheritdoc ISessions
    mapping(uint64 recipeId => uint256) public recipeFees;

    constructor(INodeRegistry nodes_, IAdapterRegistry adapters_, address authority_, uint32 closeDelaySecs_)
        EIP712("OpenLoRA", "1")
        AccessManaged(authority_)
    {
        if (closeDelaySecs_ == 0) revert BadDelay();
        _nodes = nodes_;
        adapters = adapters_;
        vault = nodes_.vault();
        closeDelaySecs = closeDelaySecs_;
        if (!vault.isModule(address(this))) revert NotAModule(address(this));
    }

    /// @inheritdoc ISessions
    function open(address node, uint96 deposit, uint256 nonce) external whenNotPaused returns (bytes32 sessionId) {
        if (_nodes.freeStake(node) == 0) revert NotStaked(node);
        sessionId = sessionIdOf(msg.sender, node, nonce);
        Record storage self = _sessions[sessionId];
        if (self.client != address(0)) revert WrongState(sessionId, _stateOf(self));
        (self.client, self.deposit, self.node) = (msg.sender, deposit, node);
        emit SessionOpened(sessionId, msg.sender, node, deposit);
        vault.lock(msg.sender, deposit);
    }

    /// @inheritdoc ISessions
    function topUp(bytes32 sessionId, uint96 amount) external {
        Record storage self = _openOf(sessionId);
        self.deposit += amount;
        emit SessionToppedUp(sessionId, amount);
        vault.lock(msg.sender, amount);
    }

    /// @inheritdoc ISessions
    function settle(Voucher calldata voucher, Line[] calldata lines, bytes calldata signature) external {
        Record storage self = _sessions[voucher.sessionId];
        (uint96 settled, uint96 deposit, address node) = (self.settled, self.deposit, self.node);
        if (block.timestamp > voucher.deadline) revert VoucherExpired(voucher.deadline);
        if (voucher.cumulativeFee <= settled) revert VoucherNotNewer(settled);
        if (voucher.cumulativeFee > deposit) revert OverDeposit(deposit);
        if (keccak256(abi.encode(lines)) != voucher.receiptsRoot) revert LinesMismatch();
        if (!PartySignature.isValid(self.client, hashVoucher(voucher), signature)) revert BadSignature();

        uint96 fee = voucher.cumulativeFee - settled;
        self.settled = voucher.cumulativeFee;
        emit SessionSettled(voucher.sessionId, node, fee, voucher, lines);
        Tally.Table memory credits = Tally.create();
        if (_divide(credits, voucher.sessionId, node, lines) != fee) revert LinesMismatch();
        (address[] memory accounts, uint256[] memory amounts) = credits.entries();
        vault.credit(accounts, amounts);
    }

    /// @inheritdoc ISessions
    function requestClose(bytes32 sessionId) external {
        Record storage self = _openOf(sessionId);
        self.closeAt = uint40(block.timestamp) + closeDelaySecs;
        emit SessionClosing(sessionId, self.closeAt);
    }

    /// @inheritdoc ISessions
    function close(bytes32 sessionId) external {
        Record storage self = _sessions[sessionId];
        State state = _stateOf(self);
        if (state == State.None || state == State.Closed) revert WrongState(sessionId, state);
        if (msg.sender != self.node) {
            if (state != State.Closing) revert WrongState(sessionId, state);
            if (block.timestamp < self.closeAt) revert CannotCloseYet(self.closeAt);
        }
        uint96 refund = self.deposit - self.settled;
        self.deposit = self.settled;
        self.closed = true;
        emit SessionClosed(sessionId, refund);
        vault.release(self.client, refund);
    }

    /// @inheritdoc ISessions
    function pause() external restricted {
        _pause();
    }

    /// @inheritdoc ISessions
    function unpause() external restricted {
        _unpause();
    }

    /// @inheritdoc ISessions
    function session(bytes32 sessionId) external view returns (Session memory) {
        Record storage self = _sessions[sessionId];
        return Session(self.client, self.node, self.deposit, self.settled, self.closeAt, _stateOf(self));
    }

    /// @inheritdoc ISessions
    function sessionIdOf(address client, address node, uint256 nonce) public view returns (bytes32) {
        return keccak256(abi.encode(block.chainid, address(this), client, node, nonce));
    }

    /// @inheritdoc ISessions
    function hashVoucher(Voucher calldata voucher) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(VOUCHER_TYPEHASH, voucher)));
    }

    /// @inheritdoc ISessions
    function hashOrder(IJobQueue.JobSpec calldata spec) external view returns (bytes32) {
        return _hashTypedDataV4(spec.structHash());
    }

    /// @inheritdoc ISessions
    function hashReceipt(IJobQueue.Receipt memory receipt) external view returns (bytes32) {
        return _hashTypedDataV4(receipt.structHash());
    }

    function _stateOf(Record storage self) private view returns (State) {
        if (self.client == address(0)) return State.None;
        if (self.closed) return State.Closed;
        return self.closeAt == 0 ? State.Open : State.Closing;
    }

    /// @dev The session, which must be open and the caller's.
    function _openOf(bytes32 sessionId) private view returns (Record storage self) {
        self = _sessions[sessionId];
        State state = _stateOf(self);
        if (state != State.Open) revert WrongState(sessionId, state);
        if (msg.sender != self.client) revert NotAParty(msg.sender);
    }

    /// @dev Pays what each line adds to what it was paid before; returns the sum. A recipe that was paid before and is
    /// left out makes that sum more than the voucher adds.
    function _divide(Tally.Table memory credits, bytes32 sessionId, address node, Line[] calldata lines)
        private
        returns (uint256 fee)
    {
        if (lines.length > MAX_LINES) revert TooManyLines(lines.length);
        for (uint256 i = 0; i < lines.length; i++) {
            (uint64 recipeId, uint96 cumulative) = (lines[i].recipeId, lines[i].cumulativeFee);
            uint96 before = paid[sessionId][recipeId];
            bool ascending = i == 0 || recipeId > lines[i - 1].recipeId;
            if (!ascending || cumulative < before) revert LinesMismatch();
            paid[sessionId][recipeId] = cumulative;
            uint256 added = cumulative - before;
            fee += added;
            Royalties.divide(recipeFees, credits, adapters, recipeId, node, added, 0);
        }
    }
}
