"""The shipped model on real data, through HTTP: better than BM25, by the evaluation tool that the literature uses."""

import re
from hashlib import sha256
from pathlib import Path

import httpx
import ir_measures
import pytest
from ir_measures import ScoredDoc, nDCG

from rerankd.config.settings import SHIPPED_REGISTRY
from rerankd.tools.trec import Candidates, read_run, read_texts
from tests.requirements import require_data
from tests.servers import rerankd_server, wait_until_ready

_BM25_ON_DL19 = 0.506


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(600)
def test_dl19_is_reranked_clearly_better_than_bm25(tmp_path: Path) -> None:
    folder = require_data("eval/dl19")
    documents, queries = read_texts(folder / "corpus.jsonl.gz"), read_texts(folder / "queries.jsonl")
    candidates = read_run(folder / "run.bm25.tsv", depth=30)
    qrels = [
        ir_measures.Qrel(query, document, int(grade))
        for query, document, grade in map(str.split, (folder / "qrels.full.tsv").read_text().splitlines())
    ]
    with rerankd_server(tmp_path, SHIPPED_REGISTRY) as server:
        wait_until_ready(server)
        with httpx.Client(base_url=server.url, timeout=120) as client:
            run = [
                scored
                for wanted in candidates
                for scored in _rerank(client, queries[wanted.query_id], wanted, documents)
            ]
    assert len(candidates) == 43
    score = ir_measures.calc_aggregate([nDCG @ 10], qrels, run)[nDCG @ 10]
    bm25 = [ScoredDoc(c.query_id, d, -rank) for c in candidates for rank, d in enumerate(c.document_ids)]
    assert ir_measures.calc_aggregate([nDCG @ 10], qrels, bm25)[nDCG @ 10] == pytest.approx(_BM25_ON_DL19, abs=5e-4)
    assert score > 0.61, f"nDCG@10 {score:.4f}"


def _rerank(client: httpx.Client, query: str, wanted: Candidates, documents: dict[str, str]) -> list[ScoredDoc]:
    body = {"query": query, "documents": [documents[document] for document in wanted.document_ids]}
    answer = client.post("/v2/rerank", json=body).raise_for_status().json()
    return [
        ScoredDoc(wanted.query_id, wanted.document_ids[result["index"]], -rank)
        for rank, result in enumerate(answer["results"])
    ]


def test_the_card_lists_the_files_as_they_are() -> None:
    card = (SHIPPED_REGISTRY.parent / "minilm-qa" / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\S+) \| ([\d,]+) \| ([0-9a-f]{64}) \|$", card, re.MULTILINE)
    assert "model.int8.onnx" in [name for name, _, _ in listed]
    for name, size, digest in listed:
        content = (SHIPPED_REGISTRY.parent / "minilm-qa" / name).read_bytes()
        assert (f"{len(content):,}", sha256(content).hexdigest()) == (size, digest), name


def test_the_shipped_folder_is_small_enough_to_ship() -> None:
    size = sum(path.stat().st_size for path in (SHIPPED_REGISTRY.parent / "minilm-qa").rglob("*"))
    assert 0 < size <= 25e6
