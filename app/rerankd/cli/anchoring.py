"""`rerankd anchors`: scores of a corpus from which those of other queries are estimated."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from rerankd.cli.app import PROGRESS_COLUMNS, RegistryOption, interruptible, log_warnings_only
from rerankd.config.settings import Settings, read_settings
from rerankd.errors import ConfigError
from rerankd.tools.outputs import check_files
from rerankd.tools.trec import read_texts

if TYPE_CHECKING:
    from rerankd.scorers.anchors import Anchors


def anchors(
    corpus: Annotated[Path, typer.Argument(metavar="CORPUS", help="Documents: JSONL with id, text and maybe title.")],
    queries: Annotated[Path, typer.Argument(metavar="QUERIES", help="Anchor queries: JSONL with id and text.")],
    *,
    model: Annotated[
        str | None, typer.Option(help="A model of the registry, without anchors; default: its default one.")
    ] = None,
    count: Annotated[int | None, typer.Option("--queries", min=1, help="Only the first anchor queries.")] = None,
    output: Annotated[Path, typer.Option(help="The file that `anchors.file` in a registry names.", metavar="FILE")] = (
        Path("rerankd_anchors.npz")
    ),
    registry: RegistryOption = None,
) -> None:
    """Score every document of a corpus for anchor queries, so that requests need to read only a part of theirs."""
    settings = read_settings(registry=registry)
    log_warnings_only()
    check_files({"--output": output}, inputs=[corpus, queries])
    texts = list(dict.fromkeys(read_texts(corpus).values()))
    asked = list(read_texts(queries).values())[:count]
    if not texts or not asked:
        raise ConfigError(f"{queries if texts else corpus} is empty; anchors need documents and queries")
    with interruptible("nothing was written; --queries makes it shorter"):
        made = asyncio.run(_make(settings, model, texts, asked))
    made.write(output)
    documents, columns = made.scores.shape
    Console().print(f"{documents} documents, {columns} queries: written to {output}", highlight=False, soft_wrap=True)


async def _make(settings: Settings, model: str | None, texts: list[str], queries: list[str]) -> "Anchors":
    from rerankd.tools.anchoring import make_anchors  # noqa: PLC0415 - it is slow to import

    with Progress(*PROGRESS_COLUMNS, console=Console(stderr=True)) as progress:
        bar = progress.add_task("scoring", total=len(texts) * len(queries), speed="pairs")

        def on_progress(pairs: int) -> None:
            progress.advance(bar, pairs)

        return await make_anchors(settings, model, texts, queries, on_progress=on_progress)
