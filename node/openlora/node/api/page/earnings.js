// What the chain paid, over time and by role.

import { bar, roundTop, stacked } from "./charts.js";
import { byId, empty, make, show, table } from "./dom.js";
import { ask } from "./feed.js";
import { atClock, atDay, atMoment, exactly, olra, percent, share, tokens } from "./format.js";
import { ROLES, word } from "./words.js";

const RANGES = [
  { name: "1 h", told: "the last hour", bucket_s: 60, buckets: 60 },
  { name: "24 h", told: "the last 24 hours", bucket_s: 1800, buckets: 48 },
  { name: "7 days", told: "the last 7 days", bucket_s: 14_400, buckets: 42 },
  { name: "30 days", told: "the last 30 days", bucket_s: 86_400, buckets: 30 },
];

let range = RANGES[1];
let told;

export function begin() {
  const buttons = RANGES.map((choice) =>
    make(
      "button",
      {
        type: "button",
        "data-key": choice.name,
        click: () => {
          range = choice;
          refresh();
        },
      },
      choice.name,
    ),
  );
  show(byId("earnings-range"), buttons);
}

/** Asks anew; `paid` is that of the snapshot, so that the totals are never behind it. */
export async function refresh() {
  for (const button of byId("earnings-range").children)
    button.setAttribute("aria-pressed", button.dataset.key === range.name);
  const asked = range;
  try {
    const document = await ask(`/v1/earnings?bucket_s=${asked.bucket_s}&buckets=${asked.buckets}`);
    if (asked === range) {
      told = document;
      paint();
    }
  } catch (error) {
    show(byId("earnings-body"), empty(error.message));
  }
}

/** Takes the totals of a newer snapshot. */
export function update(earnings) {
  if (told) {
    told = { ...told, ...earnings };
    paint();
  }
}

function paint() {
  const roles = Object.keys(ROLES).filter((role) => role in told.paid_by_role_wei);
  if (!roles.length)
    return show(
      byId("earnings-body"),
      empty("Nothing has been paid yet. A job is paid when its challenge window has passed."),
    );
  show(byId("earnings-body"), make("div", { class: "earnings" }, make("div", {}, figure(roles)), totals(roles)));
}

function figure(roles) {
  const starts = Array.from({ length: range.buckets }, (_, index) => told.since_s + index * range.bucket_s);
  const paid = new Map(told.buckets.map((bucket) => [bucket.start_s, bucket.paid_by_role_wei]));
  const columns = starts.map((start) =>
    roles.map((role) => ({ kind: role, value: Number(paid.get(start)?.[role] ?? 0) })),
  );
  const sums = columns.map((parts) => parts.reduce((sum, { value }) => sum + value, 0));
  const top = roundTop(Math.max(...sums));
  const inSpan = told.buckets
    .flatMap(({ paid_by_role_wei: parts }) => Object.values(parts))
    .reduce((sum, wei) => sum + BigInt(wei), 0n);
  const read = (index) => {
    const parts = paid.get(starts[index]) ?? {};
    const lines = roles
      .filter((role) => role in parts)
      .map((role) =>
        make("span", {}, make("i", { class: `key ${role}` }), `${word(ROLES, role)} ${olra(parts[role])}`),
      );
    return [make("b", {}, atMoment(starts[index])), ...(lines.length ? lines : [make("span", {}, "nothing")])];
  };
  const label = `Earnings in ${range.told}, by role: ${olra(inSpan)} in all. Arrow keys read single spans.`;
  return make(
    "figure",
    { class: "tall" },
    make(
      "figcaption",
      {},
      make("span", {}, make("b", { "data-wei": inSpan }, olra(inSpan)), ` in ${range.told}`),
      make("span", { class: "scale" }, `scale ${olra(BigInt(Math.round(top)))}`),
    ),
    stacked({ label, columns, top, read, key: "earnings-plot" }),
    ticks(starts),
  );
}

function ticks(starts) {
  const every = starts.length / 6;
  const name = range.bucket_s * range.buckets > 90_000 ? atDay : atClock;
  return make(
    "p",
    { class: "ticks", "aria-hidden": "true" },
    Array.from({ length: 6 }, (_, index) => make("span", {}, name(starts[Math.floor(index * every)]))),
    make("span", {}, "now"),
  );
}

function totals(roles) {
  const rows = roles.map((role) => {
    const wei = told.paid_by_role_wei[role];
    const part = share(wei, told.paid_wei);
    return make(
      "tr",
      {},
      make("th", { scope: "row" }, make("i", { class: `key ${role}` }), word(ROLES, role)),
      make("td", { class: "number", "data-role": role, "data-wei": wei, title: exactly(wei) }, tokens(wei)),
      make("td", { class: "wide" }, bar(part, role)),
      make("td", { class: "number faint" }, percent(part)),
    );
  });
  const columns = [
    { title: "Role" },
    { title: "OLRA", kind: "number" },
    { title: make("span", { class: "unseen" }, "Share as a bar") },
    { title: "Share", kind: "number" },
  ];
  return make("div", { class: "roles" }, table("Earned since the beginning, by role", columns, rows, ""));
}
