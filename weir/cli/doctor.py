"""Show what this machine offers, what will be used, what is missing and how to get it."""

from argparse import ArgumentParser, Namespace

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from weir.doctor import Report, examine

USAGE = "weir doctor [--json] [--quick]"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--quick", action="store_true", help="measure nothing")


def run(options: Namespace) -> int:
    report = examine(measure=not options.quick)
    if options.json:
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        show(report, Console())
    return 0


def show(report: Report, console: Console) -> None:
    table = Table.grid(padding=(0, 2))
    for section, findings in report.items():
        table.add_row(Text(section, style="bold"))
        for finding in findings:
            table.add_row(Text("  " + finding.name), Text(finding.value))
            if finding.advice:
                table.add_row("", Text("→ " + finding.advice, style="yellow"))
    console.print(table)
