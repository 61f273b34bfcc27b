// The other nodes, as their presence records show them.

import { bar } from "./charts.js";
import { byId, make, quoted, show, table } from "./dom.js";
import { ago, bytes, count, shortHex, tokens } from "./format.js";

const COLUMNS = [
  { title: "Node" },
  { title: "Machine" },
  { title: "Model", kind: "roomy" },
  { title: "Adapters in slots/on disk", kind: "number roomy" },
  { title: "Asks OLRA per 1,000 in/out", kind: "number roomy" },
  { title: "Jobs", kind: "number" },
  { title: "Heard", kind: "number roomy" },
];
const nodes = new Map();

export function begin(all) {
  nodes.clear();
  hear({ nodes: all, gone: [] });
}

export function hear({ nodes: changed, gone }) {
  for (const operator of gone) nodes.delete(operator);
  for (const node of changed) nodes.set(node.operator, node);
}

export function paint(own) {
  const all = [...nodes.values()].sort(
    (a, b) => (b.operator === own) - (a.operator === own) || (a.operator < b.operator ? -1 : 1),
  );
  const sum = (of) => all.reduce((total, node) => total + of(node), 0);
  byId("network-aside").textContent =
    `${count(all.length)} ${all.length === 1 ? "node" : "nodes"} · ${count(sum(({ hardware }) => hardware.gpus.length))} GPUs · ${count(sum(({ load }) => load.running))} of ${count(sum(({ load }) => load.capacity))} jobs running`;
  show(
    byId("nodes"),
    table(
      "Nodes whose presence is alive",
      COLUMNS,
      all.map((node) => row(node, node.operator === own)),
      "No node has been heard of yet.",
    ),
  );
}

function row(node, own) {
  const { load, ask, adapters } = node;
  return make(
    "tr",
    { "data-node": node.operator },
    make(
      "th",
      { scope: "row" },
      make("code", { title: node.operator }, shortHex(node.operator)),
      own && make("span", { class: "tag" }, "this node"),
      make("span", { class: "sub" }, `peer …${node.peer_id.slice(-6)}`),
    ),
    make("td", {}, machine(node.hardware), make("span", { class: "narrow sub" }, models(node))),
    make("td", { class: "roomy" }, models(node)),
    make("td", { class: "number roomy" }, `${count(adapters.slots.total)} / ${count(adapters.disk.total)}`),
    make("td", { class: "number roomy" }, `${tokens(ask.in_wei_per_k)} / ${tokens(ask.out_wei_per_k)}`),
    make(
      "td",
      { class: "number" },
      `${load.running}/${load.capacity}`,
      load.queued ? make("span", { class: "faint" }, ` +${count(load.queued)}`) : null,
      bar(load.running / Math.max(1, load.capacity), "running"),
    ),
    make("td", { class: "number roomy faint", "data-ago": node.issued_at }, ago(node.issued_at)),
  );
}

function machine({ cpu, cores, ram_bytes: ram, gpus }) {
  const kinds = new Map();
  for (const gpu of gpus) kinds.set(gpu.name, (kinds.get(gpu.name) ?? 0) + 1);
  const cards = [...kinds].map(([name, number], index) => [
    index ? ", " : "",
    number > 1 ? `${number} × ` : "",
    quoted(name),
  ]);
  const processor = [`${cores} × `, quoted(cpu || "CPU"), `, ${bytes(ram)}`];
  return gpus.length
    ? [make("span", {}, cards), make("span", { class: "sub" }, processor)]
    : make("span", {}, processor);
}

const models = ({ models: held }) =>
  held.map(({ name, dtype, engine }, index) => [
    index ? ", " : "",
    quoted(name, { class: "name" }),
    make("span", { class: "sub" }, [dtype, engine].filter(Boolean).join(" · ")),
  ]);
