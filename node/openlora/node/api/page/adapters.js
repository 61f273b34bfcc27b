// Adapters by how near they are to the arithmetic.

import { byId, empty, make, quoted, show } from "./dom.js";
import { bytes, count, shortHex } from "./format.js";

export function paint({ adapters }, names) {
  byId("adapters-aside").textContent = `${bytes(adapters.disk_bytes)} on disk`;
  show(
    byId("tiers"),
    tier(
      "In slots",
      "loaded in the engine, ready for the next batch",
      adapters.slots,
      names,
      "None is loaded; the first job that wants one loads it.",
    ),
    tier("On disk", "verified, a moment away", adapters.disk, names, "None has been fetched yet."),
  );
}

function tier(title, told, { total_adapters: total, digests }, names, nothing) {
  const items = digests.map((digest) =>
    make(
      "li",
      { title: digest },
      names[digest] === undefined
        ? make("code", {}, shortHex(digest))
        : [quoted(names[digest], { class: "name" }), make("code", {}, shortHex(digest))],
    ),
  );
  const more =
    total > digests.length
      ? make("p", { class: "note" }, `and ${count(total - digests.length)} used longer ago`)
      : null;
  return make(
    "div",
    { class: "tier" },
    make("h3", {}, title, " ", make("span", { class: "count" }, count(total))),
    make("p", { class: "note" }, told),
    items.length ? make("ol", {}, items) : empty(nothing),
    more,
  );
}
