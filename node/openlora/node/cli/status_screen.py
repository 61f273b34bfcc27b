"""The screen of `openlora status`: a node's state as one glance takes it in. Pure: state in, picture out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from openlora.node.cli.output import printable, tokens

State = Mapping[str, Any]  # /v1/state, as `openlora.node.telemetry.snapshot` describes it
Row = tuple[str, RenderableType]

BAR_CELLS: Final = 12
GIB: Final = 1 << 30
SHOWN_JOBS: Final = 6
SHOWN_CODES: Final = 4
WIDE: Final = 96  # columns from which two panels stand side by side


@dataclass(frozen=True, slots=True)
class Moment:
    """One look at a node. `tokens_per_s` is what the engine made since the look before; None at the first."""

    state: State
    jobs: Sequence[State]  # /v1/jobs, newest first
    now_s: float
    tokens_per_s: float | None = None


def screen(moment: Moment, width: int) -> RenderableType:
    parts: list[RenderableType] = [_header(moment.state, moment.now_s)]
    if alerts := list(_alerts(moment.state, moment.now_s)):
        style = "red" if _critical(moment.state) else "yellow"
        parts.append(_framed("alerts", Group(*alerts), style))
    rows = [
        (("engine", _engine(moment)), ("work", _work(moment.state, moment.now_s))),
        (("money", _money(moment.state)), ("machine and network", _machine(moment.state))),
    ]
    for left, right in rows:
        if width >= WIDE:
            height = max(len(left[1]), len(right[1]))
            side_by_side = Table.grid(expand=True)
            side_by_side.add_column(ratio=1)
            side_by_side.add_column(ratio=1)
            side_by_side.add_row(_panel(*left, height), _panel(*right, height))
            parts.append(side_by_side)
        else:
            parts += [_panel(*left), _panel(*right)]
    if moment.jobs:
        parts.append(_jobs(moment.jobs[:SHOWN_JOBS], moment.now_s))
    return Group(*parts)


def _panel(title: str, rows: Sequence[Row], height: int = 0) -> Panel:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, min_width=max(len(label) for label, _ in rows))
    grid.add_column(no_wrap=True, overflow="ellipsis")
    for label, value in rows:
        grid.add_row(Text(label, style="dim"), value)
    for _ in range(height - len(rows)):
        grid.add_row("", "")
    return _framed(title, grid)


def _framed(title: str, content: RenderableType, style: str = "bright_black") -> Panel:
    shown = Text(title, style="bold" if style == "bright_black" else f"bold {style}")
    return Panel(content, title=shown, title_align="left", border_style=style, box=box.ROUNDED, padding=(0, 1))


def _header(state: State, now_s: float) -> RenderableType:
    node, chain, model = state["node"], state["chain"], state["model"]
    word, style = _health(state)
    name = f"{printable(model['name'])}, {model['dtype']}"
    up = _duration(now_s - node["started_at_s"])
    return Group(
        Text.assemble((f" ● {word}", f"bold {style}"), (f"   {node['operator']}", "bold")),
        Text(f"   chain {chain['chain_id']}, block {chain['block_number'] or 0:,}   {name}   up {up}", style="dim"),
    )


def _health(state: State) -> tuple[str, str]:
    if _critical(state):
        return "in trouble", "red"
    if state["queue"]["draining"]:
        left = len(state["queue"]["live"])
        return (f"draining, {left} to finish" if left else "drained"), "yellow"
    return ("needs a look", "yellow") if state["alerts"] else ("healthy", "green")


def _critical(state: State) -> bool:
    return any(alert["severity"] == "critical" for alert in state["alerts"])


def _alerts(state: State, now_s: float) -> Iterator[RenderableType]:
    for alert in state["alerts"]:
        text = Text(f"▲ {printable(alert['message'])}", style="red" if alert["severity"] == "critical" else "yellow")
        if alert["due_at_s"] is not None:
            text.append(f", in {max(0, alert['due_at_s'] - now_s):.0f} s", style="bold")
        yield text


def _engine(moment: Moment) -> list[Row]:
    engine, adapters = moment.state["engine"], moment.state["adapters"]
    loaded, kept = (adapters[tier]["total_adapters"] for tier in ("slots", "disk"))
    if not engine["alive"]:
        return [("engine", Text("is being restarted", style="red"))]
    used = engine["kv_capacity_tokens"] - engine["kv_free_tokens"]
    speed = "" if moment.tokens_per_s is None else f", {moment.tokens_per_s:,.0f} tokens/s"
    return [
        ("requests", Text(f"{engine['running_requests']} running, {engine['waiting_requests']} waiting{speed}")),
        ("KV cache", _bar(used, engine["kv_capacity_tokens"], f"{used:,} of {engine['kv_capacity_tokens']:,} tokens")),
        ("generated", Text(f"{engine['generated_tokens']:,} tokens, {engine['cache_hit_tokens']:,} from the cache")),
        ("adapters", Text(f"{loaded} loaded, {kept} on disk")),
        ("computes", Text(printable(engine["backend"]))),
    ]


def _work(state: State, now_s: float) -> list[Row]:
    queue = state["queue"]
    capacity = queue["capacity_jobs"]
    rows: list[Row] = [
        ("under way", _bar(queue["active_jobs"], max(1, capacity), f"{queue['active_jobs']} of {capacity} jobs")),
        ("undecided", Text(f"{queue['waiting_jobs']} jobs")),
    ]
    for job in queue["live"][:3]:
        ends_at_s = job["lease_ends_at_s"]
        left = "" if ends_at_s is None else f", lease ends in {max(0, ends_at_s - now_s):.0f} s"
        rows.append((f"job {job['job_id']}", Text(f"{job['state']}{left}", style="magenta")))
    skipped = sorted(queue["skipped_jobs"].items(), key=lambda item: -item[1])
    for number, (code, count) in enumerate(skipped[:SHOWN_CODES]):
        rows.append(("passed over" if number == 0 else "", Text(f"{count:,} {code}", style="yellow")))
    done = state["jobs_by_state"]
    ended = ", ".join(f"{done[name]} {name}" for name in ("finalized", "committed", "lost", "failed") if done.get(name))
    rows.append(("so far", Text(ended or "no job yet")))
    return rows


def _money(state: State) -> list[Row]:
    earned, stake = state["earnings"], state["stake"]
    roles = ", ".join(f"{tokens(int(wei))} as {role}" for role, wei in earned["paid_by_role_wei"].items())
    rows: list[Row] = [("earned", Text(f"{tokens(int(earned['paid_wei']))} OLRA", style="bold green"))]
    if len(earned["paid_by_role_wei"]) > 1:
        rows.append(("", Text(roles)))
    if stake is None:
        return [*rows, ("stake", Text("not known yet", style="dim"))]
    bonded, staked = int(stake["bonded_wei"]), int(stake["stake_wei"])
    rows += [
        ("to withdraw", Text(f"{tokens(int(stake['withdrawable_wei']))} OLRA")),
        ("stake", _bar(bonded, max(1, staked), f"{tokens(staked)} OLRA, {tokens(bonded)} in bonds")),
        ("gas", Text(f"for {stake['payable_jobs']:,} more jobs")),
    ]
    return rows


def _machine(state: State) -> list[Row]:
    machine, network = state["machine"], state["network"]
    rows: list[Row] = []
    for gpu in machine["gpus"]:
        used, total = gpu["memory_used_bytes"], gpu["memory_bytes"]
        rows.append(
            (f"GPU {gpu['index']}", _bar(used, total, f"{used / GIB:.0f} of {total / GIB:.0f} GiB, {gpu['name']}"))
        )
    ram, free = machine["ram_bytes"], machine["ram_available_bytes"]
    load = machine["load_1m_processes"]
    rows += [
        ("processor", _bar(load, machine["cpu_cores"], f"load {load:g} on {machine['cpu_cores']} cores")),
        ("memory", _bar(ram - free, max(1, ram), f"{(ram - free) / GIB:.1f} of {ram / GIB:.1f} GiB")),
        ("disk", Text(f"{machine['disk_free_bytes'] / GIB:.1f} GiB free")),
    ]
    if not network["alive"]:
        return [*rows, ("network", Text("is being restarted", style="red"))]
    nodes, fetched, served = network["seen_nodes"], network["fetched_bytes"] / 1e6, network["served_bytes"] / 1e6
    moved = f"{fetched:.1f} MB in, {served:.1f} MB out"
    return [*rows, ("network", Text(f"{nodes} node{'' if nodes == 1 else 's'}, {moved}"))]


def _bar(value: float, whole: float, said: str) -> Text:
    share = min(1.0, max(0.0, value / whole)) if whole else 0.0
    filled = round(share * BAR_CELLS)
    style = "red" if share > 0.95 else "yellow" if share > 0.8 else "cyan"
    return Text.assemble(("━" * filled, style), ("━" * (BAR_CELLS - filled), "bright_black"), f"  {said}")


STYLES: Final = {"finalized": "green", "committed": "cyan", "claimed": "magenta", "failed": "red", "lost": "yellow"}


def _jobs(jobs: Sequence[State], now_s: float) -> Panel:
    table = Table(box=None, pad_edge=False, header_style="dim", expand=True)
    for name, justify in (("job", "right"), ("state", "left"), ("recipe", "right"), ("why", "left"), ("ago", "right")):
        table.add_column(name, justify="right" if justify == "right" else "left", no_wrap=name != "why")
    table.columns[3].ratio = 1
    for job in jobs:
        why = printable(job["skip_code"] or job["reason"] or "")
        style = STYLES.get(job["state"], "")
        ago = _duration(now_s - job["changed_at_s"])
        table.add_row(str(job["job_id"]), Text(job["state"], style=style), str(job["recipe_id"]), why, ago)
    return _framed("latest jobs", table)


def _duration(seconds: float) -> str:
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min" if whole < 86_400 else f"{whole // 86_400} d"
