// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {SignedMath} from "@openzeppelin/contracts/utils/math/SignedMath.sol";

import {IAdapterRegistry} from "./interfaces/IAdapterRegistry.sol";
import {LegList} from "./libraries/LegList.sol";

/// @title Implementation of IAdapterRegistry.
contract AdapterRegistry is IAdapterRegistry {
    uint256 private constant BPS = 10_000;
    uint256 private constant ADAPTERS_BPS = 2_000;
    uint256 private constant DATANETS_BPS = 1_000;
    uint256 private constant BASE_BPS = 500;
    uint256 private constant BASE_ALONE_BPS = 1_000;
    uint256 private constant PROTOCOL_BPS = 500;

    uint256 private constant MAX_SHARES = 16;
    uint256 private constant MAX_DATANETS = 4;
    uint256 private constant MAX_ADAPTERS = 8;
    uint256 private constant MAX_WEIGHT = 100_000;
    uint256 private constant MAX_ACCOUNTS = 64;

    /// @inheritdoc IAdapterRegistry
    address public immutable treasury;

    /// @inheritdoc IAdapterRegistry
    uint32 public datanetCount;
    /// @inheritdoc IAdapterRegistry
    uint64 public recipeCount;
    /// @inheritdoc IAdapterRegistry
    mapping(bytes32 baseId => address) public basePayee;
    mapping(uint32 datanetId => Share[]) private _shares;
    mapping(bytes32 digest => Adapter) private _adapters;
    mapping(bytes32 digest => mapping(address account => bool)) private _allowed;
    mapping(uint64 recipeId => Recipe) private _recipes;
    mapping(bytes32 key => uint64 recipeId) private _recipeIds;

    constructor(address treasury_) {
        if (treasury_ == address(0)) revert ZeroAddress();
        treasury = treasury_;
    }

    /// @inheritdoc IAdapterRegistry
    function registerBase(bytes32 baseId, address payee, string calldata name) external {
        if (payee == address(0)) revert ZeroAddress();
        if (basePayee[baseId] != address(0)) revert AlreadyRegistered(baseId);
        basePayee[baseId] = payee;
        emit BaseRegistered(baseId, payee, name);
    }

    /// @inheritdoc IAdapterRegistry
    function createDatanet(bytes32 root, Share[] calldata shares, string calldata name)
        external
        returns (uint32 datanetId)
    {
        if (shares.length > MAX_SHARES) revert TooMany(shares.length, MAX_SHARES);
        datanetId = ++datanetCount;
        uint256 sumBps = 0;
        for (uint256 i = 0; i < shares.length; i++) {
            if (shares[i].payee == address(0)) revert ZeroAddress();
            sumBps += shares[i].bps;
            _shares[datanetId].push(shares[i]);
        }
        if (sumBps != BPS) revert BadShares(sumBps);
        emit DatanetCreated(datanetId, msg.sender, root, name);
    }

    /// @inheritdoc IAdapterRegistry
    function registerAdapter(bytes32 digest, bytes32 baseId, uint32[] calldata datanets, string calldata name)
        external
    {
        if (_adapters[digest].owner != address(0)) revert AlreadyRegistered(digest);
        if (basePayee[baseId] == address(0)) revert UnknownBase(baseId);
        if (datanets.length > MAX_DATANETS) revert TooMany(datanets.length, MAX_DATANETS);
        for (uint256 i = 0; i < datanets.length; i++) {
            _checkDatanet(datanets[i]);
        }
        _adapters[digest] = Adapter({
            baseId: baseId,
            owner: msg.sender,
            registeredAt: uint40(block.timestamp),
            deprecated: false,
            takenDown: false,
            access: Access.Public,
            version: 1,
            useFee: 0,
            predecessor: 0,
            successor: 0,
            licence: 0,
            datanets: datanets
        });
        emit AdapterRegistered(digest, baseId, msg.sender, name);
    }

    /// @inheritdoc IAdapterRegistry
    function deprecateAdapter(bytes32 digest) external {
        _owned(digest).deprecated = true;
        emit AdapterDeprecated(digest);
    }

    /// @inheritdoc IAdapterRegistry
    function takeDown(bytes32 digest) external {
        _owned(digest).takenDown = true;
        emit AdapterTakenDown(digest);
    }

    /// @inheritdoc IAdapterRegistry
    function supersede(bytes32 digest, bytes32 successor) external {
        Adapter storage self = _owned(digest);
        Adapter storage later = _owned(successor);
        // A last version is joined to a lone one, so no row forks or closes to a ring.
        bool lone = later.predecessor == 0 && later.successor == 0;
        if (successor == digest || self.successor != 0 || !lone) revert NotALaterVersion(successor);
        uint16 version = self.version + 1;
        (self.successor, later.predecessor, later.version) = (successor, digest, version);
        emit AdapterSuperseded(digest, successor, version);
    }

    /// @inheritdoc IAdapterRegistry
    function setLicence(bytes32 digest, bytes32 licence) external {
        _owned(digest).licence = licence;
        emit LicenceSet(digest, licence);
    }

    /// @inheritdoc IAdapterRegistry
    function setAccess(bytes32 digest, Access access, uint72 useFee) external {
        if ((access == Access.PayPerUse) != (useFee > 0)) revert BadAccess(access, useFee);
        Adapter storage self = _owned(digest);
        (self.access, self.useFee) = (access, useFee);
        emit AccessSet(digest, access, useFee);
    }

    /// @inheritdoc IAdapterRegistry
    function allow(bytes32 digest, address[] calldata accounts, bool allowed) external {
        if (accounts.length > MAX_ACCOUNTS) revert TooMany(accounts.length, MAX_ACCOUNTS);
        _owned(digest);
        for (uint256 i = 0; i < accounts.length; i++) {
            _allowed[digest][accounts[i]] = allowed;
            emit Allowed(digest, accounts[i], allowed);
        }
    }

    /// @inheritdoc IAdapterRegistry
    function refresh(uint64 recipeId) external returns (Gate gate) {
        _checkRecipeId(recipeId);
        Recipe storage pinned = _recipes[recipeId];
        gate = _gateOf(recipeId, pinned);
        pinned.gate = gate;
        emit GateSet(recipeId, gate);
    }

    /// @inheritdoc IAdapterRegistry
    function registerRecipe(bytes32 baseId, bytes32[] calldata adapters, int32[] calldata weights)
        external
        returns (uint64 recipeId)
    {
        bytes32 key = _recipeKey(baseId, adapters, weights, _useFees(adapters));
        recipeId = _recipeIds[key];
        if (recipeId != 0) return recipeId;

        uint256 sumWeights = _checkRecipe(baseId, adapters, weights);
        recipeId = ++recipeCount;
        _recipeIds[key] = recipeId;
        Recipe storage pinned = _recipes[recipeId];
        pinned.baseId = baseId;
        pinned.adapters = adapters;
        pinned.weights = weights;
        _pinLegs(pinned, sumWeights);
        pinned.gate = _gateOf(recipeId, pinned);
        emit RecipeRegistered(recipeId, baseId, adapters, weights);
    }

    /// @inheritdoc IAdapterRegistry
    function adapter(bytes32 digest) external view returns (Adapter memory) {
        return _known(digest);
    }

    /// @inheritdoc IAdapterRegistry
    function datanetShares(uint32 datanetId) external view returns (Share[] memory) {
        _checkDatanet(datanetId);
        return _shares[datanetId];
    }

    /// @inheritdoc IAdapterRegistry
    function recipe(uint64 recipeId) external view returns (Recipe memory) {
        _checkRecipeId(recipeId);
        return _recipes[recipeId];
    }

    /// @inheritdoc IAdapterRegistry
    function recipeLegs(uint64 recipeId) external view returns (Leg[] memory) {
        _checkRecipeId(recipeId);
        return _recipes[recipeId].legs;
    }

    /// @inheritdoc IAdapterRegistry
    function terms(uint64 recipeId) external view returns (uint96 useFee, Gate gate) {
        Recipe storage pinned = _recipes[recipeId];
        (useFee, gate) = (pinned.useFee, pinned.gate);
        if (gate == Gate.None) revert UnknownRecipe(recipeId);
    }

    /// @inheritdoc IAdapterRegistry
    function checkUse(uint64 recipeId, address account) external view {
        _checkRecipeId(recipeId);
        Recipe storage pinned = _recipes[recipeId];
        bytes32[] memory digests = pinned.adapters;
        if (!_isCurrent(recipeId, pinned)) revert TermsChanged(recipeId);
        for (uint256 i = 0; i < digests.length; i++) {
            if (_adapters[digests[i]].takenDown) revert AdapterIsTakenDown(digests[i]);
            if (!canUse(digests[i], account)) revert NotAllowed(digests[i], account);
        }
    }

    /// @inheritdoc IAdapterRegistry
    function canUse(bytes32 digest, address account) public view returns (bool) {
        Adapter storage known = _known(digest);
        if (known.takenDown) return false;
        return known.access != Access.AllowList || known.owner == account || _allowed[digest][account];
    }

    /// @inheritdoc IAdapterRegistry
    function recipeIdOf(bytes32 baseId, bytes32[] calldata adapters, int32[] calldata weights)
        external
        view
        returns (uint64)
    {
        return _recipeIds[_recipeKey(baseId, adapters, weights, _useFees(adapters))];
    }

    /// @dev Returns Σ |weight|.
    function _checkRecipe(bytes32 baseId, bytes32[] calldata adapters, int32[] calldata weights)
        private
        view
        returns (uint256 sumWeights)
    {
        if (basePayee[baseId] == address(0)) revert UnknownBase(baseId);
        if (adapters.length != weights.length) revert LengthMismatch();
        if (adapters.length > MAX_ADAPTERS) revert TooMany(adapters.length, MAX_ADAPTERS);
        for (uint256 i = 0; i < adapters.length; i++) {
            bytes32 digest = adapters[i];
            if (i > 0 && digest <= adapters[i - 1]) revert NotSorted(digest);
            Adapter storage known = _known(digest);
            if (known.baseId != baseId) revert WrongBase(digest, known.baseId, baseId);
            if (known.deprecated) revert AdapterIsDeprecated(digest);
            if (known.takenDown) revert AdapterIsTakenDown(digest);
            uint256 weight = SignedMath.abs(weights[i]);
            if (weight == 0 || weight > MAX_WEIGHT) revert BadWeight(weights[i]);
            sumWeights += weight;
        }
    }

    /// @dev Every leg's basis points are floored once; what that loses stays with the node.
    function _pinLegs(Recipe storage pinned, uint256 sumWeights) private {
        LegList.List memory legs = LegList.create();
        for (uint256 i = 0; i < pinned.adapters.length; i++) {
            Adapter storage used = _adapters[pinned.adapters[i]];
            _addAdapterLegs(legs, used, SignedMath.abs(pinned.weights[i]), sumWeights);
        }
        LegList.add(legs, basePayee[pinned.baseId], Role.Base, sumWeights == 0 ? BASE_ALONE_BPS : BASE_BPS);
        LegList.add(legs, treasury, Role.Protocol, PROTOCOL_BPS);
        for (uint256 i = 0; i < legs.count; i++) {
            pinned.legs.push(legs.items[i]);
            pinned.useFee += legs.items[i].perUse;
        }
    }

    /// @dev An adapter's owner by |weight|; its datanets by |weight|, equally among them, each by its shares.
    function _addAdapterLegs(LegList.List memory legs, Adapter storage used, uint256 weight, uint256 sumWeights)
        private
        view
    {
        uint256 count = used.datanets.length;
        uint256 ownBps = count == 0 ? ADAPTERS_BPS + DATANETS_BPS : ADAPTERS_BPS;
        LegList.add(legs, used.owner, Role.Adapter, ownBps * weight / sumWeights);
        LegList.addUse(legs, used.owner, used.useFee);
        for (uint256 i = 0; i < count; i++) {
            Share[] storage shares = _shares[used.datanets[i]];
            for (uint256 j = 0; j < shares.length; j++) {
                uint256 bps = DATANETS_BPS * weight * shares[j].bps / (sumWeights * count * BPS);
                LegList.add(legs, shares[j].payee, Role.Datanet, bps);
            }
        }
    }

    function _known(bytes32 digest) private view returns (Adapter storage known) {
        known = _adapters[digest];
        if (known.owner == address(0)) revert UnknownAdapter(digest);
    }

    function _owned(bytes32 digest) private view returns (Adapter storage known) {
        known = _known(digest);
        if (known.owner != msg.sender) revert NotOwner(msg.sender);
    }

    /// @dev Whether the recipe's use fees are still those of its adapters.
    function _isCurrent(uint64 recipeId, Recipe storage pinned) private view returns (bool) {
        bytes32[] memory digests = pinned.adapters;
        return _recipeIds[_recipeKey(pinned.baseId, digests, pinned.weights, _useFees(digests))] == recipeId;
    }

    function _gateOf(uint64 recipeId, Recipe storage pinned) private view returns (Gate) {
        bytes32[] memory digests = pinned.adapters;
        for (uint256 i = 0; i < digests.length; i++) {
            Adapter storage used = _adapters[digests[i]];
            if (used.takenDown || used.access != Access.Public) return Gate.Guarded;
        }
        return _isCurrent(recipeId, pinned) ? Gate.Open : Gate.Guarded;
    }

    function _useFees(bytes32[] memory digests) private view returns (uint72[] memory fees) {
        fees = new uint72[](digests.length);
        for (uint256 i = 0; i < digests.length; i++) {
            fees[i] = _adapters[digests[i]].useFee;
        }
    }

    function _checkDatanet(uint32 datanetId) private view {
        if (datanetId == 0 || datanetId > datanetCount) revert UnknownDatanet(datanetId);
    }

    function _checkRecipeId(uint64 recipeId) private view {
        if (recipeId == 0 || recipeId > recipeCount) revert UnknownRecipe(recipeId);
    }

    function _recipeKey(bytes32 baseId, bytes32[] memory adapters, int32[] memory weights, uint72[] memory useFees)
        private
        pure
        returns (bytes32)
    {
        return keccak256(abi.encode(baseId, adapters, weights, useFees));
    }
}
