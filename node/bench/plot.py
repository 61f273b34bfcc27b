"""The plot of a comparison's lines."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.results import LARGE, OURS, SMALL, SPECULATING, TITLES, Line

WIDTH, HEIGHT, TOP, BOTTOM = 900, 440, 92, 386
PANELS = {SMALL: (60, 360), LARGE: (640, 780)}  # left and right end of the lines; names stand beyond the right one
COLOURS = {  # on a light page, on a dark one
    OURS: ("#c2410c", "#fb923c"),
    "vLLM CPU": ("#1d4ed8", "#60a5fa"),
    "llama.cpp": ("#15803d", "#4ade80"),
    "transformers + PEFT": ("#7e22ce", "#c084fc"),
    "OpenVINO GenAI": ("#0e7490", "#22d3ee"),
    SPECULATING: ("#b45309", "#fbbf24"),
}
NAME_GAP = 16


@dataclass(frozen=True, slots=True)
class LogScale:
    """Tokens a second to the plot's height."""

    low: float
    high: float

    def y(self, speed: float) -> float:
        share = (math.log10(speed) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return round(BOTTOM - share * (BOTTOM - TOP), 1)

    def ticks(self) -> list[int]:
        steps = (digit * 10**power for power in range(5) for digit in (1, 2, 5))
        return [step for step in steps if self.low <= step <= self.high]


def plot(lines: Sequence[Line]) -> str:
    """An SVG for light and dark pages: a line an engine on a logarithmic axis, named at its right end."""
    speeds = [line["output_tok_s"] for line in lines if "output_tok_s" in line]
    scale, one = LogScale(min(speeds) / 1.2, max(speeds) * 1.2), lines[0]
    title = "Output tokens per second, by number of distinct LoRA adapters among 32 requests"
    note = (
        f"64 prompt and 64 output tokens each, bfloat16, {one['cores']} cores, {one['cpu']}, {one['date']}; log scale"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">',
        f"<style>{_style()}</style>",
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}"/>',
        f'<text class="title" x="16" y="26">{title}</text>',
        f'<text class="note" x="16" y="46">{note}</text>',
    ]
    for model, (left, right) in PANELS.items():
        mine = [line for line in lines if line["model"] == model]
        parts += _panel(model, mine, left, right, scale) if mine else ()
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(model: str, lines: Sequence[Line], left: int, right: int, scale: LogScale) -> Iterator[str]:
    counts = sorted({line["adapters"] for line in lines})
    xs = {count: left + (right - left) * place // max(1, len(counts) - 1) for place, count in enumerate(counts)}
    yield f'<text class="bold" x="{left}" y="{TOP - 18}">{TITLES[model]}</text>'
    for tick in scale.ticks():
        height = scale.y(tick)
        yield f'<path class="grid" d="M{left - 12} {height}H{right + 8}"/>'
        yield f'<text class="note" x="{left - 18}" y="{height + 4}" text-anchor="end">{tick:,}</text>'
    for count, x in xs.items():
        yield f'<text class="note" x="{x}" y="{BOTTOM + 22}" text-anchor="middle">{count or "base"}</text>'
    middle = (left + right) // 2
    yield f'<text class="note" x="{middle}" y="{BOTTOM + 42}" text-anchor="middle">distinct adapters</text>'
    ends = {}
    for number, engine in enumerate(COLOURS):
        speeds = {
            line["adapters"]: line["output_tok_s"] for line in lines if line["engine"] == engine and "runs" in line
        }
        points = [(xs[count], scale.y(speeds[count])) for count in counts if count in speeds]
        if points:
            yield f'<path class="line e{number}" d="M{"L".join(f"{x} {y}" for x, y in points)}"/>'
            yield from (f'<circle class="t{number}" cx="{x}" cy="{y}" r="4"/>' for x, y in points)
            ends[number] = points[-1]
    floor = float(TOP - NAME_GAP)
    for number, (x, y) in sorted(ends.items(), key=lambda end: end[1][1]):
        floor = max(y, floor + NAME_GAP)  # names never overlap: a lower one gives way
        yield f'<text class="t{number}" x="{x + 14}" y="{floor + 4}">{list(COLOURS)[number]}</text>'


def _style() -> str:
    fixed = "text{font:13px sans-serif}.title{font-size:16px}.title,.bold,text.t0{font-weight:600}"
    strokes = ".line{fill:none;stroke-width:2}.line.e0{stroke-width:4}"
    light = _shades(0, page="#fff", ink="#1f2328", note="#59636e", grid="#d1d9e0")
    dark = _shades(1, page="#0d1117", ink="#f0f6fc", note="#9198a1", grid="#3d444d")
    return f"{fixed}{strokes}{light}@media(prefers-color-scheme:dark){{{dark}}}"


def _shades(which: int, page: str, ink: str, note: str, grid: str) -> str:
    colours = [both[which] for both in COLOURS.values()]
    rules = (f".e{number}{{stroke:{colour}}}.t{number}{{fill:{colour}}}" for number, colour in enumerate(colours))
    text = f"fill:{ink};stroke:{page};stroke-width:4px;paint-order:stroke"  # no line runs through a name
    return f".page{{fill:{page}}}text{{{text}}}.note{{fill:{note}}}.grid{{stroke:{grid}}}{''.join(rules)}"
