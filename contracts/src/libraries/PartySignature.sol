// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";

/// @title Signatures of a hot key or a client, which is an account or a contract.
library PartySignature {
    /// @dev ECDSA first, whether or not there is code: an EIP-7702 account has both, and its key speaks for it.
    /// OpenZeppelin's ECDSA takes 65 bytes and refuses a high s.
    function isValid(address signer, bytes32 digest, bytes calldata signature) internal view returns (bool) {
        // The third tells why it failed, which does not matter.
        // slither-disable-next-line unused-return
        (address recovered, ECDSA.RecoverError failure,) = ECDSA.tryRecoverCalldata(digest, signature);
        if (failure == ECDSA.RecoverError.NoError && recovered == signer) return true;
        return signer.code.length > 0 && SignatureChecker.isValidERC1271SignatureNow(signer, digest, signature);
    }
}
