"""Writes a BM25 run of a data folder to any depth, for depth curves beyond the 100 candidates that data folders have.

python -m models.recipes.minilm_qa.deep_run data/scifact scifact-deep --depth 1000
rerankd eval scifact-deep --depths 10,20,50,100,200,500,1000 --fuse --output scifact-deep/report.json
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from models.recipes.minilm_qa.lexical import K1, B, rarity, stems_of
from models.recipes.minilm_qa.ranking_data import read_documents, read_grades, read_queries

Postings = Mapping[str, tuple[np.ndarray, np.ndarray]]


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
    names, weights = list(documents), _weights([document.full_text for document in documents.values()])
    with (output / "run.bm25.tsv").open("w", encoding="utf-8") as run:
        for query_id in read_grades(data):
            scores = np.zeros(len(names))
            for stem in set(stems_of(queries[query_id].text)) & weights.keys():
                places, of_stem = weights[stem]
                scores[places] += of_stem
            for rank, place in enumerate(np.argsort(-scores, kind="stable")[:depth].tolist(), start=1):
                run.write(f"{query_id}\t{names[place]}\t{rank}\t{scores[place]:.6f}\n")


def _weights(texts: list[str]) -> Postings:
    """By stem: the texts that hold it, and what it adds to their scores."""
    counts = [Counter(stems_of(text)) for text in texts]
    lengths = np.array([count.total() for count in counts])
    room = K1 * (1.0 - B + B * lengths / lengths.mean())
    places: dict[str, list[int]] = defaultdict(list)
    for place, count in enumerate(counts):
        for stem in count:
            places[stem].append(place)
    weights = {}
    for stem, holding in places.items():
        found = np.array([counts[place][stem] for place in holding])
        weights[stem] = np.array(holding), rarity(len(holding), len(texts)) * found * (K1 + 1) / (found + room[holding])
    return weights


if __name__ == "__main__":
    typer.run(main)
