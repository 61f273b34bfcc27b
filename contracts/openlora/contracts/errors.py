"""Why a call reverted, in one sentence that says what to do.

    AbiMismatch (ValueError)        bytes that are not what the ABI promises        openlora.contracts.call
    InvalidSignature (ValueError)   a signature the contracts would refuse          openlora.contracts.eip712

are what this package raises; a contract's own errors are data, `ContractError`, since a revert is often the answer to a
question (has someone else claimed this job?).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eth_utils.address import is_hex_address, to_checksum_address

from openlora.contracts.bindings import (
    adapter_registry,
    disputes,
    governance,
    job_queue,
    node_registry,
    outputs,
    sessions,
    token,
    vault,
)
from openlora.contracts.bindings.job_queue import JobState
from openlora.contracts.bindings.sessions import SessionState
from openlora.contracts.call import AbiMismatch, ErrorType, decode_values

_MODULES = (vault, node_registry, adapter_registry, job_queue, sessions, outputs, disputes, governance, token)
_BY_SELECTOR: dict[bytes, ErrorType] = {error.selector: error for module in _MODULES for error in module.ERRORS}
_ERROR_STRING = bytes.fromhex("08c379a0")
_PANIC = bytes.fromhex("4e487b71")

_PANICS = {
    0x01: "an assertion failed",
    0x11: "arithmetic overflow or underflow",
    0x12: "division by zero",
    0x21: "a number outside its enum",
    0x22: "broken storage encoding",
    0x31: "pop from an empty array",
    0x32: "array index out of bounds",
    0x41: "too much memory",
    0x51: "call of an uninitialised function",
}

SENTENCES: Mapping[str, str] = {
    # Vault
    "InsufficientBalance(address,uint256,uint256)": (
        "{account} has {balance} wei in the vault and needs {needed}: deposit the difference"
    ),
    "InsufficientPot(address,uint256,uint256)": (
        "module {module} holds {pot} wei and would pay {needed}: this is a fault of the contracts, report it"
    ),
    "TransferFellShort(uint256,uint256)": (
        "the vault received {received} wei of {expected}: tokens that charge on transfer cannot be deposited"
    ),
    "NotAModule(address)": (
        "{account} is not a module of the vault: deploy the contracts in order with consecutive nonces of one account"
    ),
    "ReentrancyGuardReentrantCall()": "the vault was called from within its own call: use a token without hooks",
    "SafeERC20FailedOperation(address)": "the transfer of token {token} failed: check balance and allowance",
    "LengthMismatch()": "the lists differ in length: pass one entry each for every item",
    # NodeRegistry
    "AlreadyRegistered(address)": "{operator} is registered already: change it with setHotKey or setMetadata",
    "NotRegistered(address)": "{operator} is not registered: register the operator with its hot key first",
    "HotKeyInUse(address)": "hot key {hot_key} serves an operator already: use another key for this one",
    "ZeroAddress()": "the zero address was given: pass a real one",
    "PeerIdTooLong(uint256)": "the peer id has {length} bytes: at most 64 are allowed",
    "InsufficientStake(address,uint256,uint256)": (
        "{operator} has {free} wei of free stake and needs {needed}: stake more, or wait until bonds are released"
    ),
    "UnstakeNotReady(uint40)": "the stake may leave at unix time {available_at}: withdraw it then",
    "NothingUnstaking(address)": "{operator} has no stake in withdrawal: call beginUnstake first",
    "ConsentExpired(uint40)": "the hot key's consent ended at unix time {deadline}: have it sign a new one",
    "NoConsent(address)": "hot key {hot_key} has not signed that it serves this operator: sign its HotKey consent",
    "ClaimsLive(address,uint256)": (
        "{operator} has {count} claims that are not final: its stake may leave once they are"
    ),
    "TooManyLiveClaims(address,uint256)": (
        "{operator} has {limit} claims that are not final, the most allowed: wait until some of them are"
    ),
    "NotDisputes(address)": "{caller} is not the disputes' contract: only that one slashes",
    "NotTheQueue(address)": "{caller} is not the job queue: only the queue moves bonds",
    # AdapterRegistry
    "AlreadyRegistered(bytes32)": "{id_} is registered already, and the first registration stands",
    "UnknownBase(bytes32)": "base model {base_id} is not registered: register it first",
    "UnknownDatanet(uint32)": "there is no datanet {datanet_id}: create it first",
    "UnknownAdapter(bytes32)": "adapter {digest} is not registered: its owner must register it first",
    "UnknownRecipe(uint64)": "there is no recipe {recipe_id}: register it first",
    "WrongBase(bytes32,bytes32,bytes32)": (
        "adapter {digest} belongs to base model {adapter_base}, not to {recipe_base}: leave it out of this recipe"
    ),
    "AdapterIsDeprecated(bytes32)": "adapter {digest} is deprecated by its owner: use another in new recipes",
    "AdapterIsTakenDown(bytes32)": "adapter {digest} was taken down by its owner: use another",
    "NotAllowed(bytes32,address)": "adapter {digest} is not for {account}: ask its owner to allow it",
    "TermsChanged(uint64)": "a use fee in recipe {recipe_id} has changed: register the recipe again and use that one",
    "BadAccess(uint8,uint72)": "a use fee of {use_fee} wei does not fit the access: only pay-per-use has one",
    "NotALaterVersion(bytes32)": "adapter {digest} has versions of its own already: give one that has none",
    "NotOwner(address)": "{caller} does not own the adapter: send from the account that registered it",
    "NotSorted(bytes32)": "adapter {digest} is out of order: list adapters by ascending digest, each once",
    "BadWeight(int32)": "weight {weight} is not allowed: in units of 1/10,000 it is non-zero and within ±100,000",
    "BadShares(uint256)": "the shares sum to {sum_bps} basis points: they must sum to 10,000",
    "TooMany(uint256,uint256)": "{count} entries are too many: at most {limit} are allowed",
    # JobQueue
    "WrongState(uint64,uint8)": "job {job_id} is {state}, and this call is for another state: read the job again",
    "SpecMismatch(uint64,bytes32)": (
        "job {job_id} has spec {expected}, not the one given: a reorganisation may have replaced it, read it again"
    ),
    "NotTheClient(address)": "{caller} is not the job's client: send from the client's account",
    "NotAHotKey(address)": "{caller} is no operator's hot key: register it, or check which key the node runs with",
    "NotTheNode(address)": "{caller} does not serve the operator that holds this job: send from its hot key",
    "DeadlinePassed(uint40)": "the job's deadline {deadline} has passed: expire it to refund its client",
    "BadDeadline(uint40)": "deadline {deadline} is in the past or too far ahead: see maxDurationSecs in the parameters",
    "BadLease(uint32)": "a lease of {lease_secs} s is not allowed: see maxLeaseSecs in the parameters",
    "LeaseExpired(uint40)": "the lease ended at unix time {lease_deadline}: claim the job again if it is still open",
    "InputTooLarge(uint256)": "the inline document has {length} bytes: above 4,096, send it by CID instead",
    "InputDigestMismatch(bytes32)": "the inline document has digest {computed}, not the spec's inputDigest: rebuild it",
    "SettlementMismatch(uint64)": (
        "the settlement is not job {job_id}'s: rebuild it from the job's spec and its committed receipt"
    ),
    "OverLimit(uint32,uint32)": "{in_tokens} + {out_tokens} tokens exceed the spec's limits: stop at its limits",
    "TooEarly(uint64)": "the claim was in this block, {claim_block}: commit in a later one, when its hash is known",
    "ClaimForgotten(uint64)": (
        "the chain no longer knows the hash of the claim's block, {claim_block}: release the claim before its"
        " lease ends"
    ),
    "WrongSeed(uint64)": "the seed must be {expected}: derive it from the spec's hash and that of the claim's block",
    "BadFinish(uint8,uint40)": (
        "finish reason {finish_reason} at unix time {finished_at} cannot be: 0 or 1, no later than the lease's end"
    ),
    "BadSignature()": "the signature is not that of who had to sign this: check the key and the domain",
    "WindowOpen(uint40)": "the challenge window is open until unix time {finalizable_at}: finalize then",
    "WindowOver(uint40)": "the challenge window ended at unix time {finalizable_at}: nothing can be asked now",
    "BadFlags(uint32)": "flags {flags} have bits that mean nothing: see IJobQueue for those that do",
    "GuardedRecipe(uint64)": "recipe {recipe_id} is guarded: set the GUARDED flag in the spec, as a quote says",
    "NotAJudge(address)": "{caller} is neither the outputs' nor the disputes' contract: only those hold jobs",
    "NotExpired(uint64)": "job {job_id} has not reached its deadline: its client may cancel it, others must wait",
    "BadParams()": (
        "maxLiveClaims, maxLeaseSecs and maxDurationSecs must not be zero, nor windowSecs as long as the exit delay"
    ),
    "EnforcedPause()": "the market is paused: submitting, opening and claiming wait, everything else works",
    "ExpectedPause()": "it is not paused: there is nothing to unpause",
    # Sessions
    "WrongState(bytes32,uint8)": "session {session_id} is {state}, and this call is for another state: read it again",
    "NotAParty(address)": "{caller} is not the session's client: send from the client's account",
    "NotStaked(address)": "{node} is no operator with free stake: open a session with one that has",
    "VoucherExpired(uint40)": "the voucher could be settled until unix time {deadline}: ask the client for another",
    "VoucherNotNewer(uint96)": "{settled} wei of the session are settled: only a voucher for more pays anything",
    "OverDeposit(uint96)": "the session's deposit is {deposit} wei: the voucher must not promise more",
    "LinesMismatch()": "the lines are not those that the voucher commits to, or do not add up to its fee",
    "CannotCloseYet(uint40)": "the node may settle until unix time {close_at}: close the session then",
    "TooManyLines(uint256)": "a voucher of {count} recipes is too large: at most 12 are allowed in a session",
    "BadDelay()": "a session's closing delay must not be zero",
    "PayPerUse(uint64)": "recipe {recipe_id} has use fees, which sessions cannot count: submit a job to the queue",
    # Outputs
    "NoQuestion(uint64,uint8)": "nothing of that kind is asked of job {job_id}: it was answered, or never asked",
    "AlreadyAsked(uint64,uint8)": "that was asked of job {job_id} before, and is asked only once",
    "ReceiptMismatch(uint64)": "settlement, receipt and spec are not those of job {job_id}: take them from its events",
    "NoSuchChunk(uint32,uint32)": "there is no chunk {chunk}: the answer has {count}",
    "TooLongToPublish(uint32,uint32)": (
        "{out_tokens} tokens are too many to publish in a transaction: at most {limit} can be demanded"
    ),
    "DigestMismatch(bytes32)": "the output has digest {computed}, not the receipt's: publish the whole document",
    "BadOpening(uint32)": "data and proof are not chunk {chunk} under the receipt's fingerprintRoot",
    "TooLate(uint40)": "that was possible until unix time {until}",
    "StillTime(uint40)": "the node has time to answer until unix time {answer_by}: resolve it after that",
    "NotEnoughGas(uint256)": "the client's contract must be left {needed} gas: send with a higher limit",
    "BadTerms()": "the terms have a duration of zero, a life as long as the exit delay, or a part above its whole",
    # Disputes
    "NotEquivocation()": "these are not two different receipts of one node for one work: there is nothing to prove",
    "SpecMismatch(bytes32)": (
        "the receipt is for the spec {expected}, not for the one given: pass that one, which names the client"
    ),
    "NotLiable(address)": "the node does not answer for what {hot_key} signed, or not any more",
    "NotFalse()": "the receipt follows from its spec: there is nothing to prove",
    "AlreadyDisputed(uint64)": "job {job_id} was disputed before, and is only once",
    "NoDispute(uint64)": "there is no open dispute about job {job_id}",
    "NumericAuditWaived(uint64)": "the client of job {job_id} keeps its text private and waived numeric disputes",
    "TooFewVerifiers(uint256)": "there are {count} verifiers to draw from, too few for a panel: wait until more enlist",
    "TooManyVerifiers(uint256)": "there are {limit} verifiers, the most allowed: enlist when one has left",
    "AlreadyVerifier(address)": "{account} is a verifier already",
    "NotAVerifier(address)": "{account} is no verifier, or has retired",
    "StillOnDuty(address)": "{verifier} sits on a dispute that is not resolved: resolve it first",
    "NotYet(uint256)": "it is too early for that: wait for {from_}, a block's number or unix time",
    "AlreadyDrawn(uint64)": "the panel of job {job_id} is drawn",
    "NotOnPanel(address)": "{account} does not sit on this dispute",
    "AlreadyVoted(address)": "{account} has voted, which each does once",
    "VoteMismatch()": "that is not the vote committed to, or none that can be: reveal the same verdict and salt",
    "NotSelected(uint64,uint64)": "job {job_id} is not drawn in audit round {round}: only a challenge can dispute it",
    "AlreadyProven(address,bytes32)": "{node} was slashed over {work_id} already, and is so only once",
    # Governance
    "AccessManagedUnauthorized(address)": "{caller} may not do this: see who has the role in the governance contract",
    "AccessManagedRequiredDelay(address,uint32)": (
        "{caller} must wait {delay} s: schedule the call with the governance contract, then execute it there"
    ),
    "AccessManagedInvalidAuthority(address)": "{authority} is no contract: it cannot govern",
    "AccessManagerAlreadyScheduled(bytes32)": "operation {operation_id} is scheduled already: wait, or cancel it first",
    "AccessManagerNotScheduled(bytes32)": "operation {operation_id} is not scheduled: schedule it first",
    "AccessManagerNotReady(bytes32)": "operation {operation_id} is not ready: execute it once its delay has passed",
    "AccessManagerExpired(bytes32)": "operation {operation_id} has expired: schedule it again",
    "AccessManagerLockedRole(uint64)": "role {role_id} cannot be changed: it is fixed",
    "AccessManagerLockedFunction(bytes4)": "{selector} cannot be given to a role: it is fixed",
    "AccessManagerBadConfirmation()": "only its holder can renounce a role: confirm with the caller's own address",
    "AccessManagerInvalidInitialAdmin(address)": "{initial_admin} cannot be the owner: pass a real address",
    "AccessManagerUnauthorizedAccount(address,uint64)": "{msgsender} does not have role {role_id}: ask who has",
    "AccessManagerUnauthorizedCall(address,address,bytes4)": (
        "{caller} may not call {selector} of {target}: ask who has the role"
    ),
    "AccessManagerUnauthorizedConsume(address)": "{target} cannot use up a scheduled operation of another contract",
    "AccessManagerUnauthorizedCancel(address,address,address,bytes4)": (
        "{msgsender} may not cancel what {caller} scheduled: ask its scheduler or a guardian"
    ),
    "FailedCall()": "the governed call failed without a reason: simulate it alone",
    "InsufficientBalance(uint256,uint256)": "the contract has {balance} wei and needs {needed}: send it no value",
    "AddressEmptyCode(address)": "{target} is no contract: check the address",
    "SafeCastOverflowedUintDowncast(uint8,uint256)": "{value} does not fit in {bits} bits: use smaller amounts",
    # DevToken and what it inherits
    "ERC20InsufficientAllowance(address,uint256,uint256)": (
        "{spender} may move {allowance} wei and needs {needed}: approve more, or deposit with a permit"
    ),
    "ERC20InsufficientBalance(address,uint256,uint256)": "{sender} has {balance} wei of the token and needs {needed}",
    "ERC20InvalidApprover(address)": "{approver} cannot approve: pass a real address",
    "ERC20InvalidReceiver(address)": "{receiver} cannot receive tokens: pass a real address",
    "ERC20InvalidSender(address)": "{sender} cannot send tokens: pass a real address",
    "ERC20InvalidSpender(address)": "{spender} cannot be approved: pass a real address",
    "ERC2612ExpiredSignature(uint256)": "the permit expired at unix time {deadline}: sign a new one",
    "ERC2612InvalidSigner(address,address)": "the permit is signed by {signer}, not by {owner}: sign it with the owner",
    "InvalidAccountNonce(address,uint256)": "{account} is at nonce {current_nonce}: sign again with that one",
    "ECDSAInvalidSignature()": "the signature belongs to no key: sign again",
    "ECDSAInvalidSignatureLength(uint256)": "the signature has {length} bytes: it must have 65",
    "ECDSAInvalidSignatureS(bytes32)": "the signature's s is {s}, in the upper half: give its twin with the low s",
    "InvalidShortString()": "a short string is broken in storage: this is a fault of the contracts, report it",
    "StringTooLong(string)": "the string {str} is too long for one word: this is a fault of the contracts, report it",
}


@dataclass(frozen=True, slots=True)
class ContractError:
    """A decoded revert. `name` is the Solidity error's, `Error`, `Panic`, or empty when nobody knows it."""

    name: str
    args: Mapping[str, Any]
    sentence: str


def decode_revert(data: bytes) -> ContractError:
    """Reads a revert's return data; never raises, whatever the bytes."""
    if not data:
        return ContractError(
            "", {}, "the call reverted without a reason: check the contract's address and the gas limit"
        )
    try:
        return _decode(data[:4], data[4:])
    except AbiMismatch:
        return _unknown(data)


def _decode(selector: bytes, rest: bytes) -> ContractError:
    if selector == _ERROR_STRING:
        (message,) = decode_values(["string"], rest)
        return ContractError("Error", {"message": message}, f"the contract says: {message}")
    if selector == _PANIC:
        (code,) = decode_values(["uint256"], rest)
        cause = _PANICS.get(code, "an unknown panic")
        return ContractError(
            "Panic", {"code": code}, f"the contract panicked ({cause}): report it with the call's data"
        )
    kind = _BY_SELECTOR.get(selector)
    if kind is None:
        return _unknown(selector + rest)
    args = dict(zip(kind.fields, decode_values(kind.types, rest), strict=True))
    states = SessionState if "session_id" in args else JobState
    shown = {name: _show(name, value, states) for name, value in args.items()}
    return ContractError(kind.name, args, SENTENCES[f"{kind.name}({','.join(kind.types)})"].format(**shown))


def _unknown(data: bytes) -> ContractError:
    shown = data[:36].hex() + ("…" if len(data) > 36 else "")
    return ContractError(
        "", {}, f"the call reverted with unknown data 0x{shown}: is it another version of the contract?"
    )


def _show(name: str, value: Any, states: type[JobState] | type[SessionState]) -> str:
    if name == "state":
        return states(value).name.lower() if value in set(states) else f"in unknown state {value}"
    if isinstance(value, bytes):
        return f"0x{value.hex()}"
    return to_checksum_address(value) if is_hex_address(value) else str(value)
