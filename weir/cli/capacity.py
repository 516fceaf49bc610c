"""Find the highest request rate that keeps the time between tokens within a target.

A rate is kept if the 99th percentile of the time between tokens, over all tokens, is within the
target and the median delay until a request is first scheduled within 2 seconds (Sarathi-Serve's
definition). Rates are tried on the simulator or, with --base-url, on a running Weir server.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable

from weir.bench import datasets, reporting
from weir.bench.client import Target
from weir.bench.load import load
from weir.bench.talk import first_model
from weir.cli import simulate
from weir.cli.top import look, percentile
from weir.errors import ConfigError
from weir.fields import parse_duration
from weir.http import Http, bearer
from weir.http import run as run_loop
from weir.options import config
from weir.sim import flags
from weir.sim.flags import Vocabulary
from weir.sim.report import Report, measure
from weir.sim.search import Limits, Trial, search
from weir.sim.workload import Workload, poisson

USAGE = "weir capacity [MODEL] --target-tbt-p99 50ms [OPTIONS]"
QUEUE = "weir_request_queue_time_seconds"


def add_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("search")
    add = group.add_argument
    add("--target-tbt-p99", required=True, metavar="TIME", help="such as 50ms")
    add("--max-delay", default="2s", metavar="TIME", help="median scheduling delay allowed (2s)")
    add("--first-rate", type=float, default=1.0, metavar="R", help="requests a second to try (1)")
    add("--precision", type=float, default=0.025, metavar="P", help="of the answer (0.025)")
    add("--burstiness", type=float, default=1.0, metavar="SHAPE", help="1 is Poisson (1)")
    add("--base-url", metavar="URL", help="a running Weir server, instead of the simulator")
    reporting.add_output(group)
    flags.add_arguments(parser)
    datasets.add_arguments(parser, 2048)


def run(options: Namespace) -> int:
    try:
        limits = Limits(parse_duration(options.target_tbt_p99), parse_duration(options.max_delay))
    except ValueError as error:
        raise ConfigError(f"--target-tbt-p99, --max-delay: {error}") from None
    if not limits.tbt > 0:
        raise ConfigError("--target-tbt-p99 must be above 0")
    if not options.first_rate > 0 or not options.precision > 0 or not options.burstiness > 0:
        raise ConfigError("--first-rate, --precision and --burstiness must be above 0")
    attempt = live(options) if options.base_url else simulated(options)
    print("   rate/s   P99 TBT ms   median delay ms   median TTFT ms")

    def tried(rate: float) -> Trial:
        trial = limits.trial(rate, attempt(rate))
        print(
            f"{rate:9.2f}{1000 * trial.tbt:13.1f}{1000 * trial.delay:18.1f}"
            f"{1000 * trial.ttft:17.1f}  {'kept' if trial.kept else 'not kept'}",
            flush=True,
        )
        return trial

    rate, trials = search(tried, options.first_rate, options.precision)
    more = " or more: its requests came all at once, give --num-prompts more"
    print(f"capacity: {rate:.2f} requests/s{more if trials[-1].burst and trials[-1].kept else ''}")
    reporting.write(options.output_json, {"capacity": rate, "trials": trials})
    return 0 if rate else 1


def simulated(options: Namespace) -> Callable[[float], Report]:
    scene = flags.scene(options)
    seed = scene.config.seed
    workload = datasets.make(options, lambda: Vocabulary(scene.spec.vocab), seed)

    def attempt(rate: float) -> Report:
        timed = poisson(workload, rate, options.burstiness, seed)
        return measure(*simulate.simulate(scene, timed))

    return attempt


def live(options: Namespace) -> Callable[[float], Report]:
    """Trials on a server. The scheduling delay is read from its histogram of queue times."""
    settings = config(options)
    headers = bearer(next(iter(settings.api_key), None))
    http = Http(options.base_url.rstrip("/"), headers, 600.0)
    model = run_loop(first_model(http))
    text = datasets.tokenizer(settings.tokenizer or model)
    workload = datasets.make(options, lambda: text, settings.seed)
    target = Target(http, "openai", model, ignore_eos=True)

    def attempt(rate: float) -> Report:
        return run_loop(_loaded(target, poisson(workload, rate, options.burstiness, settings.seed)))

    return attempt


async def _loaded(target: Target, workload: Workload) -> Report:
    await target.http.post("/flush_cache")  # else a trial would find the last one's prompts
    before = await look(target.http)
    records, duration = await load(target, workload)
    after = await look(target.http)
    median = percentile(before.buckets.get(QUEUE, {}), after.buckets.get(QUEUE, {}), 0.5)
    for record in records:
        record.started = record.start + median
    return measure(records, duration)
