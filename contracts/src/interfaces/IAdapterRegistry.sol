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
        Protocol,
        Use
    }

    /// @notice Who may have jobs done with an adapter.
    enum Access {
        Public,
        AllowList, // whom its owner has allowed
        PayPerUse // anyone, for a fee a job on top of the node's
    }

    /// @notice What a recipe asks of those who submit jobs for it.
    enum Gate {
        None, // no such recipe
        Open,
        Guarded // `checkUse` is asked at submit and claim
    }

    struct Share {
        address payee;
        uint16 bps; // of the datanet's part; a datanet's shares sum to 10,000
    }

    struct Leg {
        address payee;
        Role role;
        uint16 bps; // of the fee, floored; the node takes what the legs leave; zero for Use
        uint72 perUse; // token wei a job, on top of the fee; zero but for Use
    }

    struct Adapter {
        bytes32 baseId;
        address owner;
        uint40 registeredAt;
        bool deprecated; // no new recipe may use it
        bool takenDown; // nor any new job
        Access access;
        uint16 version; // 1, or one more than its predecessor's
        uint72 useFee; // token wei a job; zero unless pay-per-use
        bytes32 predecessor; // the version that it supersedes; zero for a first one
        bytes32 successor; // the version that supersedes it; zero for a last one
        bytes32 licence; // an SPDX identifier as ASCII, or the sha2-256 digest of a licence text; zero when unsaid
        uint32[] datanets;
    }

    struct Recipe {
        bytes32 baseId;
        bytes32[] adapters; // ascending digests
        int32[] weights; // 1/10,000; non-zero; |w| <= 100,000
        Leg[] legs; // one entry per (payee, role)
        uint96 useFee; // the sum of its Use legs
        Gate gate;
    }

    event BaseRegistered(bytes32 indexed baseId, address indexed payee, string name);
    event DatanetCreated(uint32 indexed datanetId, address indexed owner, bytes32 root, string name);
    event AdapterRegistered(bytes32 indexed digest, bytes32 indexed baseId, address indexed owner, string name);
    event AdapterDeprecated(bytes32 indexed digest);
    event AdapterTakenDown(bytes32 indexed digest);
    event AdapterSuperseded(bytes32 indexed digest, bytes32 indexed successor, uint16 version);
    event LicenceSet(bytes32 indexed digest, bytes32 licence);
    event AccessSet(bytes32 indexed digest, Access access, uint72 useFee);
    event Allowed(bytes32 indexed digest, address indexed account, bool allowed);
    event GateSet(uint64 indexed recipeId, Gate gate);
    event RecipeRegistered(uint64 indexed recipeId, bytes32 indexed baseId, bytes32[] adapters, int32[] weights);

    error AlreadyRegistered(bytes32 id);
    error UnknownBase(bytes32 baseId);
    error UnknownDatanet(uint32 datanetId);
    error UnknownAdapter(bytes32 digest);
    error UnknownRecipe(uint64 recipeId);
    error WrongBase(bytes32 digest, bytes32 adapterBase, bytes32 recipeBase);
    error AdapterIsDeprecated(bytes32 digest);
    error AdapterIsTakenDown(bytes32 digest);
    error NotAllowed(bytes32 digest, address account);
    error TermsChanged(uint64 recipeId);
    error BadAccess(Access access, uint72 useFee);
    error NotALaterVersion(bytes32 digest);
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
    /// @notice The caller becomes the adapter's owner and payee; the first registration stands, so register before you
    /// show the files. At most 4 datanets.
    function registerAdapter(bytes32 digest, bytes32 baseId, uint32[] calldata datanets, string calldata name) external;
    /// @notice Owner only: no new recipe may use the adapter; existing recipes and running jobs are untouched.
    function deprecateAdapter(bytes32 digest) external;
    /// @notice Owner only, for good: no new job may use the adapter either; claimed ones run on.
    function takeDown(bytes32 digest) external;
    /// @notice Owner of both: `successor`, so far without versions of its own, is the version after `digest`.
    function supersede(bytes32 digest, bytes32 successor) external;
    /// @notice Owner only.
    function setLicence(bytes32 digest, bytes32 licence) external;
    /// @notice Owner only: who may use the adapter from now on. It binds new jobs of every guarded recipe at once, of an
    /// open one from its next `refresh`; jobs that are claimed run on. `useFee` is positive just for PayPerUse.
    /// @dev A use fee is a flat amount a job: escrowed beside the job's escrow at submit, returned whole if the job ends
    /// without a receipt or is refunded, paid whole to the adapter's owner when it is final (`Paid` with Role.Use).
    /// A recipe pins the fees of its adapters; when one changes, the recipe takes no new jobs, and registering the same
    /// adapters and weights again gives a recipe with the new fees. The signed lane does not take such recipes.
    function setAccess(bytes32 digest, Access access, uint72 useFee) external;
    /// @notice Owner only: whom an allow-listed adapter serves beside its owner. At most 64 accounts a call.
    function allow(bytes32 digest, address[] calldata accounts, bool allowed) external;
    /// @notice Anyone: makes a recipe guarded or open, as its adapters' terms are now.
    function refresh(uint64 recipeId) external returns (Gate gate);
    /// @notice Pins a recipe (at most 8 adapters, 32 legs). Registering the same recipe again returns the same id, unless
    /// an adapter's use fee has changed since.
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
    /// @notice What a job of the recipe takes beside its escrow, and whether `checkUse` is asked. Reverts for none.
    function terms(uint64 recipeId) external view returns (uint96 useFee, Gate gate);
    /// @notice Reverts, with the reason, when `account` may not have new jobs of the recipe done now.
    function checkUse(uint64 recipeId, address account) external view;
    /// @notice Whether `account` may use the adapter, leaving fees aside.
    function canUse(bytes32 digest, address account) external view returns (bool);
    /// @notice The id under which this exact recipe is registered with today's use fees; zero when it is not.
    function recipeIdOf(bytes32 baseId, bytes32[] calldata adapters, int32[] calldata weights)
        external
        view
        returns (uint64);
}
