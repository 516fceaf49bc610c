"""A demonstration of Weir in a minute: `python -m weir.demo`.

Starts a server with the embedded model, streams a chat answer, sends 64 few-shot prompts at once,
shows their latency and throughput, and stops the server. Exits with status 1 and a one-line error
if anything fails.
"""

import asyncio
import shutil
import sys
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table

from weir import hub
from weir.bench.client import Target
from weir.bench.load import load
from weir.bench.private import Private, private
from weir.bench.talk import Talk
from weir.errors import WeirError
from weir.http import Http, HttpError
from weir.progress import progress
from weir.sim.report import Report, measure
from weir.sim.workload import Workload, fewshot

MODEL = "smollm2-135m"
PROMPTS = Path(__file__).parent / "data" / "demo_prompts.jsonl"
QUESTION = "Why is the sky blue? Answer in two sentences."
COUNT = 64  # prompts
ANSWER = 64  # tokens each, at most

SNIPPET = f"""\
from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
answer = client.chat.completions.create(
    model="{MODEL}", messages=[{{"role": "user", "content": "Hello!"}}]
)
print(answer.choices[0].message.content)"""


def main() -> int:
    console = Console()
    try:
        demonstrate(console)
    except (WeirError, OSError) as error:
        print(f"the demo failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def demonstrate(console: Console) -> None:
    """Run all steps. Raises `WeirError` at the first that fails."""
    source = hub.resolve(MODEL, progress=True)
    console.print(f"[bold]1. Model[/] {MODEL}, licence {source.licence}")
    console.print(f"   {source.path}", soft_wrap=True)
    workload = fewshot(PROMPTS, COUNT, ANSWER)
    with console.status("") as status:

        def waiting(seconds: float) -> None:
            status.update(f"starting `weir serve {MODEL}` … {seconds:.1f} s")

        with private(MODEL, on_wait=waiting) as server:
            status.stop()
            show(console, server, workload)
    console.print(f"\n[bold]Next[/]  {command()} serve {MODEL}\n\nand, with any OpenAI client:\n")
    console.print(Syntax(SNIPPET, "python", background_color="default"))


def command() -> str:
    """What to type in this shell for the `weir` of this environment."""
    beside = Path(sys.executable).with_name("weir")
    if not beside.exists() or shutil.which("weir") == str(beside):
        return "weir"
    here = Path.cwd()
    return str(beside.relative_to(here) if beside.is_relative_to(here) else beside)


def show(console: Console, server: Private, workload: Workload) -> None:
    http = Http(server.url, server.headers, timeout=120.0)
    console.print(f"[bold]2. Server[/] ready in {server.seconds:.1f} s at {server.url}")
    console.print(f"   {asyncio.run(described(http))}", soft_wrap=True)
    console.print(f"[bold]3. A chat[/] {QUESTION}")
    asyncio.run(chat(http, console))
    console.print(f"[bold]4. {len(workload.items)} prompts at once[/] sharing a few-shot prefix")
    report = asyncio.run(burst(http, workload))
    console.print(table(report))


async def described(http: Http) -> str:
    """The device, dtype and kernels of the model, as the server reports them."""
    info: dict[str, Any] = msgspec.json.decode(await http.get("/server_info"))
    engine = info.get("engine", info)
    return ", ".join(str(engine[name]) for name in ("device", "dtype", "kernels") if name in engine)


async def chat(http: Http, console: Console) -> None:
    talk = Talk(http, MODEL, {"max_tokens": 96, "temperature": 0})
    console.print("   ", end="")
    async for piece in talk.answer(QUESTION):
        console.print(piece, end="", highlight=False, markup=False, soft_wrap=True)
    console.print()


async def burst(http: Http, workload: Workload) -> Report:
    target = Target(http, "openai", MODEL, extra={"stop": ["\n\nQ:"]})
    with progress(len(workload.items), "   prompts") as bar:
        records, seconds = await load(target, workload, on_done=bar.advance)
    report = measure(records, seconds)
    if report.failed:
        reason = next(record.error for record in records if record.error)
        raise HttpError(f"{report.failed} of {len(records)} requests failed: {reason}")
    return report


def table(report: Report) -> Table:
    ttft, itl = report.metrics["ttft"], report.metrics["itl"]
    rows = [
        ("requests", f"{report.completed} in {report.duration:.1f} s"),
        ("output tokens/s", f"{report.output_throughput:,.0f}"),
        ("total tokens/s", f"{report.total_throughput:,.0f}"),
        ("time to first token", f"p50 {ttft.median:,.0f} ms, p99 {ttft.percentile(99):,.0f} ms"),
        ("time between tokens", f"p50 {itl.median:,.0f} ms, p99 {itl.percentile(99):,.0f} ms"),
        (
            "prefix-cache hit rate",
            f"{report.hit_rate:.0%} of {report.input_tokens:,} prompt tokens",
        ),
    ]
    grid = Table(show_header=False)
    for name, value in rows:
        grid.add_row(name, value)
    return grid


if __name__ == "__main__":
    sys.exit(main())
