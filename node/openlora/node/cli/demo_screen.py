"""What the demonstration looks like: answers as they come, then the books."""

from rich.live import Live
from rich.table import Table
from rich.text import Text

from openlora.node.cli.output import Output, printable, tokens
from openlora.node.demo import DemoJob, DemoResult, DemoView, Ledger

STYLES = {"paid": "green", "committed": "cyan", "cancelled": "yellow"}


def show_books(output: Output, result: DemoResult, ledger: Ledger) -> None:
    books = ledger.books
    rows = [(role, ledger.name_of(payee), tokens(wei)) for (role, payee), wei in books.earned.items()]
    rows.sort(key=lambda row: row[:2])
    shown = [(role.name.lower(), who, amount) for role, who, amount in rows]
    output.say("")
    output.table(("for", "who", "OLRA"), shown, title="Who earned what")
    output.say("")
    paid, refunded = tokens(books.paid_wei), tokens(books.refunded_wei)
    output.say(
        f"escrow {tokens(books.escrow_wei)} {'=' if books.balanced else '≠'} paid {paid} + refunded {refunded} OLRA,"
        f" to the wei; {result.finalized} of {result.jobs} jobs paid, {result.tokens} tokens,"
        f" the first after {result.first_paid_job_s} s, all in {result.seconds} s"
    )


class DemoScreen(DemoView):
    """Answers as they come: a live table on a terminal, a line for each finished answer elsewhere."""

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
        elif job.state in ("paid", "cancelled by its client") and id(job) not in self._printed:
            self._printed.add(id(job))
            number = job.job.job_id if job.job else "?"
            self._output.say(f"job {number} [{job.recipe}] {job.state}: {job.prompt}")
            for line in job.text.strip().splitlines():
                self._output.say(f"    {line}")

    def _render(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
        table.add_column("job", justify="right", width=3)
        table.add_column("adapters", width=22)
        table.add_column("state", width=12)
        table.add_column("question and answer", ratio=1)
        for job in self._jobs:
            answer = Text(job.prompt, style="dim")
            if job.text:
                answer.append("\n" + printable(job.text.strip()), style="default")
            state = job.state.split()[0]
            number = str(job.job.job_id if job.job else "")
            table.add_row(number, job.recipe, Text(state, style=STYLES.get(state, "")), answer)
        return table
