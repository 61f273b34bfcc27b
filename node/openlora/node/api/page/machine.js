// Half an hour of GPU, CPU, memory, cache and engine.

import { area, roundTop } from "./charts.js";
import { byId, empty, make, show } from "./dom.js";
import { atClock, bytes, compact, percent, span } from "./format.js";

const KEPT = 360;
let columns = { at_s: [] };
let every_s = 5;

export function begin(history) {
  ({ columns, every_s } = history);
}

/** One more point. */
export function add(sample) {
  if (columns.at_s.at(-1) >= sample.at_s) return;
  for (const [name, value] of Object.entries(sample)) (columns[name] ??= []).push(value);
  for (const values of Object.values(columns)) if (values.length > KEPT) values.shift();
}

/** A counter as what it rose by a second; a counter that began anew rose by nothing. */
function rate(name) {
  const values = columns[name] ?? [];
  return values.map((value, index) =>
    index
      ? Math.max(0, value - values[index - 1]) / Math.max(0.5, columns.at_s[index] - columns.at_s[index - 1])
      : null,
  );
}

/** Tokens a second over the last quarter of a minute; null before there are two points. */
export function tokenRate() {
  const last = rate("generated_tokens")
    .slice(-3)
    .filter((value) => value !== null);
  return last.length ? last.reduce((sum, value) => sum + value, 0) / last.length : null;
}

export function paint({ machine, engine }) {
  const gpus = machine.gpus;
  const names = [...new Set(gpus.map(({ name }) => name))];
  byId("machine-aside").textContent = [
    gpus.length ? `${gpus.length} × ${names.join(", ")}` : null,
    `${machine.cpu_cores} cores, ${machine.cpu}`,
    `${bytes(machine.disk_free_bytes)} of disk free`,
  ]
    .filter(Boolean)
    .join(" · ");
  if (columns.at_s.length < 2) return show(byId("graphs"), empty("The first figures come within seconds."));
  const gpuMemory = gpus.reduce((sum, gpu) => sum + gpu.memory_bytes, 0);
  const graphs = [
    gpus.length &&
      columns.gpu_busy_percent.some((value) => value !== null) &&
      one("GPU busy", "gpu_busy_percent", 100, (value) => percent(value / 100), "violet"),
    gpus.length && one("GPU memory", "gpu_memory_used_bytes", gpuMemory, bytes, "violet", `of ${bytes(gpuMemory)}`),
    one(
      "CPU load",
      "cpu_load_processes",
      Math.max(machine.cpu_cores, roundTop(Math.max(...columns.cpu_load_processes))),
      (value) => value.toFixed(1),
      "blue",
      `of ${machine.cpu_cores} cores`,
    ),
    one("Memory", "ram_used_bytes", machine.ram_bytes, bytes, "blue", `of ${bytes(machine.ram_bytes)}`),
    cache(engine),
    graph("Tokens generated", rate("generated_tokens"), null, (value) => `${compact(value)}/s`, "amber"),
    one("Requests running", "running_requests", null, compact, "amber", `${engine.waiting_requests} waiting`),
    graph("Cached prompt tokens", rate("cache_hit_tokens"), null, (value) => `${compact(value)}/s`, "teal"),
  ].filter(Boolean);
  byId("graphs").style.setProperty("--columns", graphs.length % 4 ? 3 : 4);
  show(byId("graphs"), graphs);
}

const one = (title, name, top, unit, kind, aside) => graph(title, columns[name], top, unit, kind, aside);

function cache(engine) {
  const { kv_used_tokens: used, kv_cached_tokens: cached } = columns;
  const series = [
    { values: used, kind: "teal" },
    { values: cached, kind: "grey" },
  ];
  const read = (index) => [`${compact(used[index])} in use, ${compact(cached[index])} kept for later`];
  return framed("KV cache", `${compact(used.at(-1))} tokens`, `of ${compact(engine.kv_capacity_tokens)}`, {
    series,
    top: engine.kv_capacity_tokens,
    read,
  });
}

function graph(title, values, top, unit, kind, aside = "") {
  const known = values.filter((value) => value !== null);
  const scale = top ?? roundTop(Math.max(0, ...known));
  const last = known.at(-1);
  return framed(title, last === undefined ? "–" : unit(last), aside || `scale ${unit(scale)}`, {
    series: [{ values, kind }],
    top: scale,
    read: (index) => [values[index] === null ? "–" : unit(values[index])],
  });
}

function framed(title, now, aside, { series, top, read }) {
  const label = `${title}, the last ${span(columns.at_s.length * every_s)}: now ${now}. Arrow keys read single moments.`;
  const withTime = (index) => [make("b", {}, atClock(columns.at_s[index])), make("span", {}, ...read(index))];
  return make(
    "figure",
    {},
    make(
      "figcaption",
      {},
      make("span", {}, title),
      make("span", {}, make("b", {}, now), make("small", {}, ` ${aside}`)),
    ),
    area({ label, series, top, read: withTime, key: `graph ${title}` }),
  );
}
