// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {AdapterRegistry} from "src/AdapterRegistry.sol";
import {IAdapterRegistry} from "src/interfaces/IAdapterRegistry.sol";

import {MarketTest} from "./utils/MarketTest.sol";

contract AdapterRegistryTest is MarketTest {
    bytes32 private constant UNKNOWN = bytes32(uint256(0xdead));

    function test_constructor_revertsWhen_treasury_is_zero() public {
        vm.expectRevert(IAdapterRegistry.ZeroAddress.selector);
        new AdapterRegistry(address(0));
    }

    function test_registerBase_revertsWhen_registered() public {
        vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.AlreadyRegistered.selector, BASE_ID));
        adapters.registerBase(BASE_ID, treasury, "again");
    }

    function test_registerBase_revertsWhen_payee_is_zero() public {
        vm.expectRevert(IAdapterRegistry.ZeroAddress.selector);
        adapters.registerBase(UNKNOWN, address(0), "zero");
    }

    function test_createDatanet_revertsWhen_shares_do_not_sum() public {
        IAdapterRegistry.Share[] memory shares = new IAdapterRegistry.Share[](1);
        shares[0] = IAdapterRegistry.Share(dataPayee1, 9_999);
        vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.BadShares.selector, 9_999));
        adapters.createDatanet(0, shares, "short");
        vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.BadShares.selector, 0));
        adapters.createDatanet(0, new IAdapterRegistry.Share[](0), "none");
    }

    function test_createDatanet_revertsWhen_shares_are_many() public {
        vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.TooMany.selector, 17, 16));
        adapters.createDatanet(0, new IAdapterRegistry.Share[](17), "many");
    }

    function test_createDatanet_revertsWhen_payee_is_zero() public {
        IAdapterRegistry.Share[] memory shares = new IAdapterRegistry.Share[](1);
        shares[0] = IAdapterRegistry.Share(address(0), 10_000);
        vm.expectRevert(IAdapterRegistry.ZeroAddress.selector);
        adapters.createDatanet(0, shares, "zero");
    }

    function test_registerAdapter_revertsWhen_registered() public {
        vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.AlreadyRegistered.selector, ADAPTER_A));
        adapters.registerAdapter(ADAPTER_A, BASE_ID, new uint32[](0), "squat");
    }

    /// @dev Anyone may take any name; what counts is the content's digest.
    function test_a_name_is_nobodys_identity() public {
        adapters.registerAdapter(UNKNOWN, BASE_ID, new uint32[](0), "a");
        assertEq(adapters.adapter(UNKNOWN).owner, address(this));
        assertEq(adapters.adapter(ADAPTER_A).owner, authorA, "whose adapter is called so too");
    }

    function test_registerAdapter_revertsWhen_base_is_unknown() public {
        vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.UnknownBase.selector, UNKNOWN));
        adapters.registerAdapter(UNKNOWN, UNKNOWN, new uint32[](0), "c");
    }

    function test_registerAdapter_revertsWhen_datanet_is_unknown() public {
        uint32[] memory datanets = new uint32[](1);
        datanets[0] = 2;
        vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.UnknownDatanet.selector, 2));
        adapters.registerAdapter(UNKNOWN, BASE_ID, datanets, "c");
    }

    function test_registerAdapter_revertsWhen_datanets_are_many() public {
        vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.TooMany.selector, 5, 4));
        adapters.registerAdapter(UNKNOWN, BASE_ID, new uint32[](5), "c");
    }

    function test_deprecateAdapter_revertsWhen_not_the_owner() public {
        vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.NotOwner.selector, address(this)));
        adapters.deprecateAdapter(ADAPTER_A);
    }

    function test_deprecated_adapters_enter_no_new_recipe_and_leave_old_ones() public {
        vm.prank(authorA);
        adapters.deprecateAdapter(ADAPTER_A);
        (bytes32[] memory digests, int32[] memory weights) = ensembleOf(3, -1);
        assertEq(adapters.registerRecipe(BASE_ID, digests, weights), ensemble);
        weights[0] = 4;
        vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.AdapterIsDeprecated.selector, ADAPTER_A));
        adapters.registerRecipe(BASE_ID, digests, weights);
    }

    function test_registerRecipe_revertsWhen_not_sorted() public {
        (bytes32[] memory digests, int32[] memory weights) = ensembleOf(1, 1);
        (digests[0], digests[1]) = (ADAPTER_B, ADAPTER_A);
        vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.NotSorted.selector, ADAPTER_A));
        adapters.registerRecipe(BASE_ID, digests, weights);
        digests[1] = ADAPTER_B;
        vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.NotSorted.selector, ADAPTER_B));
        adapters.registerRecipe(BASE_ID, digests, weights);
    }

    function test_registerRecipe_revertsWhen_weight_is_out_of_range() public {
        int32[4] memory bad = [int32(0), 100_001, -100_001, type(int32).min];
        for (uint256 i = 0; i < bad.length; i++) {
            (bytes32[] memory digests, int32[] memory weights) = ensembleOf(1, bad[i]);
            vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.BadWeight.selector, bad[i]));
            adapters.registerRecipe(BASE_ID, digests, weights);
        }
    }

    function test_registerRecipe_revertsWhen_lengths_differ() public {
        vm.expectRevert(IAdapterRegistry.LengthMismatch.selector);
        adapters.registerRecipe(BASE_ID, new bytes32[](1), new int32[](2));
    }

    function test_registerRecipe_revertsWhen_adapters_are_many() public {
        vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.TooMany.selector, 9, 8));
        adapters.registerRecipe(BASE_ID, new bytes32[](9), new int32[](9));
    }

    function test_registerRecipe_revertsWhen_base_differs() public {
        bytes32 other = keccak256("other");
        adapters.registerBase(other, basePayee, "other");
        (bytes32[] memory digests, int32[] memory weights) = ensembleOf(1, 1);
        vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.WrongBase.selector, ADAPTER_A, BASE_ID, other));
        adapters.registerRecipe(other, digests, weights);
    }

    function test_registerRecipe_revertsWhen_adapter_is_unknown() public {
        (bytes32[] memory digests, int32[] memory weights) = ensembleOf(1, 1);
        digests[1] = UNKNOWN;
        vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.UnknownAdapter.selector, UNKNOWN));
        adapters.registerRecipe(BASE_ID, digests, weights);
    }

    function test_registerRecipe_revertsWhen_legs_are_many() public {
        bytes32[] memory digests = new bytes32[](2);
        int32[] memory weights = new int32[](2);
        for (uint256 i = 0; i < 2; i++) {
            IAdapterRegistry.Share[] memory shares = new IAdapterRegistry.Share[](16);
            for (uint256 j = 0; j < 16; j++) {
                shares[j] = IAdapterRegistry.Share(address(uint160(0x1000 + 16 * i + j)), 625);
            }
            uint32[] memory datanets = new uint32[](1);
            datanets[0] = adapters.createDatanet(0, shares, "wide");
            (digests[i], weights[i]) = (bytes32(0x10 + i), int32(1));
            adapters.registerAdapter(digests[i], BASE_ID, datanets, "wide");
        }
        vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.TooMany.selector, 33, 32));
        adapters.registerRecipe(BASE_ID, digests, weights);
    }

    function test_recipes_have_one_id_and_views_find_it() public view {
        (bytes32[] memory digests, int32[] memory weights) = ensembleOf(3, -1);
        assertEq(adapters.recipeIdOf(BASE_ID, digests, weights), ensemble);
        weights[1] = 1;
        assertEq(adapters.recipeIdOf(BASE_ID, digests, weights), 0);
        assertEq(adapters.recipe(ensemble).weights[1], -1);
    }

    function test_views_revertWhen_unknown() public {
        vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.UnknownRecipe.selector, 0));
        adapters.recipe(0);
        vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.UnknownRecipe.selector, 3));
        adapters.recipeLegs(3);
        vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.UnknownAdapter.selector, UNKNOWN));
        adapters.adapter(UNKNOWN);
        vm.expectRevert(abi.encodeWithSelector(IAdapterRegistry.UnknownDatanet.selector, 2));
        adapters.datanetShares(2);
    }

    function test_legs_of_an_ensemble() public view {
        IAdapterRegistry.Leg[] memory legs = adapters.recipeLegs(ensemble);
        assertEq(legs.length, 6);
        _assertLeg(legs[0], authorA, IAdapterRegistry.Role.Adapter, 1_500);
        _assertLeg(legs[1], dataPayee1, IAdapterRegistry.Role.Datanet, 525);
        _assertLeg(legs[2], dataPayee2, IAdapterRegistry.Role.Datanet, 225);
        _assertLeg(legs[3], authorB, IAdapterRegistry.Role.Adapter, 750); // 500 of its own, 250 of the data's part
        _assertLeg(legs[4], basePayee, IAdapterRegistry.Role.Base, 500);
        _assertLeg(legs[5], treasury, IAdapterRegistry.Role.Protocol, 500);
    }

    function test_legs_of_the_base_alone() public view {
        IAdapterRegistry.Leg[] memory legs = adapters.recipeLegs(baseOnly);
        assertEq(legs.length, 2);
        _assertLeg(legs[0], basePayee, IAdapterRegistry.Role.Base, 1_000);
        _assertLeg(legs[1], treasury, IAdapterRegistry.Role.Protocol, 500);
    }

    function test_legs_merge_one_payee_in_one_role() public {
        bytes32 c = bytes32(uint256(0xc));
        vm.prank(authorB);
        adapters.registerAdapter(c, BASE_ID, new uint32[](0), "c");
        (bytes32[] memory digests, int32[] memory weights) = (new bytes32[](2), new int32[](2));
        (digests[0], digests[1], weights[0], weights[1]) = (ADAPTER_B, c, 1, 2);
        IAdapterRegistry.Leg[] memory legs = adapters.recipeLegs(adapters.registerRecipe(BASE_ID, digests, weights));
        assertEq(legs.length, 3);
        _assertLeg(legs[0], authorB, IAdapterRegistry.Role.Adapter, 3_000);
    }

    function testFuzz_legs_leave_the_node_its_part(int32 a, int32 b) public {
        a = int32(bound(a, -100_000, 100_000));
        b = int32(bound(b, -100_000, 100_000));
        vm.assume(a != 0 && b != 0);
        (bytes32[] memory digests, int32[] memory weights) = ensembleOf(a, b);
        IAdapterRegistry.Leg[] memory legs = adapters.recipeLegs(adapters.registerRecipe(BASE_ID, digests, weights));
        uint256 sum = 0;
        for (uint256 i = 0; i < legs.length; i++) {
            sum += legs[i].bps;
        }
        assertLe(sum, 4_000);
        assertGe(sum, 4_000 - 4); // each of the four floored legs loses less than one
    }

    function _assertLeg(IAdapterRegistry.Leg memory leg, address payee, IAdapterRegistry.Role role, uint256 bps)
        private
        pure
    {
        assertEq(leg.payee, payee);
        assertEq(uint256(leg.role), uint256(role));
        assertEq(leg.bps, bps);
    }
}
