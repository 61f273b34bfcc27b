// Elements made of text and attributes. Every text becomes a text node: a stranger's name is never markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element: `make("p", {class: "aside"}, "text", child)`. Children that are null or false are left out. */
export function make(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** The same in SVG. */
export function draw(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("--")) element.style.setProperty(name, value);
    else if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Replaces what an element holds, and keeps the focus where it was: on the element of the same `data-key`. */
export function show(place, ...children) {
  const focused = place.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  place.replaceChildren(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false),
  );
  if (focused !== undefined) {
    [...place.querySelectorAll("[data-key]")]
      .find((element) => element.dataset.key === focused)
      ?.focus({ preventScroll: true });
  }
}

/** A stranger's words: kept apart from the text around them, whatever direction they are written in. */
export const quoted = (text, attributes = {}) => make("bdi", attributes, text);

/** A table that may be wider than its place; a keyboard can scroll it. */
export function table(caption, columns, rows, empty) {
  if (!rows.length) return make("p", { class: "empty" }, empty);
  const head = columns.map(({ title, kind }) => make("th", { scope: "col", class: kind }, title));
  return make(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": caption, "data-key": caption },
    make(
      "table",
      {},
      make("caption", { class: "unseen" }, caption),
      make("thead", {}, make("tr", {}, head)),
      make("tbody", {}, rows),
    ),
  );
}

/** A sentence where there is nothing to show. */
export const empty = (text) => make("p", { class: "empty" }, text);
