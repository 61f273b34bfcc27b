// Graphs as SVG, drawn to a unit square and stretched; their words are HTML beside them. A pointer or the arrow keys read
// single points.

import { draw, make } from "./dom.js";

const WIDTH = 600;
const HEIGHT = 100;

/** A line with its area: `series` are {values, kind}; values of null leave gaps. `top` is the scale's end. */
export function area({ label, series, top, read, key }) {
  const count = series[0].values.length;
  const x = (index) => (count > 1 ? (index / (count - 1)) * WIDTH : WIDTH);
  const y = (value) => HEIGHT - Math.min(1, value / (top || 1)) * (HEIGHT - 2);
  const paths = series.flatMap(({ values, kind }) =>
    runs(values).flatMap((run) => {
      const line = run
        .map(([index, value], at) => `${at ? "L" : "M"}${x(index).toFixed(1)} ${y(value).toFixed(1)}`)
        .join("");
      const closed = `${line}L${x(run.at(-1)[0]).toFixed(1)} ${HEIGHT}L${x(run[0][0]).toFixed(1)} ${HEIGHT}Z`;
      return [draw("path", { class: `area ${kind}`, d: closed }), draw("path", { class: `line ${kind}`, d: line })];
    }),
  );
  return graph({ label, key, count, read, position: (index) => x(index) / WIDTH, marks: [grid(), ...paths] });
}

/** One column a span: `columns` are lists of {kind, value}, stacked in order. */
export function stacked({ label, columns, top, read, key }) {
  const step = WIDTH / columns.length;
  const marks = columns.flatMap((parts, index) => {
    let base = HEIGHT;
    return parts
      .filter(({ value }) => value > 0)
      .map(({ kind, value }) => {
        const height = Math.max(0.8, (value / (top || 1)) * (HEIGHT - 2));
        base -= height;
        return draw("rect", { class: kind, x: index * step + step * 0.14, y: base, width: step * 0.72, height });
      });
  });
  return graph({
    label,
    key,
    count: columns.length,
    read,
    position: (index) => (index + 0.5) / columns.length,
    marks: [grid(), ...marks],
  });
}

function graph({ label, key, count, read, position, marks }) {
  const svg = draw(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    marks,
  );
  const cursor = make("span", { class: "cursor", hidden: true });
  const words = make("output", { class: "readout", hidden: true });
  const plot = make(
    "div",
    { class: "plot", tabindex: 0, role: "img", "aria-label": label, "data-key": key },
    svg,
    cursor,
    words,
  );
  let at = count - 1;
  const point = (index) => {
    at = Math.max(0, Math.min(count - 1, index));
    const place = position(at);
    cursor.style.left = `${place * 100}%`;
    words.replaceChildren(...read(at));
    words.style.setProperty("--place", place);
    cursor.hidden = words.hidden = false;
  };
  const leave = () => {
    cursor.hidden = words.hidden = true;
  };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    point(Math.round(((event.clientX - box.left) / box.width) * count - (count > 60 ? 0 : 0.5)));
  });
  plot.addEventListener("pointerleave", leave);
  plot.addEventListener("blur", leave);
  plot.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: count - 1 };
    if (count && event.key in moves) {
      event.preventDefault();
      point(words.hidden ? at : moves[event.key]);
    }
    if (event.key === "Escape") leave();
  });
  return plot;
}

const grid = () => draw("path", { class: "grid", d: `M0 1H${WIDTH}M0 ${HEIGHT / 2}H${WIDTH}` });

/** The stretches of `values` without a gap, as lists of [index, value]. */
function runs(values) {
  const found = [[]];
  values.forEach((value, index) => {
    if (value === null || value === undefined) {
      if (found.at(-1).length) found.push([]);
    } else found.at(-1).push([index, value]);
  });
  return found.filter((run) => run.length);
}

/** A share of something as a bar. */
export function bar(share, kind = "", label = null) {
  const filled = make("span", { class: kind, "--share": `${Math.min(100, share * 100)}%` });
  return make(
    "span",
    { class: "meter", role: label ? "img" : null, "aria-label": label, "aria-hidden": label ? null : "true" },
    filled,
  );
}

/** A round number at or above `value`, for a scale's end. */
export function roundTop(value) {
  if (value <= 0) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((step) => step * unit).find((top) => top >= value);
}
