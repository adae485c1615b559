"""Measures nDCG@10 on the evaluation sets; the card says what was chosen with these figures in view."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ir_measures
import torch
from ir_measures import nDCG

from models.recipes.minilm_qa.ranking_data import read_documents, read_grades, read_queries, read_run
from models.recipes.minilm_qa.teacher import embed

BI_ENCODER_MAX_TOKENS = 256

PairScores = Callable[[Sequence[tuple[str, str]]], Sequence[float]]


@dataclass(frozen=True)
class EvaluationSet:
    """Where a set lies under `eval/`, and how many of its queries to take."""

    name: str
    grades_file: str = "qrels.tsv"
    queries: int | None = None


EVALUATION_SETS: tuple[EvaluationSet, ...] = (
    EvaluationSet("dl19", grades_file="qrels.full.tsv"),
    EvaluationSet("dl21", grades_file="qrels.full.tsv"),
    EvaluationSet("mediqa_qa"),
    EvaluationSet("trecqa"),
    EvaluationSet("vaswani"),
    EvaluationSet("scifact"),
    EvaluationSet("cranfield"),
    EvaluationSet("squad_dev", queries=1000),
)


@dataclass(frozen=True)
class Candidates:
    """A set's judged queries with BM25's first 100 documents, as texts."""

    name: str
    grades: dict[str, dict[str, int]]
    bm25: dict[str, dict[str, float]]
    queries: dict[str, str]
    documents: dict[str, str]

    def first(self, *, pairs: int) -> "Candidates":
        """Return the same set with only its first queries, as many as have about `pairs` pairs together."""
        kept, count = list[str](), 0
        for query in self.queries:
            if count >= pairs:
                break
            kept.append(query)
            count += len(self.bm25.get(query, ()))
        return replace(
            self,
            grades={query: self.grades[query] for query in kept},
            bm25={query: self.bm25[query] for query in kept if query in self.bm25},
            queries={query: self.queries[query] for query in kept},
        )

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return [(self.queries[query], self.documents[document]) for query, document in self._keys]

    @property
    def _keys(self) -> list[tuple[str, str]]:
        return [(query, document) for query, ranked in self.bm25.items() for document in ranked]

    def run_of(self, scores: Sequence[float]) -> dict[str, dict[str, float]]:
        """Return a run from scores in the order of `pairs`."""
        run: dict[str, dict[str, float]] = {query: {} for query in self.bm25}
        for (query, document), score in zip(self._keys, scores, strict=True):
            run[query][document] = float(score)
        return run

    def ndcg(self, run: Mapping[str, Mapping[str, float]]) -> float:
        """Return nDCG@10 over all judged queries of this selection."""
        return float(ir_measures.calc_aggregate([nDCG @ 10], self.grades, run)[nDCG @ 10])


def read_candidates(data: Path, chosen: EvaluationSet, *, depth: int = 100) -> Candidates:
    folder = data / "eval" / chosen.name
    queries, documents = read_queries(folder), read_documents(folder)
    grades = read_grades(folder, chosen.grades_file)
    judged = [query for query in queries if any(grade > 0 for grade in grades.get(query, {}).values())]
    judged = judged[: chosen.queries]
    run = read_run(folder, depth=depth)
    return Candidates(
        chosen.name,
        {query: grades[query] for query in judged},
        {query: run[query] for query in judged if query in run},
        {query: queries[query].text for query in judged},
        {document: found.full_text for document, found in documents.items()},
    )


def bi_encoder_scores(pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Return the cosines of the bi-encoder that the weights come from."""
    row_of = {text: row for row, text in enumerate(dict.fromkeys(text for pair in pairs for text in pair))}
    vectors = embed(list(row_of), device=torch.device("cpu"), max_tokens=BI_ENCODER_MAX_TOKENS)
    left = vectors[[row_of[query] for query, _ in pairs]]
    right = vectors[[row_of[document] for _, document in pairs]]
    cosines: list[float] = (left * right).sum(dim=1).tolist()
    return cosines


def unanswerable_auc(data: Path, score: PairScores, *, most_pairs: int) -> float:
    """Return how surely a question that its SQuAD 2 paragraph answers scores above one that it does not.

    This is the area under the ROC curve: 0.5 is chance.
    """
    folder = data / "eval" / "squad2_dev"
    queries, documents = read_queries(folder), read_documents(folder)
    judged = [(q, d, grade) for q, graded in read_grades(folder).items() for d, grade in graded.items()]
    judged = judged[:: max(1, len(judged) // most_pairs)]
    scores = torch.tensor(score([(queries[q].text, documents[d].full_text) for q, d, _ in judged]))
    answered = torch.tensor([grade > 0 for _, _, grade in judged])
    above = (scores[answered][:, None] > scores[~answered][None, :]).float().mean()
    return float(above)


def ndcg_of(candidates: Candidates, scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return nDCG@10 of BM25 and of each ranker, whose scores are in the order of the candidates' pairs."""
    figures = {"BM25": candidates.ndcg(candidates.bm25)}
    return figures | {name: candidates.ndcg(candidates.run_of(scored)) for name, scored in scores.items()}
