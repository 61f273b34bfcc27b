// The tiles on top, and what wants looking at.

import { bar } from "./charts.js";
import { make, show } from "./dom.js";
import { compact, count, exactly, olra, share, span, tokens } from "./format.js";

const MANY = 1_000_000; // jobs; the node counts no further

export function showAlerts(place, alerts) {
  place.hidden = alerts.length === 0;
  show(place, alerts.map(alert));
}

function alert({ severity, message, due_at_s: due }) {
  const left = due === null || due === undefined ? null : make("span", { class: "due", "data-due": due }, dueIn(due));
  return make(
    "p",
    { class: `alert ${severity}` },
    make("strong", {}, severity === "critical" ? "Now" : "Soon"),
    make("span", {}, message),
    left,
  );
}

export const dueIn = (at_s) => (at_s * 1000 > Date.now() ? `in ${span(at_s - Date.now() / 1000)}` : "now");

export function showTiles(place, state, rate) {
  show(place, [earned(state), toWithdraw(state), stake(state), gas(state), jobs(state), engine(state, rate)]);
}

function tile(title, figure, unit, ...notes) {
  return make(
    "div",
    { class: "tile" },
    make("h2", {}, title),
    make("p", { class: "figure" }, figure, unit && make("small", {}, ` ${unit}`)),
    notes,
  );
}

const note = (...words) => make("p", { class: "note" }, words);
const amount = (id, wei) => make("span", { id, "data-wei": wei, title: exactly(wei) }, tokens(wei));

function earned({ earnings }) {
  return tile(
    "Earned",
    amount("paid", earnings.paid_wei),
    "OLRA",
    note(`${count(earnings.payments_total)} payments on chain`),
  );
}

function toWithdraw({ stake }) {
  if (!stake) return tile("To withdraw", "–", "", note("The chain has not answered yet."));
  return tile("To withdraw", amount("withdrawable", stake.withdrawable_wei), "OLRA", note("credited by the contract"));
}

function stake({ stake: held }) {
  if (!held) return tile("Stake", "–", "", note("The chain has not answered yet."));
  const bound = share(held.bonded_wei, held.stake_wei);
  return tile(
    "Stake",
    amount("stake", held.stake_wei),
    "OLRA",
    bar(bound, "bonded"),
    note(`${olra(held.bonded_wei)} bound by claims`),
  );
}

function gas({ stake: held }) {
  if (!held) return tile("Gas", "–", "", note("The chain has not answered yet."));
  return tile(
    "Gas",
    make("span", { id: "payable" }, held.payable_jobs < MANY ? compact(held.payable_jobs) : `${compact(MANY)}+`),
    "jobs",
    note(`${tokens(held.gas_wei)} of the chain's coin`),
  );
}

function jobs({ jobs_by_state: states, queue }) {
  const paid = make("span", { id: "finalized" }, count(states.finalized ?? 0));
  return tile(
    "Jobs paid",
    paid,
    "",
    bar(queue.active_jobs / Math.max(1, queue.capacity_jobs), "running"),
    note(
      `${queue.active_jobs} of ${queue.capacity_jobs} under way`,
      queue.waiting_jobs ? `, ${count(queue.waiting_jobs)} undecided` : "",
    ),
  );
}

function engine({ engine: runs, model }, rate) {
  if (!runs.alive) return tile("Engine", "down", "", note("It is being started again."));
  const used = runs.kv_capacity_tokens ? 1 - runs.kv_free_tokens / runs.kv_capacity_tokens : 0;
  return tile(
    "Engine",
    rate === null ? "–" : compact(rate),
    "tokens/s",
    bar(used, "cache"),
    note(`${runs.running_requests} running, ${runs.waiting_requests} waiting`),
    note(`${model.name} · ${model.dtype}`),
  );
}
