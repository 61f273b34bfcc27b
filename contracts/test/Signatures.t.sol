// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {IERC5267} from "@openzeppelin/contracts/interfaces/IERC5267.sol";

import {IJobQueue} from "src/interfaces/IJobQueue.sol";
import {INodeRegistry} from "src/interfaces/INodeRegistry.sol";
import {ISessions} from "src/interfaces/ISessions.sol";
import {PartySignature} from "src/libraries/PartySignature.sol";

import {MarketTest} from "./utils/MarketTest.sol";

/// @notice Digests and signatures against test/vectors/eip712.json, which Python wrote and checks too.
contract SignaturesTest is MarketTest {
    struct Vector {
        uint256 chainId;
        address queue;
        IJobQueue.JobSpec spec;
        IJobQueue.Receipt receipt;
        ISessions.Voucher voucher;
        address operator;
        uint40 consentDeadline;
        bytes32 specDigest;
        bytes32 receiptDigest;
        bytes32 voucherDigest;
        bytes32 consentDigest;
        address signer;
        bytes signature;
        bytes highS;
    }

    Vector[] private _vectors;

    function setUp() public override {
        super.setUp();
        string memory json = vm.readFile("test/vectors/eip712.json");
        for (uint256 i = 0; vm.keyExistsJson(json, _at(i, "")); i++) {
            _vectors.push();
            _read(json, i, _vectors[i]);
        }
        assertGe(_vectors.length, 4);
    }

    function test_digests_match_the_vectors() public {
        for (uint256 i = 0; i < _vectors.length; i++) {
            IJobQueue at = _queueOf(_vectors[i]);
            assertEq(at.hashSpec(_vectors[i].spec), _vectors[i].specDigest);
            assertEq(at.hashReceipt(_vectors[i].receipt), _vectors[i].receiptDigest);
        }
    }

    function test_digests_of_vouchers_and_consents_match_the_vectors() public {
        for (uint256 i = 0; i < _vectors.length; i++) {
            Vector storage vector = _vectors[i];
            vm.chainId(vector.chainId);
            vm.etch(vector.queue, address(sessions).code);
            assertEq(ISessions(vector.queue).hashVoucher(vector.voucher), vector.voucherDigest);
            assertEq(ISessions(vector.queue).hashOrder(vector.spec), vector.specDigest, "an order is a spec");
            assertEq(ISessions(vector.queue).hashReceipt(vector.receipt), vector.receiptDigest);
            vm.etch(vector.queue, address(nodes).code);
            assertEq(
                INodeRegistry(vector.queue).hashConsent(vector.operator, vector.consentDeadline), vector.consentDigest
            );
        }
    }

    function test_signatures_hold_on_their_chain_and_contract_only() public {
        for (uint256 i = 0; i < _vectors.length; i++) {
            for (uint256 j = 0; j < _vectors.length; j++) {
                bool home = _vectors[i].chainId == _vectors[j].chainId && _vectors[i].queue == _vectors[j].queue;
                bytes32 digest = _queueOf(_vectors[j]).hashReceipt(_vectors[i].receipt);
                assertEq(this.isValid(_vectors[i].signer, digest, _vectors[i].signature), home);
            }
        }
    }

    function test_high_s_is_refused() public view {
        for (uint256 i = 0; i < _vectors.length; i++) {
            Vector storage vector = _vectors[i];
            (bytes32 r, bytes32 s, uint8 v) = _split(vector.highS);
            assertEq(ecrecover(vector.receiptDigest, v, r, s), vector.signer, "the twin is a signature");
            assertFalse(this.isValid(vector.signer, vector.receiptDigest, vector.highS));
        }
    }

    function test_malformed_signatures_are_refused() public view {
        Vector storage vector = _vectors[0];
        (bytes32 r, bytes32 s,) = _split(vector.signature);
        assertFalse(this.isValid(vector.signer, vector.receiptDigest, ""));
        assertFalse(this.isValid(vector.signer, vector.receiptDigest, abi.encodePacked(r, s)));
        assertFalse(this.isValid(vector.signer, vector.receiptDigest, abi.encodePacked(r, s, uint8(0))));
        assertFalse(this.isValid(vector.signer, vector.receiptDigest, abi.encodePacked(vector.signature, uint8(0))));
        assertFalse(this.isValid(address(0), vector.receiptDigest, new bytes(65)));
    }

    function test_a_delegated_account_signs_with_its_key() public {
        Vector storage vector = _vectors[0];
        vm.etch(vector.signer, bytes.concat(hex"ef0100", bytes20(address(token)))); // EIP-7702
        assertTrue(this.isValid(vector.signer, vector.receiptDigest, vector.signature));
    }

    function test_the_domain_is_published() public view {
        (, string memory name, string memory version, uint256 chainId, address verifier,,) =
            IERC5267(address(queue)).eip712Domain();
        assertEq(name, "OpenLoRA");
        assertEq(version, "1");
        assertEq(chainId, block.chainid);
        assertEq(verifier, address(queue));
    }

    /// @dev External, so that the library sees calldata.
    function isValid(address signer, bytes32 digest, bytes calldata signature) external view returns (bool) {
        return PartySignature.isValid(signer, digest, signature);
    }

    /// @dev The queue's code under the vector's chain id and address.
    function _queueOf(Vector storage vector) private returns (IJobQueue) {
        vm.chainId(vector.chainId);
        vm.etch(vector.queue, address(queue).code);
        return IJobQueue(vector.queue);
    }

    function _read(string memory json, uint256 i, Vector storage vector) private {
        vector.chainId = vm.parseJsonUint(json, _at(i, ".chainId"));
        vector.queue = vm.parseJsonAddress(json, _at(i, ".verifyingContract"));
        vector.spec = abi.decode(vm.parseJsonBytes(json, _at(i, ".spec.abi")), (IJobQueue.JobSpec));
        vector.receipt = abi.decode(vm.parseJsonBytes(json, _at(i, ".receipt.abi")), (IJobQueue.Receipt));
        vector.voucher = abi.decode(vm.parseJsonBytes(json, _at(i, ".voucher.abi")), (ISessions.Voucher));
        vector.operator = vm.parseJsonAddress(json, _at(i, ".consent.operator"));
        vector.consentDeadline = uint40(vm.parseJsonUint(json, _at(i, ".consent.deadline")));
        vector.voucherDigest = vm.parseJsonBytes32(json, _at(i, ".voucherDigest"));
        vector.consentDigest = vm.parseJsonBytes32(json, _at(i, ".consentDigest"));
        vector.specDigest = vm.parseJsonBytes32(json, _at(i, ".specDigest"));
        vector.receiptDigest = vm.parseJsonBytes32(json, _at(i, ".receiptDigest"));
        vector.signer = vm.parseJsonAddress(json, _at(i, ".signer"));
        vector.signature = vm.parseJsonBytes(json, _at(i, ".signature"));
        vector.highS = vm.parseJsonBytes(json, _at(i, ".highS"));
        assertEq(vector.spec.nonce, vm.parseJsonUint(json, _at(i, ".spec.nonce")), "abi and fields agree");
        assertEq(vector.receipt.fee, vm.parseJsonUint(json, _at(i, ".receipt.fee")), "abi and fields agree");
    }

    function _at(uint256 i, string memory key) private pure returns (string memory) {
        return string.concat(".vectors[", vm.toString(i), "]", key);
    }

    function _split(bytes memory signature) private pure returns (bytes32 r, bytes32 s, uint8 v) {
        assembly ("memory-safe") {
            r := mload(add(signature, 32))
            s := mload(add(signature, 64))
            v := byte(0, mload(add(signature, 96)))
        }
    }
}
