// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";

import {INodeRegistry} from "./interfaces/INodeRegistry.sol";
import {IVault} from "./interfaces/IVault.sol";
import {PartySignature} from "./libraries/PartySignature.sol";
import {Spoils} from "./libraries/Spoils.sol";

/// @title Implementation of INodeRegistry.
contract NodeRegistry is INodeRegistry, EIP712 {
    using SafeCast for uint256;

    bytes32 private constant HOT_KEY_TYPEHASH = keccak256("HotKey(address operator,uint40 deadline)");
    uint256 private constant MAX_PEER_ID_BYTES = 64;

    /// @dev What a claim and its end touch is the first slot alone.
    struct Record {
        uint96 active; // stake that is not in withdrawal
        uint96 bonded; // <= active
        uint24 liveClaims;
        uint40 unstakeAt;
        address hotKey;
        uint96 unstaking;
        uint96 owed; // <= bonded
        bytes32 encryptionKey;
        bytes32 metadata;
        bytes peerId;
    }

    /// @inheritdoc INodeRegistry
    IVault public immutable vault;
    /// @inheritdoc INodeRegistry
    address public immutable queue;
    /// @inheritdoc INodeRegistry
    address public immutable outputs;
    /// @inheritdoc INodeRegistry
    address public immutable disputes;
    /// @inheritdoc INodeRegistry
    uint32 public immutable unstakeDelaySecs;

    /// @inheritdoc INodeRegistry
    uint256 public forfeitPool;
    /// @inheritdoc INodeRegistry
    mapping(address hotKey => address operator) public operatorOf;
    /// @inheritdoc INodeRegistry
    mapping(address operator => mapping(address hotKey => uint40)) public liableUntil;
    mapping(address operator => Record) private _nodes;

    constructor(IVault vault_, address queue_, address outputs_, address disputes_, uint32 unstakeDelaySecs_)
        EIP712("OpenLoRA", "1")
    {
        if (!vault_.isModule(address(this))) revert NotAModule(address(this));
        vault = vault_;
        (queue, outputs, disputes) = (queue_, outputs_, disputes_);
        unstakeDelaySecs = unstakeDelaySecs_;
    }

    modifier onlyQueue() {
        if (msg.sender != queue) revert NotTheQueue(msg.sender);
        _;
    }

    /// @inheritdoc INodeRegistry
    function register(HotKeyConsent calldata hotKey, bytes32 encryptionKey, bytes32 metadata, bytes calldata peerId)
        external
    {
        if (_nodes[msg.sender].hotKey != address(0)) revert AlreadyRegistered(msg.sender);
        _assignHotKey(hotKey);
        _writeMetadata(encryptionKey, metadata, peerId);
        emit NodeRegistered(msg.sender, hotKey.key, peerId);
    }

    /// @inheritdoc INodeRegistry
    function setHotKey(HotKeyConsent calldata hotKey) external {
        Record storage self = _registered(msg.sender);
        delete operatorOf[self.hotKey];
        liableUntil[msg.sender][self.hotKey] = uint40(block.timestamp) + unstakeDelaySecs;
        _assignHotKey(hotKey);
    }

    /// @inheritdoc INodeRegistry
    function setMetadata(bytes32 encryptionKey, bytes32 metadata, bytes calldata peerId) external {
        _registered(msg.sender);
        _writeMetadata(encryptionKey, metadata, peerId);
    }

    /// @inheritdoc INodeRegistry
    function stake(uint256 amount) external {
        Record storage self = _registered(msg.sender);
        self.active += amount.toUint96();
        emit Staked(msg.sender, amount);
        vault.lock(msg.sender, amount);
    }

    /// @inheritdoc INodeRegistry
    function beginUnstake(uint256 amount) external {
        Record storage self = _registered(msg.sender);
        uint96 leaving = _checkFree(msg.sender, self, amount);
        uint40 availableAt = uint40(block.timestamp) + unstakeDelaySecs;
        self.active -= leaving;
        self.unstaking += leaving;
        self.unstakeAt = availableAt;
        emit UnstakeBegun(msg.sender, amount, availableAt);
    }

    /// @inheritdoc INodeRegistry
    function withdrawStake() external {
        Record storage self = _nodes[msg.sender];
        uint96 amount = self.unstaking;
        if (amount == 0) revert NothingUnstaking(msg.sender);
        if (block.timestamp < self.unstakeAt) revert UnstakeNotReady(self.unstakeAt);
        if (self.liveClaims > 0) revert ClaimsLive(msg.sender, self.liveClaims);
        self.unstaking = 0;
        self.unstakeAt = 0;
        emit StakeWithdrawn(msg.sender, amount);
        vault.release(msg.sender, amount);
    }

    /// @inheritdoc INodeRegistry
    function lockBond(address hotKey, uint256 amount, uint256 maxLiveClaims)
        external
        onlyQueue
        returns (address operator)
    {
        operator = operatorOf[hotKey];
        if (operator == address(0)) revert NotAHotKey(hotKey);
        Record storage self = _nodes[operator];
        if (self.liveClaims >= maxLiveClaims) revert TooManyLiveClaims(operator, maxLiveClaims);
        self.bonded += _checkFree(operator, self, amount);
        self.liveClaims++;
    }

    /// @inheritdoc INodeRegistry
    function unlockBonds(address operator, uint256 amount, uint256 claims) external onlyQueue {
        Record storage self = _nodes[operator];
        self.bonded -= amount.toUint96();
        self.liveClaims -= claims.toUint24();
        _burn(operator, _takeDebt(self, amount));
    }

    /// @inheritdoc INodeRegistry
    function forfeitBond(address operator, uint256 amount, uint256 lost) external onlyQueue returns (uint96 forfeited) {
        Record storage self = _nodes[operator];
        self.bonded -= amount.toUint96();
        self.liveClaims--;
        uint256 paid = _takeDebt(self, amount);
        forfeited = Math.min(lost, amount - paid).toUint96();
        self.active -= forfeited;
        forfeitPool += forfeited;
        emit BondForfeited(operator, forfeited);
        _burn(operator, paid);
    }

    /// @inheritdoc INodeRegistry
    function slash(address operator, uint256 parts) external returns (uint256 amount) {
        if (msg.sender != disputes) revert NotDisputes(msg.sender);
        Record storage self = _nodes[operator];
        (uint256 free, uint256 leaving) = (self.active - self.bonded, self.unstaking);
        uint256 due = (self.active + leaving - self.owed) / parts;
        amount = Math.min(due, free + leaving);
        uint256 fromFree = Math.min(amount, free);
        self.active -= fromFree.toUint96();
        self.unstaking -= (amount - fromFree).toUint96();
        if (due > amount) self.owed += (due - amount).toUint96();
        forfeitPool += amount;
        emit Slashed(operator, amount);
    }

    /// @inheritdoc INodeRegistry
    function payForfeit(address beneficiary, uint256 amount) external {
        if (msg.sender != queue && msg.sender != outputs && msg.sender != disputes) revert NotAModule(msg.sender);
        forfeitPool -= amount;
        _pay(beneficiary, amount);
    }

    /// @inheritdoc INodeRegistry
    function node(address operator) external view returns (Node memory) {
        Record storage self = _nodes[operator];
        return Node({
            hotKey: self.hotKey,
            stake: self.active + self.unstaking,
            unstaking: self.unstaking,
            bonded: self.bonded,
            liveClaims: self.liveClaims,
            unstakeAt: self.unstakeAt,
            encryptionKey: self.encryptionKey,
            metadata: self.metadata,
            peerId: self.peerId
        });
    }

    /// @inheritdoc INodeRegistry
    function hashConsent(address operator, uint40 deadline) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(HOT_KEY_TYPEHASH, operator, deadline)));
    }

    /// @inheritdoc INodeRegistry
    function owed(address operator) external view returns (uint256) {
        return _nodes[operator].owed;
    }

    /// @inheritdoc INodeRegistry
    function freeStake(address operator) external view returns (uint256) {
        Record storage self = _nodes[operator];
        return self.active - self.bonded;
    }

    /// @dev Takes what slashings are owed out of bonds that are not locked any more.
    function _takeDebt(Record storage self, uint256 unlocked) private returns (uint96 paid) {
        uint96 owed_ = self.owed;
        if (owed_ == 0) return 0;
        paid = Math.min(owed_, unlocked).toUint96();
        self.owed = owed_ - paid;
        self.active -= paid;
    }

    function _burn(address operator, uint256 amount) private {
        if (amount == 0) return;
        emit Slashed(operator, amount);
        _pay(Spoils.BURNT, amount);
    }

    function _pay(address beneficiary, uint256 amount) private {
        emit ForfeitPaid(beneficiary, amount);
        address[] memory accounts = new address[](1);
        uint256[] memory amounts = new uint256[](1);
        (accounts[0], amounts[0]) = (beneficiary, amount);
        vault.credit(accounts, amounts);
    }

    /// @dev Without the key's consent anyone could take it for an operator of their own, and its owner would have to
    /// find another.
    function _assignHotKey(HotKeyConsent calldata consent) private {
        address hotKey = consent.key;
        if (hotKey == address(0)) revert ZeroAddress();
        if (operatorOf[hotKey] != address(0)) revert HotKeyInUse(hotKey);
        if (block.timestamp > consent.deadline) revert ConsentExpired(consent.deadline);
        bytes32 digest = hashConsent(msg.sender, consent.deadline);
        if (!PartySignature.isValid(hotKey, digest, consent.signature)) revert NoConsent(hotKey);
        operatorOf[hotKey] = msg.sender;
        liableUntil[msg.sender][hotKey] = type(uint40).max;
        _nodes[msg.sender].hotKey = hotKey;
        emit HotKeySet(msg.sender, hotKey);
    }

    function _writeMetadata(bytes32 encryptionKey, bytes32 metadata, bytes calldata peerId) private {
        if (peerId.length > MAX_PEER_ID_BYTES) revert PeerIdTooLong(peerId.length);
        Record storage self = _nodes[msg.sender];
        self.encryptionKey = encryptionKey;
        self.metadata = metadata;
        self.peerId = peerId;
        emit MetadataSet(msg.sender, encryptionKey, metadata, peerId);
    }

    function _registered(address operator) private view returns (Record storage self) {
        self = _nodes[operator];
        if (self.hotKey == address(0)) revert NotRegistered(operator);
    }

    function _checkFree(address operator, Record storage self, uint256 amount) private view returns (uint96) {
        uint256 free = self.active - self.bonded;
        if (free < amount) revert InsufficientStake(operator, free, amount);
        return uint96(amount); // forge-lint: disable-line(unsafe-typecast) -- <= free, a difference of uint96
    }
}
