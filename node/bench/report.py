"""README.md's tables and the plot, made from the lines that `beside.py` left in results/.

python node/bench/report.py
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.plot import plot
from bench.results import COMMITTED, OURS, TITLES, Line, read_lines

PLOT = COMMITTED.with_suffix(".svg")
README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- figures: made by node/bench/report.py -->", "<!-- end of figures -->"


def publish(lines: Sequence[Line]) -> None:
    PLOT.write_text(plot(lines), encoding="utf-8")
    README.write_text(with_figures(README.read_text(encoding="utf-8"), lines), encoding="utf-8")


def with_figures(readme: str, lines: Sequence[Line]) -> str:
    """`readme` with what stands between its two markers replaced."""
    before, rest = readme.split(BEGIN)
    return before + BEGIN + "\n" + figures(lines) + END + rest.split(END)[1]


def figures(lines: Sequence[Line]) -> str:
    alt = "Output tokens a second by number of distinct adapters, ours and other engines; the figures are in the tables"
    parts = [f"![{alt}]({PLOT.relative_to(README.parent)})\n\n"]
    models = [model for model in TITLES if any(line["model"] == model for line in lines)]
    parts += [table(model, [line for line in lines if line["model"] == model]) + "\n" for model in models]
    return "".join([*parts, *(f"{text}\n" for text in (*failures(lines), machine(lines), settings(lines)))])


def table(model: str, lines: Sequence[Line]) -> str:
    """Output tokens a second: a row an engine, a column a number of distinct adapters; ours first, then by speed."""
    counts = sorted({line["adapters"] for line in lines})
    heads = ["base model" if count == 0 else f"{count} adapter{'s' * (count > 1)}" for count in counts]
    rows = [f"| {TITLES[model]} | {' | '.join(heads)} |", "|---" + "|--:" * len(counts) + "|"]
    for engine in engines(lines):
        speeds = {line["adapters"]: line.get("output_tok_s") for line in lines if line["engine"] == engine}
        cells = [f"{speeds[count]:,.0f}" if speeds.get(count) else "–" for count in counts]
        rows.append(f"| {f'**{engine}**' if engine == OURS else engine} | {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def engines(lines: Sequence[Line]) -> list[str]:
    best = {line["engine"]: 0.0 for line in lines}
    for line in lines:
        best[line["engine"]] = max(best[line["engine"]], line.get("output_tok_s", 0.0))
    return sorted(best, key=lambda engine: (engine != OURS, -best[engine], engine))


def failures(lines: Sequence[Line]) -> Iterator[str]:
    missing = [line for line in lines if "failed" in line]
    if missing:
        each = (f"{line['engine']}, {line['model']}, {line['adapters']} adapters: {line['failed']}" for line in missing)
        yield f"No figure: {'; '.join(each)}.\n"


def machine(lines: Sequence[Line]) -> str:
    """Where and when, with the range of what the machine gave beside each line: others may use its memory too."""
    one, days = lines[0], sorted({line["date"] for line in lines})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return (
        f"Output tokens a second on {one['cores']} cores of an {one['cpu']} ({one['instructions']}), "
        f"{when}. Measured beside them: memory reads at "
        f"{_range(line['read_gb_s'] for line in lines)} GB/s, products in registers at "
        f"{_range(line['peak_gflop_s'] / 1000 for line in lines)} TFLOP/s ({one['peak_of']}), torch's bfloat16 "
        f"product of large matrices at {_range(line['gemm_gflop_s'] / 1000 for line in lines)} TFLOP/s.\n"
    )


def settings(lines: Sequence[Line]) -> str:
    known = {line["engine"]: f"{line['version']} ({line['settings']})" for line in lines if "settings" in line}
    return "Versions: " + "; ".join(f"{engine} {known[engine]}" for engine in engines(lines) if engine in known) + "."


def _range(values: Iterator[float]) -> str:
    ordered = [f"{value:.0f}" if value >= 10 else f"{value:.1f}" for value in sorted(values)]
    return ordered[0] if ordered[0] == ordered[-1] else f"{ordered[0]} to {ordered[-1]}"


if __name__ == "__main__":
    publish(read_lines(COMMITTED))
