// Submits one job with viem and prints the answer, which its node publishes on chain.
//
//     node submit.mjs RPC_URL deployment.json KEY_FILE RECIPE_ID "Why is the sky blue?"
//
// KEY_FILE holds a private key, 0x and 64 hex digits, of an account with the market's token and a little gas money.

import { createHash, randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { createPublicClient, createWalletClient, erc20Abi, formatEther, hexToString, http, parseEventLogs, toHex } from "viem";
import { privateKeyToAccount } from "viem/accounts";

const PUBLISH = 2; // the node must publish the answer: it loses its bond and its fee otherwise
const BID = { inPricePerK: 10n ** 17n, outPricePerK: 2n * 10n ** 17n }; // token wei for 1,000 tokens
const TEMPLATE_TOKENS = 128; // what the model's chat template may add to the prompt
const POLL_MS = 1_000;
const GAS_MARGIN_PERCENT = 150n; // others' transactions change what a call costs before it is mined; unused gas is not paid

if (process.argv.length !== 7) {
  console.error("usage: node submit.mjs RPC_URL deployment.json KEY_FILE RECIPE_ID PROMPT");
  process.exit(2);
}
const [rpcUrl, deploymentFile, keyFile, recipeId, prompt] = process.argv.slice(2);
const account = privateKeyToAccount(readFileSync(keyFile, "utf8").trim());
const reader = createPublicClient({ transport: http(rpcUrl), pollingInterval: POLL_MS });
const writer = createWalletClient({ transport: http(rpcUrl), account });

const where = JSON.parse(readFileSync(deploymentFile, "utf8"));
const queue = { address: where.job_queue, abi: abiOf("JobQueue") };
const vault = { address: where.vault, abi: abiOf("Vault") };
const token = { address: where.token, abi: erc20Abi };
const outputs = { address: where.outputs, abi: abiOf("Outputs") };

const document = inputDocument(prompt);
const now = (await reader.getBlock()).timestamp;
const spec = {
  client: account.address,
  recipeId: BigInt(recipeId),
  inputDigest: toHex(createHash("sha256").update(document).digest()),
  maxInTokens: document.length + TEMPLATE_TOKENS, // no tokenizer makes more tokens than bytes
  maxOutTokens: 64,
  ...BID,
  deadline: Number(now) + 600,
  leaseSecs: 120,
  flags: PUBLISH,
  nonce: BigInt(toHex(randomBytes(32))),
};
const [escrow, useFee, wantedFlags] = await read(queue, "quote", spec);
spec.flags |= wantedFlags;

const missing = escrow + useFee - (await read(vault, "balanceOf", account.address));
if (missing > 0n) {
  await send(token, "approve", vault.address, missing);
  await send(vault, "deposit", account.address, missing);
}
const receipt = await send(queue, "submit", spec, toHex(document));
const [submitted] = parseEventLogs({ abi: queue.abi, eventName: "JobSubmitted", logs: receipt.logs });
const { jobId } = submitted.args;
console.log(`job ${jobId}: ${formatEther(escrow)} tokens in escrow`);

const { answerSecs } = await read(outputs, "terms");
const output = await published(jobId, receipt.blockNumber, spec.deadline + answerSecs);
console.log(output.text);

function abiOf(name) {
  const file = new URL(`../openlora/contracts/artifacts/${name}.json`, import.meta.url);
  return JSON.parse(readFileSync(file, "utf8")).abi;
}

/** At most 4 KiB travel inline. Any bytes of this form will do: what is on chain is their digest. */
function inputDocument(content) {
  return Buffer.from(JSON.stringify({ v: 1, messages: [{ role: "user", content }] }));
}

function read(contract, functionName, ...args) {
  return reader.readContract({ ...contract, functionName, args });
}

/** The receipt, once the transaction is mined. A call that would revert is not sent: viem throws its error. */
async function send(contract, functionName, ...args) {
  const call = { ...contract, functionName, args, account };
  const { request } = await reader.simulateContract(call);
  const gas = ((await reader.estimateContractGas(call)) * GAS_MARGIN_PERCENT) / 100n;
  const hash = await writer.writeContract({ ...request, gas, chain: null });
  const mined = await reader.waitForTransactionReceipt({ hash });
  if (mined.status !== "success") throw new Error(`${functionName} was reverted`);
  return mined;
}

/** The output document; the contract has checked it against the node's receipt. */
async function published(jobId, fromBlock, until) {
  while ((await reader.getBlock()).timestamp <= until) {
    const filter = { ...outputs, eventName: "OutputPublished", args: { jobId }, fromBlock };
    const [found] = await reader.getContractEvents(filter);
    if (found) return JSON.parse(hexToString(found.args.output));
    await sleep(POLL_MS);
  }
  throw new Error(`job ${jobId} has no answer in time: JobQueue.expire or Outputs.resolve returns its escrow`);
}
