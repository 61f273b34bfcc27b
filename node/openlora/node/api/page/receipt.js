// One job: what it came to, who got what of its fee, and how its state moved.

import { bar } from "./charts.js";
import { byId, empty, make, quoted, show } from "./dom.js";
import { ask } from "./feed.js";
import { atMoment, count, exactly, olra, percent, share, shortHex, tokens } from "./format.js";
import { recipeWords } from "./jobs.js";
import { FINISHES, ROLES, SKIPS, STATES, word } from "./words.js";

const WITHOUT_RECEIPT = new Set(["seen", "skipped", "claiming", "claimed", "lost", "cancelled", "expired"]);
let open = null; // the job that is shown

export function openJob(id) {
  open = id;
  show(byId("job"), head({ job_id: id }), empty("One moment …"));
  if (!byId("job").open) byId("job").showModal();
  return refreshJob();
}

/** Asks for the shown job anew, if `jobs` names it. */
export function heard(jobs) {
  if (byId("job").open && jobs.some(({ job_id: id }) => id === open)) refreshJob();
}

export function begin() {
  const dialog = byId("job");
  dialog.addEventListener("click", ({ target }) => {
    if (target === dialog) dialog.close();
  });
}

async function refreshJob() {
  const id = open;
  try {
    const job = await ask(`/v1/jobs/${id}`);
    const receipt = WITHOUT_RECEIPT.has(job.state) ? null : await ask(`/v1/jobs/${id}/receipt`).catch(() => null);
    if (id === open) show(byId("job"), head(job), facts(job, receipt), fee(receipt), history(job));
  } catch (error) {
    if (id === open) show(byId("job"), head({ job_id: id }), empty(error.message));
  }
}

function head(job) {
  return make(
    "div",
    { class: "head" },
    make(
      "h2",
      { id: "job-title" },
      `Job #${job.job_id} `,
      job.state && make("span", { class: `state ${job.state}` }, word(STATES, job.state)),
    ),
    make(
      "button",
      { class: "quiet", type: "button", "data-key": "close", autofocus: true, click: () => byId("job").close() },
      "Close",
    ),
  );
}

function facts(job, receipt) {
  const facts = [
    ["Recipe", recipeWords(job)],
    job.skip_code && ["Passed over", word(SKIPS, job.skip_code)],
    job.reason && ["Reason", job.reason],
    ["Client", make("code", { title: job.client }, shortHex(job.client))],
    receipt && [
      "Tokens",
      `${count(receipt.in_tokens)} in, ${count(receipt.out_tokens)} out; ended ${word(FINISHES, receipt.finish_reason)}`,
    ],
    ["Limits", `${count(job.max_in_tokens)} in, ${count(job.max_out_tokens)} out, at most ${olra(job.max_fee_wei)}`],
    receipt && ["Refunded", olra(receipt.refund_wei)],
    receipt && ["Receipt", make("code", { title: receipt.receipt_hash }, shortHex(receipt.receipt_hash))],
  ];
  return make(
    "dl",
    { class: "facts" },
    facts.filter(Boolean).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))),
  );
}

function fee(receipt) {
  if (!receipt) return null;
  const roles = Object.keys(ROLES)
    .map((role) => ({ role, parts: receipt.parts.filter((part) => part.role === role && part.amount_wei !== "0") }))
    .filter(({ parts }) => parts.length);
  const sum = (parts) => parts.reduce((wei, part) => wei + BigInt(part.amount_wei), 0n);
  const all = BigInt(receipt.fee_wei) + BigInt(receipt.use_fee_wei);
  const use = receipt.use_fee_wei === "0" ? "" : ` and the use fee of ${olra(receipt.use_fee_wei)}`;
  const how = receipt.paid ? `as block ${receipt.block_number} paid it` : "as it would be paid now";
  const told = `The fee of ${olra(receipt.fee_wei)}${use}, ${how}`;
  const strip = make(
    "div",
    { class: "strip", "aria-hidden": "true" },
    roles.map(({ role, parts }) => make("span", { class: role, "--share": `${share(sum(parts), all) * 100}%` })),
  );
  const tree = make(
    "ul",
    { class: "tree" },
    roles.map(({ role, parts }) =>
      make(
        "li",
        {},
        line(role, make("b", {}, make("i", { class: `key ${role}` }), word(ROLES, role)), sum(parts), all),
        make(
          "ul",
          {},
          parts.map((part) => make("li", {}, line(role, payee(part), BigInt(part.amount_wei), all, part))),
        ),
      ),
    ),
  );
  return make(
    "section",
    { class: "fee", "aria-labelledby": "fee-title" },
    make("h3", { id: "fee-title" }, told),
    strip,
    tree,
  );
}

function line(role, who, wei, all, part = null) {
  return make(
    "div",
    { class: "line" },
    make("span", { class: "payee" }, who),
    make(
      "span",
      { class: "number", "data-part": part && `${part.role} ${part.payee}`, "data-wei": wei, title: exactly(wei) },
      tokens(wei),
    ),
    make("span", { class: "number faint" }, percent(share(wei, all))),
    bar(share(wei, all), role),
  );
}

function payee({ payee: address, names, terms }) {
  const weights = new Map(terms.map(({ name, weight }) => [name, weight]));
  const titles = names.map((name, index) => [
    index ? ", " : "",
    weights.has(name) && weights.get(name) !== 1 ? `${weights.get(name)} ` : "",
    quoted(name, { class: "name" }),
  ]);
  return [
    titles.length ? make("span", { class: "titles" }, titles, " ") : null,
    make("code", { title: address }, shortHex(address)),
  ];
}

function history(job) {
  const steps = job.history.map(({ state, skip_code: skip, reason, block_number: block, at_s: at }) =>
    make(
      "li",
      {},
      make("span", { class: `state ${state}` }, word(STATES, state)),
      make("span", {}, [skip && word(SKIPS, skip), reason].filter(Boolean).join(": ")),
      make("span", { class: "faint" }, block === null ? "this node's own step" : `block ${count(block)}`),
      make("time", { datetime: new Date(at * 1000).toISOString(), class: "faint" }, atMoment(at)),
    ),
  );
  return make(
    "section",
    { "aria-labelledby": "history-title" },
    make("h3", { id: "history-title" }, "Its way"),
    make("ol", { class: "history" }, steps),
  );
}
