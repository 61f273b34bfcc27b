// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {IOutputReceiver} from "src/interfaces/IOutputReceiver.sol";
import {IOutputs} from "src/interfaces/IOutputs.sol";

/// @notice Refuses the output.
contract Reverter is IOutputReceiver {
    function onOutput(uint64, bytes calldata) external pure {
        revert("no");
    }
}

/// @notice Uses all the gas it has; notes how much that was in what nobody can take back.
contract Glutton is IOutputReceiver {
    uint256 public given;

    function onOutput(uint64, bytes calldata) external {
        if (given == 0) given = gasleft();
        while (gasleft() > 3_000) {}
        // Returning keeps the note; the rest of the gas is burnt.
        assembly ("memory-safe") {
            return(0, 0)
        }
    }
}

/// @notice Answers with as much memory as its gas allows.
contract Bomber is IOutputReceiver {
    function onOutput(uint64, bytes calldata) external pure {
        assembly ("memory-safe") {
            revert(0, 150000)
        }
    }
}

/// @notice Tries to have the output published again from within.
contract Thief is IOutputReceiver {
    IOutputs private immutable _outputs;

    constructor(IOutputs outputs) {
        _outputs = outputs;
    }

    function onOutput(uint64 jobId, bytes calldata output) external {
        _outputs.publishOutput(jobId, output);
    }
}
