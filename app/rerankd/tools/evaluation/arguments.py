"""The arguments of `rerankd eval`. Imports nothing of the extra `eval`."""

from pathlib import Path
from typing import Annotated

import typer

Folders = Annotated[
    list[Path] | None, typer.Argument(metavar="DATA_FOLDER", help="Each with corpus, queries, qrels and a run.")
]
Models = Annotated[
    list[str] | None, typer.Option(help="A model of the registry, in this process; may be repeated.", metavar="NAME")
]
Urls = Annotated[
    list[str] | None, typer.Option(help="A server: http://host:port, or with #model; may be repeated.", metavar="URL")
]
BiEncoders = Annotated[
    list[Path] | None, typer.Option(help="A sentence-transformers folder: cosine; may be repeated.", metavar="FOLDER")
]
Baseline = Annotated[str, typer.Option(help="The target that the others are compared with.", metavar="TARGET")]
Depth = Annotated[int, typer.Option(min=1, help="Candidates per query.")]
DepthCurve = Annotated[str, typer.Option(help="Depths of a curve, for example 10,50,100.", metavar="N,N,...")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Read at most this many tokens of a document.")]
Queries = Annotated[int | None, typer.Option(min=1, help="Only the first judged queries of each set.")]
Run = Annotated[
    str | None,
    typer.Option(help="The run: NAME of run.NAME.tsv, or `candidates`; without a data folder, a file.", metavar="NAME"),
]
Qrels = Annotated[
    str | None,
    typer.Option(
        help="The judgements: NAME of qrels.NAME.tsv, or `qrels`; without a data folder, a file.", metavar="NAME"
    ),
]
Corpus = Annotated[Path | None, typer.Option(help="Without a data folder: the documents (JSONL).", metavar="FILE")]
Topics = Annotated[Path | None, typer.Option(help="Without a data folder: the queries (JSONL).", metavar="FILE")]
Levels = Annotated[
    list[str] | None,
    typer.Option(
        "--relevance-level",
        help="The grade from which RR, P, R and AUC call a document relevant: 2, or dl19=2.",
        metavar="GRADE",
    ),
]
Deadlines = Annotated[
    str,
    typer.Option("--deadline", help="Each model once more within each of these, for example 50,100.", metavar="MS,..."),
]
Fuse = Annotated[
    bool,
    typer.Option("--fuse", help="Fuse each model with the first stage's scores: find mode and weight, held out."),
]
Output = Annotated[
    Path | None, typer.Option(help="The report as JSON; an interrupted run can then continue.", metavar="FILE")
]
Markdown = Annotated[Path | None, typer.Option(help="The report as Markdown.", metavar="FILE")]
Plot = Annotated[Path | None, typer.Option(help="Quality against latency, as PNG.", metavar="FILE")]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="Start from the beginning instead of continuing an interrupted run.")
]
ApiKey = Annotated[str | None, typer.Option(help="API key for --url.", envvar="RERANKD_EVAL_API_KEY", metavar="KEY")]
