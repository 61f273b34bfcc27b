"""`openlora doctor`: what keeps this node from earning."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openlora.node.cli.output import JsonFlag, NodeFile, Output

if TYPE_CHECKING:
    from openlora.node.doctor.examination import Report


def doctor(
    config: NodeFile = Path("node.toml"),
    client: Annotated[
        Path | None, typer.Option(help="The operator key's configuration; operator.toml beside the node's by default.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Look for everything that keeps this node from earning, in 10 s at most; exit 1 if there is something."""
    from openlora.node.doctor.examination import examine

    output = Output(json)
    report = asyncio.run(examine(config, client))
    show(output, report)
    output.result(report)
    raise typer.Exit(0 if report.healthy else 1)


def show(output: Output, report: "Report") -> None:
    marks = {"critical": ("✗", "bold red"), "warning": ("!", "yellow")}
    for finding in report.findings:
        mark, style = marks[finding.severity]
        output.line((f"{mark} {finding.code}", style))
        output.line((finding.cause, ""), indent=2)
        output.line(("→ ", "green"), (finding.fix, ""), indent=2)
    if report.findings:
        output.say("")
    number = sum(finding.severity == "critical" for finding in report.findings)
    where = "and the node runs" if report.agent_runs else "and the node does not run: `openlora run` starts it"
    if report.healthy:
        output.line(("✓ nothing keeps this node from earning, ", "green"), (where, ""))
    else:
        faults = "one thing keeps" if number == 1 else f"{number} things keep"
        output.line((f"{faults} this node from earning, ", "bold"), (where, ""))
