"""`rerankd rank`: files of requests, or TREC runs, without a server."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from time import perf_counter
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from rerankd.cli.app import PROGRESS_COLUMNS, RegistryOption, interruptible, log_warnings_only, print_problem
from rerankd.cli.ranking_on_ray import Cluster, rank_on_ray
from rerankd.config.settings import read_settings
from rerankd.errors import ConfigError
from rerankd.tools.outputs import check_files
from rerankd.tools.rank import Outcome, Plan, plan_requests, plan_run, rerank_file

RANK_HELP = """Rerank a file of requests, or a TREC run, without a server.

INPUT is JSONL, a request a line; "id", "model" and "top_n" are optional:

{"id": 7, "query": "...", "documents": ["...", {"text": "..."}], "top_n": 10}

OUTPUT gets a line for each, in the same order, with the best document first, or with an error:

{"id": 7, "model": "minilm-qa", "results": [{"index": 1, "relevance_score": 0.98}]}

{"id": 7, "error": "...", "error_type": "overloaded"}

With --corpus and --queries, INPUT and OUTPUT are TREC runs: query, Q0, document, rank, score and tag in columns.
Corpus and queries are JSONL: {"id": "d1", "text": "...", "title": "..."}, the title optional.

Inputs may be gzipped (.gz). Give the same command again to continue an interrupted run.
"""


def rank(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Requests (JSONL), or a TREC run (with --corpus).")],
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="Where answers are appended; an interrupted run continues there.")
    ],
    corpus: Annotated[Path | None, typer.Option(help="The run's documents (JSONL with id and text).")] = None,
    queries: Annotated[Path | None, typer.Option(help="The run's queries (JSONL with id and text).")] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="Candidates per query; default: all.")] = None,
    model: Annotated[str | None, typer.Option(help="A served model; default: the registry's.")] = None,
    registry: RegistryOption = None,
    *,
    ray: Annotated[bool, typer.Option("--ray", help="Rank INPUT on a Ray cluster (docs/ray.md).")] = False,
    ray_address: Annotated[
        str, typer.Option(help="With --ray: the cluster; `local` starts one on this machine.")
    ] = "auto",
    actors: Annotated[int | None, typer.Option(min=1, help="With --ray: processes; default: one for each CPU.")] = None,
    num_cpus: Annotated[float, typer.Option(min=0, help="With --ray: CPUs of each process.")] = 1.0,
    num_gpus: Annotated[float, typer.Option(min=0, help="With --ray: GPUs of each process.")] = 0.0,
    chunk_mb: Annotated[float, typer.Option(min=0.001, help="With --ray: megabytes of INPUT a chunk.")] = 8.0,
) -> None:
    """Rerank a file of requests, or a TREC run, through the service's own pipeline."""
    settings = read_settings(registry=registry)
    log_warnings_only()
    check_files({"OUTPUT": output}, inputs=[source, corpus, queries])
    if (corpus is None) != (queries is None):
        raise ConfigError("a TREC run needs both --corpus and --queries; a file of requests needs neither")
    if depth is not None and corpus is None:
        raise ConfigError("--depth is for TREC runs, with --corpus and --queries")
    if ray:
        if corpus is not None:
            raise ConfigError("--ray ranks files of requests; a TREC run is ranked without it")
        wanted = Cluster(ray_address, actors, num_cpus=num_cpus, num_gpus=num_gpus, chunk_bytes=round(chunk_mb * 2**20))
        with interruptible("finished chunks are kept, and the same command continues from there"):
            failed = rank_on_ray(source, output, model=model, registry=registry, cluster=wanted)
        raise typer.Exit(1 if failed else 0)
    if corpus is not None and queries is not None:
        plan = plan_run(source, output, corpus=corpus, queries=queries, depth=depth, model=model)
    else:
        plan = plan_requests(source, output, model=model)
    if not plan.total:
        output.touch()
        Console(stderr=True).print(f"{source} has no requests", highlight=False, markup=False, soft_wrap=True)
    with interruptible("finished requests are kept, and the same command continues from there"):
        failed = asyncio.run(_show_progress(plan, rerank_file(settings, plan, output)))
    if plan.failed:
        print_problem(
            f"requests that failed in an earlier run: {plan.failed}; {output} has their errors: "
            "delete it to try all of them again"
        )
    if failed or plan.failed:
        raise typer.Exit(1)


async def _show_progress(plan: Plan, outcomes: AsyncIterator[Outcome]) -> int:
    """Show a progress bar, and return how many requests failed."""
    errors = Console(stderr=True)
    failed = pairs = 0
    started = perf_counter()
    with Progress(*PROGRESS_COLUMNS, console=errors) as progress:
        bar = progress.add_task("reranking", total=plan.total, completed=plan.done, speed="")
        async for outcome in outcomes:
            pairs += outcome.pairs
            if outcome.error is not None:
                failed += 1
                errors.print(f"[red]{outcome.error.code}:[/] {escape(outcome.error.message)}", highlight=False)
            progress.update(bar, advance=1, speed=f"{pairs / (perf_counter() - started):.0f} pairs/s")
    return failed
