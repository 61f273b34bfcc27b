"""What the demonstration looks like: answers as they come, then the books."""

from rich.live import Live
from rich.table import Table
from rich.text import Text

from openlora.node.audit import BURNT
from openlora.node.cli.output import Output, printable, tokens
from openlora.node.demo_books import DemoResult, Ledger
from openlora.node.demo_jobs import ENDED, DemoJob, DemoView

STYLES = {"paid": "green", "committed": "cyan", "running": "magenta", "cancelled": "yellow", "held": "yellow"}


def show_books(output: Output, result: DemoResult, ledger: Ledger) -> None:
    books = ledger.books

    def named(account: str) -> str:
        return "burnt" if account == BURNT else ledger.name_of(account)

    rows = [(role, ledger.name_of(payee), tokens(wei)) for (role, payee), wei in books.earned.items()]
    rows.sort(key=lambda row: row[:2])
    shown = [(role.name.lower(), who, amount) for role, who, amount in rows]
    output.say("")
    output.table(("for", "who", "OLRA"), shown, title="Who earned what")
    output.say("")
    lost = sorted(
        (penalty.reason, named(penalty.loser), named(penalty.winner), tokens(wei))
        for penalty, wei in ledger.penalties.moved.items()
    )
    output.table(("for", "from", "to", "OLRA"), lost, title="Who lost what, and to whom")
    output.say("")
    paid, refunded = tokens(books.paid_wei), tokens(books.refunded_wei)
    output.say(
        f"escrow and deposits {tokens(books.escrow_wei)} {'=' if books.balanced else '≠'} paid {paid}"
        f" + refunded {refunded} OLRA,"
        f" to the wei; {result.finalized} of {result.jobs} jobs paid, {result.requeued} of them taken over from a dead"
        f" node; {result.tokens} tokens; {result.travelled_bytes / 1e6:.1f} MB of adapters travelled between nodes;"
        f" the first job was paid after {result.first_paid_job_s} s, all in {result.seconds} s"
    )
    vault = ledger.vault
    output.say(
        f"the Vault holds {tokens(vault.held_wei)} {'=' if vault.balanced else '≠'} {tokens(vault.balances_wei)} of"
        f" balances + {tokens(vault.credits_wei)} earned + {tokens(vault.pots_wei)} at stake OLRA, to the wei"
    )


class DemoScreen(DemoView):
    """Answers as they come: a live table on a terminal, one line a job; elsewhere each answer once it is paid."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._jobs: list[DemoJob] = []
        self._printed: set[int] = set()
        self._live = Live(console=output.console, refresh_per_second=8, transient=False, auto_refresh=False)

    def __enter__(self) -> None:
        if self._output.console.is_terminal:
            self._live.start()

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def step(self, text: str) -> None:
        self._output.say(text)

    def changed(self, job: DemoJob) -> None:
        if job not in self._jobs:
            self._jobs.append(job)
        if self._output.console.is_terminal:
            self._live.update(self._render(), refresh=True)
        elif job.state in ENDED and id(job) not in self._printed:
            self._printed.add(id(job))
            number = job.job.job_id if job.job else "?"
            by = f" by {job.node}" if job.node else ""
            self._output.say(f"job {number} [{job.recipe}] {job.state}{by}: {job.prompt}")
            for line in job.text.strip().splitlines():
                self._output.say(f"    {line}")

    def _render(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
        table.add_column("job", justify="right", width=3)
        table.add_column("adapters", width=22, no_wrap=True)
        table.add_column("node", width=6)
        table.add_column("state", width=9)
        table.add_column("question and answer", ratio=1, no_wrap=True, overflow="ellipsis")
        for job in self._jobs:
            line = Text(job.prompt + "  ", style="dim", no_wrap=True, overflow="ellipsis")
            line.append(printable(" ".join(job.text.split())), style="default")
            number = str(job.job.job_id if job.job else "")
            table.add_row(number, job.recipe, job.node, Text(job.state, style=STYLES.get(job.state, "")), line)
        return table
