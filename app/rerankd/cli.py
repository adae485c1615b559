"""The command `rerankd`."""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer
import uvloop
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TextColumn
from rich.table import Table

from rerankd import __version__
from rerankd.api.transport.listening import check_address
from rerankd.concurrency.worker import exit_beside_hung_calls
from rerankd.config.extras import missing
from rerankd.config.named_models import named_model, served_registry
from rerankd.config.settings import ModelSpec, Settings, read_settings, try_settings
from rerankd.errors import ConfigError, RerankError
from rerankd.scorers import EXPORTED_SCORERS
from rerankd.scorers.base import ScorerSpec
from rerankd.serving.choosing import choose, inspect
from rerankd.serving.model_files import model_folder, template_folders
from rerankd.telemetry import logs
from rerankd.tools.benchmark import arguments as bench_arguments
from rerankd.tools.checking import Checked, check_settings
from rerankd.tools.evaluation import arguments
from rerankd.tools.inspecting import describe_model, inspection_table
from rerankd.tools.outputs import check_files, check_folder, explain_os_error
from rerankd.tools.rank import Outcome, Plan, plan_requests, plan_run, rerank_file

if TYPE_CHECKING:
    from rerankd.tools.benchmark import benchmark
    from rerankd.tools.evaluation.evaluation import Evaluation, Outputs
    from rerankd.tools.tuning import Tuned

cli = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="A reranking service: a query and candidate documents go in, the documents come back in order of relevance.",
    epilog="Begin with: rerankd serve",
)
_PROGRESS_COLUMNS = (
    *Progress.get_default_columns(),
    TextColumn("{task.completed}/{task.total} {task.fields[speed]}"),
)
_Registry = Annotated[Path | None, typer.Option(help="The registry of served models.", show_default=False)]


def _examples(*commands: str) -> str:
    """Help's last lines; a blank line keeps each on a line of its own."""
    return "\n\n".join(["Examples:", *commands])


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rerankd {__version__}")
        raise typer.Exit


@cli.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """What every command has."""


@cli.command(
    epilog=_examples(
        "rerankd serve --port 8123",
        "rerankd serve BAAI/bge-reranker-v2-m3",
        "rerankd serve ./my-model --name ours --dtype int8",
        "RERANKD_REGISTRY=models.toml RERANKD_API_KEYS_FILE=keys.toml rerankd serve --check --load",
    )
)
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Folders, or names on the hub (org/name), to serve instead of the registry's models.",
            show_default=False,
        ),
    ] = None,
    *,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.", show_default=False)] = None,
    registry: _Registry = None,
    name: Annotated[
        list[str] | None, typer.Option(help="What requests call the MODEL; one for each.", show_default=False)
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N; default: a GPU where there is one.", show_default=False)
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16, bfloat16 or int8.", show_default=False)] = None,
    template: Annotated[
        str | None, typer.Option(help="The prompt of a language model that no file names.", show_default=False)
    ] = None,
    certify: Annotated[
        str | None,
        typer.Option(help="strict: refuse a MODEL that ranks obvious answers wrongly.", show_default=False),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Only check the configuration: exit with 2 and list all problems, or with 0."),
    ] = False,
    load: Annotated[bool, typer.Option("--load", help="With --check: also download and load every model.")] = False,
) -> None:
    """Serve models over HTTP: those named, or all of the registry. Settings come from the environment
    (docs/configuration.md).
    """
    if load and not check:
        raise ConfigError("--load is for --check; serving loads every model anyway")
    if models and registry:
        raise ConfigError("give MODEL or --registry, not both; a registry can name further models itself")
    given = {
        "host": host,
        "port": port,
        "registry": registry,
        "model": tuple(models or ()) or (() if registry else None),
        "model_name": tuple(name or ()) or None,
        "model_device": device,
        "model_dtype": dtype,
        "model_template": template,
        "model_certify": certify,
    }
    if check:
        _log_little()
        settings, known = try_settings(**given)
        raise typer.Exit(_report(check_settings(settings, known=known, load=load), settings, loaded=load))
    settings = read_settings(**given)
    from rerankd.api.server import serve as serve_http  # noqa: PLC0415 - other commands need no web framework

    check_address(settings.host, settings.port)
    with logs.serving(settings.log_level, logs.LogFormat(settings.log_format)):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve_http(settings))
        exit_beside_hung_calls()


def _report(checked: Checked, settings: Settings, *, loaded: bool) -> int:
    """Say what a configuration serves and all that is wrong with it; the exit status."""
    if _list_problems(checked):
        return 2
    console = Console()
    keys = f"{checked.keys} API keys" if checked.keys else "no API keys: everybody who reaches the port may use it"
    found = "The configuration is usable" if loaded else "Nothing wrong was found"
    loading = "loaded" if loaded else "not loaded (--load does)"
    console.print(
        f"{found}. Models: {len(checked.models)}, {loading}. Address: {settings.host}:{settings.port}; {keys}.",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _list_problems(checked: Checked) -> int:
    """Show the models, and all that is wrong; the exit status."""
    if checked.registry is not None:
        Console().print(_models_table(checked))
    for problem in checked.all_problems:
        _complain(problem)
    return 2 if checked.all_problems else 0


def _log_little() -> None:
    """What a command prints is enough, but for how far a download is."""
    logs.configure("WARNING")
    logging.getLogger("rerankd.serving.downloads").setLevel(logging.INFO)


def _complain(problem: str) -> None:
    Console(stderr=True).print(f"[bold red]rerankd:[/] {escape(problem)}", highlight=False, soft_wrap=True)


@contextmanager
def _interruptible(way_on: str) -> Iterator[None]:
    """On Ctrl-C say how to go on, and exit as a shell expects it."""
    try:
        yield
    except KeyboardInterrupt:
        _complain(f"interrupted; {way_on}")
        raise typer.Exit(130) from None


_RANK_HELP = """Rerank a file of requests, or a TREC run, without a server.

INPUT is JSONL, a request a line; "id", "model" and "top_n" are optional:

{"id": 7, "query": "...", "documents": ["...", {"text": "..."}], "top_n": 10}

OUTPUT gets a line for each, in the same order, with the best document first, or with an error:

{"id": 7, "model": "minilm-qa", "results": [{"index": 1, "relevance_score": 0.98}]}

{"id": 7, "error": "...", "error_type": "overloaded"}

With --corpus and --queries, INPUT and OUTPUT are TREC runs: query, Q0, document, rank, score and tag in columns.
Corpus and queries are JSONL: {"id": "d1", "text": "...", "title": "..."}, the title optional.

Inputs may be gzipped (.gz). Give the same command again to continue an interrupted run.
"""


@cli.command(
    help=_RANK_HELP,
    epilog=_examples(
        "rerankd rank requests.jsonl answers.jsonl",
        "rerankd rank bm25.trec reranked.trec --corpus corpus.jsonl --queries queries.jsonl --depth 100",
    ),
)
def rank(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Requests (JSONL), or a TREC run (with --corpus).")],
    output: Annotated[
        Path, typer.Argument(metavar="OUTPUT", help="Where answers are appended; an interrupted run continues there.")
    ],
    corpus: Annotated[Path | None, typer.Option(help="The run's documents (JSONL with id and text).")] = None,
    queries: Annotated[Path | None, typer.Option(help="The run's queries (JSONL with id and text).")] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="Candidates per query; default: all.")] = None,
    model: Annotated[str | None, typer.Option(help="A served model; default: the registry's.")] = None,
    registry: _Registry = None,
) -> None:
    """Rerank a file of requests, or a TREC run, through the service's own pipeline."""
    settings = read_settings(registry=registry)
    _log_little()
    check_files({"OUTPUT": output}, inputs=[source, corpus, queries])
    if (corpus is None) != (queries is None):
        raise ConfigError("a TREC run needs both --corpus and --queries; a file of requests needs neither")
    if corpus is not None and queries is not None:
        plan = plan_run(source, output, corpus=corpus, queries=queries, depth=depth, model=model)
    else:
        plan = plan_requests(source, output, model=model)
    if not plan.total:
        output.touch()
        Console(stderr=True).print(f"{source} has no requests", highlight=False, markup=False, soft_wrap=True)
    with _interruptible("finished requests are kept, and the same command continues from there"):
        failed = asyncio.run(_show_progress(plan, rerank_file(settings, plan, output)))
    if failed:
        raise typer.Exit(1)


async def _show_progress(plan: Plan, outcomes: AsyncIterator[Outcome]) -> int:
    """Draw a bar while requests finish, and return how many failed."""
    errors = Console(stderr=True)
    failed = pairs = 0
    started = perf_counter()
    with Progress(*_PROGRESS_COLUMNS, console=errors) as progress:
        bar = progress.add_task("reranking", total=plan.total, completed=plan.done, speed="")
        async for outcome in outcomes:
            pairs += outcome.pairs
            if outcome.error is not None:
                failed += 1
                errors.print(f"[red]{outcome.error.code}:[/] {escape(outcome.error.message)}", highlight=False)
            progress.update(bar, advance=1, speed=f"{pairs / (perf_counter() - started):.0f} pairs/s")
    return failed


@cli.command(
    "eval",
    epilog=_examples(
        "rerankd eval data/my-questions --model minilm-qa --output report.json",
        "rerankd eval data/my-questions --url http://127.0.0.1:8000 --markdown report.md",
    ),
)
def evaluate(
    folders: arguments.Folders = None,
    *,
    model: arguments.Models = None,
    url: arguments.Urls = None,
    biencoder: arguments.BiEncoders = None,
    baseline: arguments.Baseline = "first-stage",
    depth: arguments.Depth = 100,
    depths: arguments.DepthCurve = "",
    max_tokens_per_doc: arguments.MaxTokens = None,
    queries: arguments.Queries = None,
    run: arguments.Run = None,
    qrels: arguments.Qrels = None,
    corpus: arguments.Corpus = None,
    topics: arguments.Topics = None,
    level: arguments.Levels = None,
    output: arguments.Output = None,
    markdown: arguments.Markdown = None,
    plot: arguments.Plot = None,
    fresh: arguments.Fresh = False,
    api_key: arguments.ApiKey = None,
    registry: _Registry = None,
) -> None:
    """Measure models, or a server, on judged data: quality, significance, speed."""
    settings = read_settings(registry=registry)
    _log_little()
    with _needing("eval"):
        from rerankd.tools.evaluation import evaluation as ev  # noqa: PLC0415 - a service needs none of it

        outputs = ev.Outputs(json=output, markdown=markdown, plot=plot)
        outputs.prepare()
    sets = ev.SetOptions(
        folders=folders or (), run=run, qrels=qrels, corpus=corpus, topics=topics, queries=queries, levels=level or ()
    )
    targets = ev.TargetOptions(models=model or (), urls=url or (), biencoders=biencoder or (), api_key=api_key)
    comparison = ev.Comparison(baseline=baseline, depth=depth, depths=depths, max_tokens_per_doc=max_tokens_per_doc)
    evaluation = ev.prepare(sets, targets, comparison, settings)
    way_on = "the same command continues from there" if output else "with --output the same command could continue"
    with _interruptible(way_on):
        asyncio.run(_evaluate(evaluation, outputs, fresh=fresh))


async def _evaluate(evaluation: "Evaluation", outputs: "Outputs", *, fresh: bool) -> None:
    """Score with a bar, save the report, and show it."""
    from rerankd.tools.evaluation.evaluation import save_report  # noqa: PLC0415 - a service needs none of it
    from rerankd.tools.evaluation.tables import notes, terminal_tables  # noqa: PLC0415

    with outputs.journal(fresh=fresh) as journal:
        scoring = await evaluation.scoring(journal)
        pairs, started = 0, perf_counter()
        with Progress(*_PROGRESS_COLUMNS, console=Console(stderr=True)) as progress:
            bar = progress.add_task("starting", total=scoring.total, completed=scoring.done, speed="")
            async for work in scoring.run():
                pairs += len(work.question.document_ids)
                speed = f"{pairs / (perf_counter() - started):.0f} pairs/s"
                progress.update(bar, advance=1, description=f"{work.target.name} on {work.data_set.name}", speed=speed)
            progress.update(bar, description="measuring")
            report = evaluation.report(scoring)
    save_report(report, outputs)
    console = Console()
    for table in terminal_tables(report):
        console.print(table)
    for note in notes(report):
        console.print(note, highlight=False)


@cli.command(
    epilog=_examples(
        "rerankd bench http://127.0.0.1:8000 --clients 1,8,32",
        "rerankd bench http://127.0.0.1:8000 --documents 10,100 --utilization 0.5,0.8 --output report.json",
    )
)
def bench(
    url: bench_arguments.Url,
    *,
    documents: bench_arguments.Documents = "30",
    clients: bench_arguments.Clients = "1,8,32",
    rate: bench_arguments.Rates = "",
    utilization: bench_arguments.Utilizations = "",
    seconds: bench_arguments.Seconds = 10,
    warmup: bench_arguments.Warmup = 3,
    repetitions: bench_arguments.Repetitions = 3,
    repeat_share: bench_arguments.RepeatShare = 0,
    timeout: bench_arguments.Timeout = 120,
    path: bench_arguments.EndpointPath = "/v2/rerank",
    documents_field: bench_arguments.DocumentsField = "documents",
    model: bench_arguments.Model = None,
    header: bench_arguments.Headers = None,
    api_key: bench_arguments.ApiKey = None,
    seed: bench_arguments.Seed = None,
    output: bench_arguments.Output = None,
    markdown: bench_arguments.Markdown = None,
    plot: bench_arguments.Plot = None,
) -> None:
    """Load-test a rerank server, closed loop and open loop: latency, throughput, errors, time in each part of it."""
    with _needing("bench"):
        from rerankd.tools.benchmark import benchmark  # noqa: PLC0415 - a service needs none of it

        outputs = benchmark.Outputs(json=output, markdown=markdown, plot=plot)
        outputs.prepare()
    headers = bench_arguments.read_headers(header or [], api_key)
    plan = benchmark.Plan(
        target=benchmark.Target.from_url(url, path=path, headers=headers),
        shapes=[benchmark.Shape.parse(shape) for shape in documents.split(",")],
        clients=bench_arguments.read_list("--clients", clients, int),
        rates=bench_arguments.read_list("--rate", rate, float),
        utilizations=bench_arguments.read_list("--utilization", utilization, float),
        window=benchmark.Window(warmup_s=warmup, seconds=seconds, timeout_s=timeout),
        repetitions=repetitions,
        repeat_share=repeat_share,
        format=benchmark.Format(documents_field=documents_field, extra={"model": model} if model else {}),
        seed=seed,
        command=bench_arguments.shown_command(sys.argv[1:]),
    )
    with (
        _interruptible("no report was written"),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        failures = runner.run(_bench(plan, outputs))
    if failures:
        raise typer.Exit(1)


async def _bench(plan: "benchmark.Plan", outputs: "benchmark.Outputs") -> int:
    """Run with a bar, save and show the report, and return how many requests failed."""
    from rerankd.tools.benchmark.benchmark import Benchmark, save_report  # noqa: PLC0415 - a service needs none of it
    from rerankd.tools.benchmark.tables import terminal_tables  # noqa: PLC0415

    running = Benchmark(plan)
    with Progress(*_PROGRESS_COLUMNS, console=Console(stderr=True)) as progress:
        bar = progress.add_task("starting", total=plan.total, speed="")
        async for load, measurement in running.run():
            progress.update(bar, advance=1, description=str(load), speed=f"{measurement.pairs_per_s:.0f} pairs/s")
    report = running.report()
    save_report(report, outputs)
    console = Console()
    for table in terminal_tables(report):
        console.print(table)
    return report.failures


@cli.command(epilog=_examples("rerankd tune", "rerankd tune minilm-qa --budget-s 300"))
def tune(
    model: Annotated[str | None, typer.Argument(help="A served model; default: the registry's.")] = None,
    budget_s: Annotated[float, typer.Option(min=1.0, help="Seconds to measure; loading takes extra time.")] = 60.0,
    registry: _Registry = None,
) -> None:
    """Find the fastest way to serve a model on this machine, and write it to a profile that `serve` uses."""
    from rerankd.serving.profiles import profile_path, write_profile  # noqa: PLC0415 - a service needs none of it
    from rerankd.tools.tuning import describe  # noqa: PLC0415 - as above

    settings = read_settings(registry=registry)
    _log_little()
    spec = choose(served_registry(settings).only([model]).model[0], settings)
    check_folder("RERANKD_PROFILES", settings.profiles)
    with _interruptible("no profile was written"):
        outcome = asyncio.run(_show_tuning(spec, settings, budget_s=budget_s))
    path = profile_path(settings.profiles, spec.name)
    decision = outcome.decision
    stays = decision.doubtful and path.exists()
    if not stays:
        write_profile(path, outcome.profile)
    table = Table("engine, workers, budget", "pairs/s")
    for candidate in outcome.candidates:
        table.add_row(describe(candidate.choice), f"{candidate.speed:.0f}")
    console = Console()
    console.print(table)
    if outcome.disturbances:
        _complain(f"this machine was busy: {'; '.join(outcome.disturbances)}. Tune again while it does nothing else.")
    if decision.doubtful:
        console.print(
            f"not kept: {describe(decision.fastest.choice)} ({decision.gain:.2f} x the default), because repeated "
            f"measurements differ {decision.noise:.2f} x",
            highlight=False,
            soft_wrap=True,
        )
    if stays:
        console.print(f"the profile of an earlier run is kept: {path}", highlight=False, soft_wrap=True)
        return
    kept = decision.chosen.speed / decision.default.speed
    console.print(f"kept: {describe(outcome.profile.choice)} ({kept:.2f} x the default)", highlight=False)
    console.print(f"written to {path}", highlight=False, soft_wrap=True)


async def _show_tuning(spec: ModelSpec, settings: Settings, *, budget_s: float) -> "Tuned":
    """Draw a bar while candidates are measured, with a line for each."""
    from rerankd.tools.tuning import Step, tune  # noqa: PLC0415 - a service needs none of it

    errors = Console(stderr=True)
    with Progress(*Progress.get_default_columns(), console=errors) as progress:
        bar = progress.add_task("measuring", total=1.0)

        def show(step: Step) -> None:
            errors.print(step.text, highlight=False, markup=False)
            progress.update(bar, completed=step.fraction)

        return await tune(spec, settings, budget_s=budget_s, on_step=show)


@cli.command(epilog=_examples("rerankd models", "rerankd models --json | jq -r '.[].name'"))
def models(
    registry: _Registry = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, with the problems of each model.")] = False,
) -> None:
    """List what the registry serves, and what is wrong with it; `rerankd serve --check` also fails if there is any."""
    settings = read_settings(registry=registry)
    served_registry(settings)  # raises where there is nothing to list
    _log_little()
    checked = check_settings(settings)
    if as_json:
        typer.echo(json.dumps(_listed(checked), indent=2, ensure_ascii=False))
        return
    _list_problems(checked)


@cli.command(
    "inspect", epilog=_examples("rerankd inspect BAAI/bge-reranker-v2-m3", "rerankd inspect ./my-model --json")
)
def inspect_model(
    model: Annotated[str, typer.Argument(help="A folder, or a name on the hub (org/name).")],
    *,
    template: Annotated[
        str | None, typer.Option(help="The prompt of a language model that no file names.", show_default=False)
    ] = None,
    device: Annotated[str | None, typer.Option(help="As of `rerankd serve`.", show_default=False)] = None,
    dtype: Annotated[str | None, typer.Option(help="As of `rerankd serve`.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object.")] = False,
) -> None:
    """Say what a model is, how it would be served here, and what was read from which file; weights are not fetched."""
    settings = read_settings(model_device=device, model_dtype=dtype, model_template=template)
    _log_little()
    report = describe_model(inspect(named_model(model, settings), settings))
    if as_json:
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        Console().print(inspection_table(report))
    if not report["served"]:
        raise typer.Exit(1)


def _listed(checked: Checked) -> list[dict[str, object]]:
    """Named one by one: options may hold what is nobody's business."""
    return [
        {
            "name": spec.name,
            "aliases": list(spec.aliases),
            "default": spec.name == checked.default,
            "scorer": None if spec.stages else spec.scorer,
            "engine": None if spec.stages else spec.engine,
            "path": spec.path or None,
            "stages": list(spec.stages),
            "revision": spec.revision,
            "problems": list(model.problems),
        }
        for model in checked.models
        for spec in [model.spec]
    ]


def _models_table(checked: Checked) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("model", "aliases", "scorer", "engine", "path or stages", "revision", "usable"):
        table.add_column(name, overflow="fold")
    for model in checked.models:
        spec = model.spec
        table.add_row(
            spec.name + (" (default)" if spec.name == checked.default else ""),
            ", ".join(spec.aliases),
            "cascade" if spec.stages else spec.scorer,
            "" if spec.stages else spec.engine,
            spec.path or " > ".join(spec.stages),
            spec.revision or "",
            "no" if model.problems else model.extent.value,
        )
    return table


@cli.command(
    epilog=_examples(
        "rerankd export hub:cross-encoder/ms-marco-MiniLM-L6-v2 models/minilm-l6",
        "rerankd export ./my-model models/ours --precision float32 --precision int8",
    )
)
def export(
    source: Annotated[str, typer.Argument(help="A Hugging Face folder, or hub:org/name@revision.")],
    target: Annotated[Path, typer.Argument(help="The folder to write.")],
    *,
    precision: Annotated[
        list[str] | None, typer.Option(help="float32, float16, int8 or int8-weights; may be repeated. Default: all.")
    ] = None,
    method: Annotated[str, typer.Option(help="The scorer to export for: cross-encoder, yes-no or first.")] = (
        "cross-encoder"
    ),
    template: Annotated[str | None, typer.Option(help="The prompt template of a language model.")] = None,
    window: Annotated[int | None, typer.Option(min=2, help="Candidates that a listwise model reads at once.")] = None,
    pairs: Annotated[
        str | None, typer.Option(help="`plain`, for classifiers that were trained on plain pairs.")
    ] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="Run Python code of the model's repository.")] = False,
    registry: _Registry = None,
) -> None:
    """Turn a Hugging Face reranker into ONNX, and report how far the scores of each precision are from torch."""
    settings = read_settings(registry=registry)
    if method not in EXPORTED_SCORERS:
        raise ConfigError(f"unknown method {method!r}; known: {', '.join(EXPORTED_SCORERS)}")
    spec = ModelSpec(name="source", path=source, engine="torch-encoder", trust_remote_code=trust_remote_code)
    with _needing("export"):
        from rerankd.tools.exporting import export_cross_encoder, export_language_model  # noqa: PLC0415 - torch is not part of a service
        from rerankd.tools.graph_files import GRAPHS  # noqa: PLC0415 - as above
    wanted = precision or list(GRAPHS)
    unknown = set(wanted) - set(GRAPHS)
    if unknown:
        raise ConfigError(f"unknown precision {', '.join(sorted(unknown))}; known: {', '.join(GRAPHS)}")
    check_folder("TARGET", target)
    console = Console()
    unfinished = f"{target} is unfinished; the same command makes it again"
    with _interruptible(unfinished), console.status("starting") as status:
        export_source = (
            partial(export_cross_encoder, pairs=pairs)
            if method == "cross-encoder"
            else partial(
                export_language_model, method=method, spec=_scorer_spec(source, settings, template, window, target)
            )
        )
        parities = export_source(
            model_folder(spec, settings, beside=Path.cwd()),
            target,
            precisions=[name for name in GRAPHS if name in wanted],
            trust_remote_code=trust_remote_code,
            on_step=status.update,
        )
    table = Table("precision", "file", "MB", "largest |difference| from torch", "mean")
    for parity in parities:
        table.add_row(
            parity.precision,
            parity.file,
            f"{parity.megabytes:.1f}",
            f"{parity.largest_difference:.2g}",
            f"{parity.mean_difference:.2g}",
        )
    console.print(table)


def _scorer_spec(source: str, settings: Settings, template: str | None, window: int | None, folder: Path) -> ScorerSpec:
    given = {"template": template, "window": window}
    return ScorerSpec(
        folder=folder,
        source=source,
        templates=template_folders(settings),
        options={name: value for name, value in given.items() if value is not None},
    )


@contextmanager
def _needing(extra: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise missing(str(error.name), extra=extra, of=f"`rerankd {extra}`") from None


def main() -> None:
    """Run the command line; what cannot be used or written ends it with status 2 and one line of why."""
    try:
        cli()
    except (ConfigError, RerankError) as error:
        _complain(str(error))
        sys.exit(2)
    except OSError as error:
        if error.errno is None:
            raise
        _complain(explain_os_error(error))
        sys.exit(2)
