// The page: hears the node, keeps its state, and paints what changed.

import * as adapters from "./adapters.js";
import { byId, make } from "./dom.js";
import * as earnings from "./earnings.js";
import { Feed, ask } from "./feed.js";
import { ago, shortHex, span } from "./format.js";
import * as jobs from "./jobs.js";
import * as machine from "./machine.js";
import * as network from "./network.js";
import { dueIn, showAlerts, showTiles } from "./overview.js";
import * as receipt from "./receipt.js";

let state = null;
let names = {};
let heard_s = 0;
const due = new Set(); // what is to be painted at the next frame

const painters = {
  overview: () => {
    showAlerts(byId("alerts"), state.alerts);
    showTiles(byId("tiles"), state, machine.tokenRate());
    who();
  },
  earnings: () => earnings.update(state.earnings),
  machine: () => machine.paint(state),
  filters: () => jobs.paintFilters(state),
  jobs: () => jobs.changed(),
  adapters: () => adapters.paint(state, names),
  network: () => network.paint(state.node.operator.toLowerCase()),
};

/** Which parts of the snapshot each painter shows. */
const shownBy = {
  machine: ["machine", "engine"],
  filters: ["jobs_by_state", "queue"],
  adapters: ["adapters"],
  earnings: ["earnings"],
};

function paint(...parts) {
  if (!due.size)
    requestAnimationFrame(() => {
      const now = [...due];
      due.clear();
      for (const part of now) painters[part]();
    });
  for (const part of parts) due.add(part);
}

const events = {
  everything(event) {
    ({ state, names } = event);
    jobs.begin(event.jobs);
    network.begin(event.nodes);
    paint(...Object.keys(painters));
    earnings.refresh();
    ask("/v1/history").then(
      (history) => {
        machine.begin(history);
        paint("machine", "overview");
      },
      () => {},
    );
  },
  state({ changed, names: more }) {
    const paid = changed.earnings !== undefined;
    Object.assign(state, changed);
    Object.assign(names, more);
    paint("overview", ...Object.keys(shownBy).filter((part) => shownBy[part].some((key) => key in changed)));
    if (paid) {
      clearTimeout(events.asking);
      events.asking = setTimeout(earnings.refresh, 1500);
    } // its block's time is known by then
  },
  jobs({ jobs: changed }) {
    jobs.hear(changed);
    receipt.heard(changed);
    paint("jobs");
  },
  network(event) {
    Object.assign(names, event.names);
    network.hear(event);
    paint("network");
  },
  sample({ sample }) {
    machine.add(sample);
    paint("machine", "overview");
  },
};

const feed = new Feed({
  event(event) {
    heard_s = event.at_s;
    events[event.type]?.(event);
  },
  live() {
    link("live", "Live");
    byId("banner").hidden = true;
    lock(false);
  },
  lost(reason, wait_s) {
    link("lost", "Offline");
    const shown = state ? ` What you see is from ${ago(heard_s)}.` : "";
    byId("banner").textContent = `No connection: ${reason}.${shown} Trying again in ${span(wait_s)}.`;
    byId("banner").hidden = false;
  },
  locked() {
    link("locked", "Locked");
    byId("banner").hidden = true;
    lock(true);
  },
});

function link(name, text) {
  byId("link").dataset.state = name;
  byId("link-text").textContent = text;
  document.body.dataset.link = name;
}

function who() {
  const { node, chain } = state;
  byId("who").replaceChildren(
    make("code", { title: node.operator }, shortHex(node.operator)),
    make("span", {}, ` chain ${chain.chain_id}, block ${chain.block_number ?? "–"}`),
  );
  byId("foot").textContent = `openlora ${node.version}, up ${span(Date.now() / 1000 - node.started_at_s)}`;
  document.title = `${shortHex(node.operator)} · OpenLoRA`;
}

function lock(locked) {
  const was = byId("login").hidden;
  byId("login").hidden = !locked;
  byId("board").hidden = locked;
  if (locked) localStorage.removeItem("session");
  byId("logout").hidden = !localStorage.getItem("session");
  if (locked && was) byId("key").focus();
}

async function login(event) {
  event.preventDefault();
  const problem = byId("login-problem");
  try {
    const answer = await fetch("/v1/session", {
      method: "POST",
      headers: { Authorization: `Bearer ${byId("key").value}` },
    });
    problem.textContent = answer.ok ? "" : "That key is not one of this node's.";
    if (!answer.ok) return;
  } catch {
    problem.textContent = "The node does not answer, or the key has characters that no key has.";
    return;
  }
  byId("key").value = "";
  localStorage.setItem("session", "begun");
  lock(false);
  feed.connect();
}

async function logout() {
  feed.close();
  await fetch("/v1/session", { method: "DELETE" }).catch(() => {});
  link("locked", "Locked");
  lock(true);
}

// ---- the theme: the system's, unless one is chosen ----

const THEMES = { auto: "Theme: system", light: "Theme: light", dark: "Theme: dark" };

function theme(next) {
  const chosen = document.documentElement.dataset.theme ?? "auto";
  const order = Object.keys(THEMES);
  const now = next ? order[(order.indexOf(chosen) + 1) % order.length] : chosen;
  if (now === "auto") {
    delete document.documentElement.dataset.theme;
    localStorage.removeItem("theme");
  } else {
    document.documentElement.dataset.theme = now;
    localStorage.setItem("theme", now);
  }
  byId("theme").textContent = THEMES[now];
}

/** What is told in relation to now. */
function tick() {
  for (const element of document.querySelectorAll("[data-ago]")) element.textContent = ago(Number(element.dataset.ago));
  for (const element of document.querySelectorAll("[data-due]"))
    element.textContent = dueIn(Number(element.dataset.due));
}

byId("theme").addEventListener("click", () => theme(true));
byId("login").addEventListener("submit", login);
byId("logout").addEventListener("click", logout);
theme(false);
earnings.begin();
receipt.begin();
setInterval(tick, 1000);
feed.connect();
