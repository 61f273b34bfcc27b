"""Submits one job with web3.py and prints the answer, which its node publishes on chain.

    python submit.py RPC_URL deployment.json KEY_FILE RECIPE_ID "Why is the sky blue?"

KEY_FILE holds a private key, 0x and 64 hex digits, of an account with the market's token and a little gas money.
"""

import hashlib
import json
import secrets
import sys
import time
from pathlib import Path
from typing import Any

from eth_account.signers.local import LocalAccount
from web3 import Web3
from web3.contract import Contract
from web3.logs import DISCARD

ARTIFACTS = Path(__file__).resolve().parent.parent / "openlora" / "contracts" / "artifacts"
PUBLISH = 2  # the node must publish the answer: it loses its bond and its fee otherwise
BID = {"inPricePerK": 10**17, "outPricePerK": 2 * 10**17}  # token wei for 1,000 tokens
TEMPLATE_TOKENS = 128  # what the model's chat template may add to the prompt
POLL_S = 1.0
GAS_MARGIN = 1.5  # others' transactions change what a call costs before it is mined; unused gas is not paid


def main(rpc_url: str, deployment_file: str, key_file: str, recipe_id: str, prompt: str) -> None:
    w3 = Web3(Web3.HTTPProvider(rpc_url))
    account = w3.eth.account.from_key(Path(key_file).read_text().strip())
    where = json.loads(Path(deployment_file).read_text())
    queue = contract(w3, "JobQueue", where["job_queue"])
    vault = contract(w3, "Vault", where["vault"])
    token = contract(w3, "DevToken", where["token"])  # any ERC-20 has the one call that is used
    outputs = contract(w3, "Outputs", where["outputs"])

    document = input_document(prompt)
    now_s = w3.eth.get_block("latest")["timestamp"]
    spec = {
        "client": account.address,
        "recipeId": int(recipe_id),
        "inputDigest": hashlib.sha256(document).digest(),
        "maxInTokens": len(document) + TEMPLATE_TOKENS,  # no tokenizer makes more tokens than bytes
        "maxOutTokens": 64,
        **BID,
        "deadline": now_s + 600,
        "leaseSecs": 120,
        "flags": PUBLISH,
        "nonce": secrets.randbits(256),
    }
    escrow, use_fee, wanted_flags = queue.functions.quote(spec).call()
    spec["flags"] |= wanted_flags

    missing = escrow + use_fee - vault.functions.balanceOf(account.address).call()
    if missing > 0:
        send(w3, account, token.functions.approve(vault.address, missing))
        send(w3, account, vault.functions.deposit(account.address, missing))
    receipt = send(w3, account, queue.functions.submit(spec, document))
    (submitted,) = queue.events.JobSubmitted().process_receipt(receipt, errors=DISCARD)
    job_id = submitted["args"]["jobId"]
    print(f"job {job_id}: {escrow / 10**18} tokens in escrow", flush=True)

    answer_secs = outputs.functions.terms().call()[0]
    output = published(w3, outputs, job_id, receipt["blockNumber"], spec["deadline"] + answer_secs)
    print(output["text"])


def contract(w3: Web3, name: str, address: str) -> Contract:
    abi = json.loads((ARTIFACTS / f"{name}.json").read_text())["abi"]
    return w3.eth.contract(address=Web3.to_checksum_address(address), abi=abi)


def input_document(prompt: str) -> bytes:
    """At most 4 KiB travel inline. Any bytes of this form will do: what is on chain is their digest."""
    return json.dumps({"v": 1, "messages": [{"role": "user", "content": prompt}]}, ensure_ascii=False).encode()


def send(w3: Web3, account: LocalAccount, call: Any) -> Any:
    """The receipt, once the transaction is mined. A call that would revert is not sent: web3 raises its error."""
    gas = int(call.estimate_gas({"from": account.address}) * GAS_MARGIN)
    fields = {"from": account.address, "nonce": w3.eth.get_transaction_count(account.address), "gas": gas}
    signed = account.sign_transaction(call.build_transaction(fields))
    receipt = w3.eth.wait_for_transaction_receipt(w3.eth.send_raw_transaction(signed.raw_transaction))
    if receipt["status"] != 1:
        raise SystemExit(f"{call.fn_name} was reverted")
    return receipt


def published(w3: Web3, outputs: Contract, job_id: int, since: int, until_s: int) -> Any:
    """The output document; the contract has checked it against the node's receipt."""
    while w3.eth.get_block("latest")["timestamp"] <= until_s:
        for found in outputs.events.OutputPublished().get_logs(from_block=since, argument_filters={"jobId": job_id}):
            return json.loads(found["args"]["output"])
        time.sleep(POLL_S)
    raise SystemExit(f"job {job_id} has no answer in time: JobQueue.expire or Outputs.resolve returns its escrow")


if __name__ == "__main__":
    if len(sys.argv) != 6:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
