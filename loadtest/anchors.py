"""Quality against the number of documents read, with anchors and without: `python -m loadtest.anchors DATA`.

The corpus is what the last queries of a data set have as candidates, the first queries are the anchors', so that no
query is both. The shipped model scores all of it once (`rerankd anchors`). Then it answers the last queries three ways:
it reads all candidates, the first ones alone, or the same number of them chosen by estimates. Nothing is cached.
"""

import argparse
import asyncio
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from rerankd.config.settings import SHIPPED_REGISTRY, Settings
from rerankd.domain import RerankRequest
from rerankd.tools.anchoring import make_anchors
from rerankd.tools.evaluation.datasets import DataSet, files_of_folder, read_data_set
from rerankd.tools.evaluation.in_process import InProcess
from rerankd.tools.evaluation.measures import measure_main
from rerankd.tools.evaluation.targets import Answer
from rerankd.tools.trec import read_texts

_SHIPPED: Final = SHIPPED_REGISTRY.parent / "minilm-qa"
_EXACT: Final = "exact"
_BEST: Final = 10

Answers = Mapping[str, Answer]


@dataclass(frozen=True, slots=True)
class Row:
    """`found` is the share of the model's own first ten that are among the first ten."""

    read: int
    way: str
    ndcg: float
    found: float


def registry(folder: Path, depths: Sequence[int], anchors: Path, *, share: float, cutoff: float) -> Path:
    """The shipped model as it is, and with anchors for each depth, `share` of it the anchors themselves."""
    same = f'path = {json.dumps(str(_SHIPPED))}\nengine_options = {{ file = "model.int8.onnx" }}\n'
    entries = [f'[[model]]\nname = "{_EXACT}"\n{same}']
    for depth in depths:
        plan = f"file = {json.dumps(str(anchors.resolve()))}, depth = {depth}, anchors = {_anchors(depth, share)}"
        entries.append(f'[[model]]\nname = "{depth}"\n{same}anchors = {{ {plan}, cutoff = {cutoff} }}\n')
    path = folder / "registry.toml"
    path.write_text("\n".join(entries), encoding="utf-8")
    return path


def _anchors(depth: int, share: float) -> int:
    return max(1, round(share * depth))


async def answers(settings: Settings, model: str, data: DataSet) -> Answers:
    """What a model of the registry answers to each query."""
    async with InProcess(settings, model).opened() as ask:
        return {
            question.query_id: await ask(
                RerankRequest(query=question.text, documents=[data.texts[name] for name in question.document_ids])
            )
            for question in data.ranked
        }


async def rows(settings: Settings, data: DataSet, depths: Sequence[int]) -> list[Row]:
    exact = await answers(settings, _EXACT, data)
    most = max(len(question.document_ids) for question in data.ranked)
    found = [_row(data, exact, exact, read=0, way="none: first stage", depth=0)]
    for depth in depths:
        found.append(_row(data, exact, exact, read=depth, way="the first", depth=depth))
        chosen = await answers(settings, str(depth), data)
        found.append(_row(data, chosen, exact, read=depth, way="by estimates", depth=most))
    return [*found, _row(data, exact, exact, read=most, way="all", depth=most)]


def _row(data: DataSet, answered: Answers, exact: Answers, *, read: int, way: str, depth: int) -> Row:
    orders, shares = {}, []
    for question in data.ranked:
        first = list(answered[question.query_id].order_at(depth))
        order = [*first, *(index for index in range(len(question.document_ids)) if index not in set(first))]
        orders[question.query_id] = [question.document_ids[index] for index in order]
        shares.append(len({*order[:_BEST]} & {*exact[question.query_id].order[:_BEST]}) / _BEST)
    return Row(read, way, float(measure_main(data.ranked, orders).mean()), float(np.mean(shares)))


async def run(asked: argparse.Namespace) -> list[Row]:
    files = files_of_folder(asked.data, run=None, qrels=None)
    data = read_data_set(files, depth=asked.candidates)
    questions = data.ranked[-asked.queries :]
    judged = replace(data, questions=questions)
    queries = [text for name, text in read_texts(files.queries).items() if name not in {q.query_id for q in questions}]
    corpus = list(dict.fromkeys(data.texts[name] for question in questions for name in question.document_ids))
    with tempfile.TemporaryDirectory() as folder:
        anchors = asked.anchors or Path(folder) / "anchors.npz"
        path = registry(Path(folder), asked.depths, anchors, share=asked.share, cutoff=asked.cutoff)
        settings = Settings(registry=path)
        if not anchors.is_file():
            chosen = queries[: asked.anchor_queries]
            made = await make_anchors(settings, _EXACT, corpus, chosen, on_progress=lambda _pairs: None)
            made.write(anchors)
        print(f"{data.name}: {len(questions)} queries, {asked.candidates} candidates each, {len(corpus)} documents")
        return await rows(settings, judged, asked.depths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a data folder, as of `rerankd eval`")
    parser.add_argument("--queries", type=int, default=20, help="how many of the last queries are answered")
    parser.add_argument("--anchor-queries", type=int, default=40, help="how many of the first queries")
    parser.add_argument("--candidates", type=int, default=100, help="documents of a request")
    parser.add_argument("--depths", type=int, nargs="+", default=[10, 20, 30, 50], help="documents read of a request")
    parser.add_argument("--share", type=float, default=0.5, help="of the documents read, the share of the anchors")
    parser.add_argument("--cutoff", type=float, default=0.01, help="`cutoff` of the registry")
    parser.add_argument("--anchors", type=Path, help="a file to keep the anchors in, or of an earlier run")
    parser.add_argument("--json", type=Path, help="a file for the rows")
    asked = parser.parse_args()
    found = asyncio.run(run(asked))
    print("\n| read | which | nDCG@10 | of its own first ten |\n|---|---|---|---|")
    for row in found:
        print(f"| {row.read} | {row.way} | {row.ndcg:.3f} | {row.found:.0%} |")
    if asked.json is not None:
        asked.json.write_text(json.dumps([asdict(row) for row in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
