"""Writes a BM25 run of a data folder to any depth, for depth curves beyond the 100 candidates that data folders have.

python -m models.recipes.minilm_qa.deep_run data/scifact scifact-deep --depth 1000
rerankd eval scifact-deep --depths 10,20,50,100,200,500,1000 --fuse --output scifact-deep/report.json
"""

from pathlib import Path
from typing import Annotated

import typer

from models.recipes.minilm_qa.ranking_data import read_documents, read_grades, read_queries
from rerankd.tools.training.lexical import Bm25Index


def main(
    data: Annotated[Path, typer.Argument(help="A folder with corpus, queries and qrels.")],
    output: Annotated[Path, typer.Argument(help="The folder to write; it links to the data's other files.")],
    depth: Annotated[int, typer.Option(min=1, help="Candidates per query.")] = 1000,
) -> None:
    """Rank the whole corpus by BM25 for every judged query, and write a folder that `rerankd eval` reads."""
    output.mkdir(parents=True)
    for path in (*data.glob("corpus.*"), *data.glob("queries.*"), *data.glob("qrels.*")):
        (output / path.name).symlink_to(path.resolve())
    documents, queries = read_documents(data), read_queries(data)
    names, index = list(documents), Bm25Index([document.full_text for document in documents.values()])
    with (output / "run.bm25.tsv").open("w", encoding="utf-8") as run:
        for query_id in read_grades(data):
            for rank, (place, score) in enumerate(index.best(queries[query_id].text, depth=depth), start=1):
                run.write(f"{query_id}\t{names[place]}\t{rank}\t{score:.6f}\n")


if __name__ == "__main__":
    typer.run(main)
