// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

/// @title Base models, datanets, adapters, and the recipes that pin who is paid.
/// @notice Models and adapters are named by content: a base by its model id, an adapter by the sha2-256 digest of its
/// UnixFS directory root. A recipe is immutable and pins base, adapters, weights and payees under one number, so
/// nothing registered or changed later moves the money of a job already submitted.
interface IAdapterRegistry {
    /// @notice Whose work a payment is for.
    enum Role {
        Node,
        Adapter,
        Datanet,
        Base,
        Protocol
    }

    struct Share {
        address payee;
        uint16 bps; // of the datanet's part; a datanet's shares sum to 10,000
    }

    struct Leg {
        address payee;
        Role role;
        uint16 bps; // of the fee, floored; the node takes what the legs leave
    }

    struct Adapter {
        bytes32 baseId;
        address owner;
        uint40 registeredAt;
        bool deprecated;
        uint32[] datanets;
    }

    struct Recipe {
        bytes32 baseId;
        bytes32[] adapters; // ascending digests
        int32[] weights; // 1/10,000; non-zero; |w| <= 100,000
        Leg[] legs; // one entry per (payee, role)
    }

    event BaseRegistered(bytes32 indexed baseId, address indexed payee, string name);
    event DatanetCreated(uint32 indexed datanetId, address indexed owner, bytes32 root, string name);
    event AdapterRegistered(bytes32 indexed digest, bytes32 indexed baseId, address indexed owner, string name);
    event AdapterDeprecated(bytes32 indexed digest);
    event RecipeRegistered(uint64 indexed recipeId, bytes32 indexed baseId, bytes32[] adapters, int32[] weights);

    error AlreadyRegistered(bytes32 id);
    error UnknownBase(bytes32 baseId);
    error UnknownDatanet(uint32 datanetId);
    error UnknownAdapter(bytes32 digest);
    error UnknownRecipe(uint64 recipeId);
    error WrongBase(bytes32 digest, bytes32 adapterBase, bytes32 recipeBase);
    error AdapterIsDeprecated(bytes32 digest);
    error NotOwner(address caller);
    error NotSorted(bytes32 digest);
    error BadWeight(int32 weight);
    error BadShares(uint256 sumBps);
    error TooMany(uint256 count, uint256 limit);
    error LengthMismatch();
    error ZeroAddress();

    /// @notice Names a base model and the payee of its part; the first registration stands.
    function registerBase(bytes32 baseId, address payee, string calldata name) external;
    /// @notice `root` commits to the documents; `shares` is the pinned prior by which contributors are paid (<= 16).
    function createDatanet(bytes32 root, Share[] calldata shares, string calldata name)
        external
        returns (uint32 datanetId);
    /// @notice The caller becomes the adapter's owner and payee. At most 4 datanets.
    function registerAdapter(bytes32 digest, bytes32 baseId, uint32[] calldata datanets, string calldata name) external;
    /// @notice Owner only: no new recipe may use the adapter; existing recipes and running jobs are untouched.
    function deprecateAdapter(bytes32 digest) external;
    /// @notice Pins a recipe (at most 8 adapters, 32 legs). Registering the same recipe again returns the same id.
    function registerRecipe(bytes32 baseId, bytes32[] calldata adapters, int32[] calldata weights)
        external
        returns (uint64 recipeId);

    /// @notice Payee of every recipe's protocol part.
    function treasury() external view returns (address);
    /// @notice Zero when the base is unknown.
    function basePayee(bytes32 baseId) external view returns (address);
    function adapter(bytes32 digest) external view returns (Adapter memory);
    function datanetShares(uint32 datanetId) external view returns (Share[] memory);
    /// @notice Datanets are numbered from 1.
    function datanetCount() external view returns (uint32);
    function recipe(uint64 recipeId) external view returns (Recipe memory);
    function recipeLegs(uint64 recipeId) external view returns (Leg[] memory);
    /// @notice Recipes are numbered from 1.
    function recipeCount() external view returns (uint64);
    /// @notice The id under which this exact recipe is registered; zero when it is not.
    function recipeIdOf(bytes32 baseId, bytes32[] calldata adapters, int32[] calldata weights)
        external
        view
        returns (uint64);
}
