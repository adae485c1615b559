"""`rerankd rank --ray`: connects to the cluster and shows the progress."""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.progress import DownloadColumn, Progress, TextColumn

from rerankd.cli.app import needing_extra, print_problem
from rerankd.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Cluster:
    """Which cluster, and how its processes are to rank. `actors` None: one for each CPU or GPU that it has."""

    address: str
    actors: int | None
    num_cpus: float
    num_gpus: float
    chunk_bytes: int


def rank_on_ray(source: Path, output: Path, *, model: str | None, registry: Path | None, cluster: Cluster) -> int:
    """Rank a file of requests into another, and return how many of this run's requests failed.

    Raises:
        ConfigError: the input, the output, the models or the cluster cannot be used.
    """
    if source.suffix == ".gz":
        raise ConfigError(f"{source} is compressed, and --ray reads it in parts; gunzip it first")
    if output.exists() and output.stat().st_size:
        raise ConfigError(f"{output} is there already; delete it to rank {source} again")
    with needing_extra("ray", command="rank --ray"):
        import ray  # noqa: PLC0415 - the extra

        from rerankd.tools import rank_ray  # noqa: PLC0415 - the extra
    work = rank_ray.Work(
        source=str(source.resolve()),
        parts=str(output.resolve().with_name(f"{output.name}.parts")),
        model=model,
        settings={"registry": str(registry.resolve())} if registry else {},
    )
    chunks, missing = rank_ray.plan(work, chunk_bytes=cluster.chunk_bytes)
    failed = 0
    if missing:
        _connect(ray, cluster.address)
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        actors = rank_ray.Actors(
            number=cluster.actors or _number(resources, cluster),
            num_cpus=cluster.num_cpus,
            num_gpus=cluster.num_gpus,
        )
        failed = _show_progress(rank_ray.rank_chunks(work, missing, actors), chunks, missing)
    rank_ray.join(work, chunks, output)
    if failed:
        print_problem(f"requests that failed: {failed}; {output} has their errors")
    return failed


def _connect(ray: Any, address: str) -> None:  # noqa: ANN401 - a module of the extra
    try:
        ray.init(address=None if address == "local" else address, ignore_reinit_error=True, log_to_driver=False)
    except ConnectionError as error:
        raise ConfigError(
            f"no Ray cluster at {address!r} ({error}); name one with --ray-address, or `--ray-address local`"
        ) from None


def _number(resources: dict[str, float], cluster: Cluster) -> int:
    """As many as there is room for."""
    rooms = [resources.get("CPU", 0) / cluster.num_cpus] if cluster.num_cpus else []
    rooms += [resources.get("GPU", 0) / cluster.num_gpus] if cluster.num_gpus else []
    return max(1, int(min(rooms, default=1)))


def _show_progress(ranked: Any, chunks: Any, missing: Any) -> int:  # noqa: ANN401 - of the extra's module
    """Show bytes of the input, pairs a second and the time that is left; return how many requests failed."""
    failed = pairs = 0
    started = perf_counter()
    total = chunks[-1].end
    left = sum(chunk.end - chunk.start for chunk in missing)
    columns = (*Progress.get_default_columns(), DownloadColumn(), TextColumn("{task.fields[speed]}"))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("reranking", total=total, completed=total - left, speed="")
        for one in ranked:
            pairs += one.pairs
            failed += one.failed
            speed = f"{pairs / (perf_counter() - started):.0f} pairs/s"
            progress.update(bar, advance=one.chunk.end - one.chunk.start, speed=speed)
    return failed
