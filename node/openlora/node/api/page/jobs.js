// Jobs with their states, and why others were passed over.

import { bar } from "./charts.js";
import { byId, empty, make, quoted, show, table } from "./dom.js";
import { ask } from "./feed.js";
import { ago, atMoment, count, exactly, shortHex, tokens } from "./format.js";
import { openJob } from "./receipt.js";
import { SKIPS, STATES, word } from "./words.js";

const PAGE = 15;
const COLUMNS = [
  { title: "Job" },
  { title: "State" },
  { title: "Recipe", kind: "roomy" },
  { title: "Tokens in/out", kind: "number roomy" },
  { title: "Fee, OLRA", kind: "number" },
  { title: "Changed", kind: "number roomy" },
];

const recent = new Map(); // the newest jobs, by id
let filter = ""; // "state=…" or "skip_code=…"
let before = []; // where the pages begin that were turned
let asked = 0;
let page = { jobs: [], next_before: null };

export function begin(jobs) {
  recent.clear();
  hear(jobs);
}

export function hear(jobs) {
  for (const job of jobs) recent.set(job.job_id, job);
  for (const old of [...recent.keys()].sort((a, b) => b - a).slice(200)) recent.delete(old);
}

/** The filters, as many as there is anything to find by. */
export function paintFilters({ jobs_by_state: states, queue }) {
  const choices = [
    ["", "All jobs"],
    ...Object.keys(STATES)
      .filter((state) => states[state])
      .map((state) => [`state=${state}`, `${word(STATES, state)} (${count(states[state])})`]),
  ];
  const skips = Object.entries(queue.skipped_jobs).filter(([, jobs]) => jobs);
  choices.push(
    ...skips.map(([code, jobs]) => [`skip_code=${code}`, `Passed over: ${word(SKIPS, code)} (${count(jobs)})`]),
  );
  if (!choices.some(([value]) => value === filter)) choices.push([filter, "No longer any"]);
  const select = make(
    "select",
    {
      id: "jobs-filter",
      "data-key": "jobs-filter",
      change: ({ target }) => {
        filter = target.value;
        before = [];
        refresh();
      },
    },
    choices.map(([value, title]) => make("option", { value, selected: value === filter }, title)),
  );
  const place = byId("jobs-filters");
  const old = place.querySelector("select");
  const same =
    old && [...old.options].map((option) => option.textContent).join() === choices.map(([, title]) => title).join();
  if (!same && document.activeElement !== old) show(place, make("label", { for: "jobs-filter" }, "Show"), select);
  paintSkips(skips);
}

/** The jobs of this page: what was heard on the first one, else what the node answers. */
export async function refresh() {
  const number = (asked += 1);
  try {
    const after = before.length ? `&before=${before.at(-1)}` : "";
    const answer = await ask(`/v1/jobs?limit=${PAGE}${after}${filter && `&${filter}`}`);
    if (number === asked) {
      page = answer;
      paint();
    }
  } catch (error) {
    if (number === asked) show(byId("jobs-table"), empty(error.message));
  }
}

/** Shows what was heard at once; what a filter or a turned page shows is asked for. */
export function changed() {
  if (filter || before.length) return refresh();
  const newest = [...recent.values()].sort((a, b) => b.job_id - a.job_id);
  page = { jobs: newest.slice(0, PAGE), next_before: newest.length > PAGE ? newest[PAGE - 1].job_id : null };
  return paint();
}

function paint() {
  const nothing = filter
    ? "No job matches."
    : "No job has been seen yet. They come from the chain's queue, a moment after they are submitted.";
  show(byId("jobs-table"), table("Jobs, newest first", COLUMNS, page.jobs.map(row), nothing), pager());
}

function row(job) {
  const open = ({ currentTarget }) => {
    currentTarget.querySelector("button").focus(); // where the dialog returns to
    openJob(job.job_id);
  };
  return make(
    "tr",
    { "data-job": job.job_id, click: open },
    make(
      "th",
      { scope: "row" },
      make(
        "button",
        { class: "number link", type: "button", "data-key": `job ${job.job_id}`, "aria-haspopup": "dialog" },
        `#${job.job_id}`,
      ),
      make("span", { class: "narrow" }, recipeWords(job)),
    ),
    make(
      "td",
      {},
      make("span", { class: `state ${job.state}` }, word(STATES, job.state)),
      job.skip_code && make("span", { class: "why" }, word(SKIPS, job.skip_code)),
      job.reason && make("span", { class: "why" }, job.reason),
    ),
    make("td", { class: "roomy" }, recipeWords(job)),
    make(
      "td",
      { class: "number roomy" },
      job.in_tokens === null ? "–" : `${count(job.in_tokens)} / ${count(job.out_tokens)}`,
    ),
    make(
      "td",
      { class: "number", "data-wei": job.fee_wei, title: exactly(job.fee_wei ?? job.max_fee_wei) },
      job.fee_wei === null ? make("span", { class: "faint" }, `≤ ${tokens(job.max_fee_wei)}`) : tokens(job.fee_wei),
    ),
    make(
      "td",
      { class: "number roomy faint", "data-ago": job.changed_at_s, title: atMoment(job.changed_at_s) },
      ago(job.changed_at_s),
    ),
  );
}

/** A recipe as people say it: "0.7 pirate + 0.3 haiku". */
export function recipeWords({ recipe, recipe_id: id }) {
  if (recipe === null || recipe === undefined) return make("span", { class: "faint" }, `recipe ${id}`);
  if (!recipe.length) return make("span", { class: "faint" }, "base model");
  return make(
    "span",
    { class: "terms" },
    recipe.map(({ name, digest, weight }, index) => [
      index ? " + " : "",
      recipe.length > 1 || weight !== 1 ? `${weight} ` : "",
      quoted(name ?? shortHex(digest), { class: "name", title: digest }),
    ]),
  );
}

function pager() {
  const turn = (to) => () => {
    before = to;
    to.length || filter ? refresh() : changed();
  };
  return make(
    "p",
    { class: "pager" },
    make(
      "button",
      {
        class: "quiet",
        type: "button",
        "data-key": "newer",
        disabled: !before.length,
        click: turn(before.slice(0, -1)),
      },
      "Newer",
    ),
    make(
      "button",
      {
        class: "quiet",
        type: "button",
        "data-key": "older",
        disabled: page.next_before === null,
        click: turn([...before, page.next_before]),
      },
      "Older",
    ),
  );
}

function paintSkips(skips) {
  const most = Math.max(1, ...skips.map(([, jobs]) => jobs));
  const rows = skips
    .sort(([, one], [, other]) => other - one)
    .map(([code, jobs]) =>
      make(
        "li",
        { "data-skip": code },
        make("span", {}, word(SKIPS, code)),
        make("b", {}, count(jobs)),
        bar(jobs / most, "skip"),
        make("code", {}, code),
      ),
    );
  show(
    byId("skips"),
    make("h3", { id: "skips-title" }, "Why jobs were passed over"),
    rows.length ? make("ul", {}, rows) : empty("None was."),
  );
}
