"""`rerankd bench`: a load test of a server."""

import asyncio
import sys
from typing import TYPE_CHECKING

import typer
import uvloop
from rich.console import Console
from rich.progress import Progress

from rerankd.cli.app import PROGRESS_COLUMNS, interruptible, needing_extra
from rerankd.tools.benchmark import arguments

if TYPE_CHECKING:
    from rerankd.tools.benchmark import benchmark


def bench(
    url: arguments.Url,
    *,
    documents: arguments.Documents = "30",
    clients: arguments.Clients = "1,8,32",
    rate: arguments.Rates = "",
    utilization: arguments.Utilizations = "",
    seconds: arguments.Seconds = 10,
    warmup: arguments.Warmup = 3,
    repetitions: arguments.Repetitions = 3,
    repeat_share: arguments.RepeatShare = 0,
    timeout: arguments.Timeout = 120,
    path: arguments.EndpointPath = "/v2/rerank",
    documents_field: arguments.DocumentsField = "documents",
    model: arguments.Model = None,
    header: arguments.Headers = None,
    api_key: arguments.ApiKey = None,
    seed: arguments.Seed = None,
    output: arguments.Output = None,
    markdown: arguments.Markdown = None,
    plot: arguments.Plot = None,
) -> None:
    """Load-test a rerank server, closed loop and open loop: latency, throughput, errors, time in each part of it."""
    with needing_extra("bench"):
        from rerankd.tools.benchmark import benchmark  # noqa: PLC0415 - a service needs none of it

        outputs = benchmark.Outputs(json=output, markdown=markdown, plot=plot)
        outputs.prepare()
    headers = arguments.read_headers(header or [], api_key)
    plan = benchmark.Plan(
        target=benchmark.Target.from_url(url, path=path, headers=headers),
        shapes=[benchmark.Shape.parse(shape) for shape in documents.split(",")],
        clients=arguments.read_list("--clients", clients, int),
        rates=arguments.read_list("--rate", rate, float),
        utilizations=arguments.read_list("--utilization", utilization, float),
        window=benchmark.Window(warmup_s=warmup, seconds=seconds, timeout_s=timeout),
        repetitions=repetitions,
        repeat_share=repeat_share,
        format=benchmark.Format(documents_field=documents_field, extra={"model": model} if model else {}),
        seed=seed,
        command=arguments.shown_command(sys.argv[1:]),
    )
    with (
        interruptible("no report was written"),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        failures = runner.run(_bench(plan, outputs))
    if failures:
        raise typer.Exit(1)


async def _bench(plan: "benchmark.Plan", outputs: "benchmark.Outputs") -> int:
    """Run with a progress bar, save and print the report, and return how many requests failed."""
    from rerankd.tools.benchmark.benchmark import Benchmark, save_report  # noqa: PLC0415 - a service needs none of it
    from rerankd.tools.benchmark.tables import terminal_tables  # noqa: PLC0415

    running = Benchmark(plan)
    with Progress(*PROGRESS_COLUMNS, console=Console(stderr=True)) as progress:
        bar = progress.add_task("starting", total=plan.total, speed="")
        async for load, measurement in running.run():
            progress.update(bar, advance=1, description=str(load), speed=f"{measurement.pairs_per_s:.0f} pairs/s")
    report = running.report()
    save_report(report, outputs)
    console = Console()
    for table in terminal_tables(report):
        console.print(table)
    return report.failures
