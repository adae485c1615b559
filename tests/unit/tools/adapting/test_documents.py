"""Which documents are asked about, and the queries that are made of them."""

import numpy as np
import pytest

from rerankd.tools.adapting.candidates import FirstStage, group_of, is_found
from rerankd.tools.adapting.lessons import Document, Lesson
from rerankd.tools.adapting.sampling import choose_documents, k_means, marginal_relevance
from rerankd.tools.adapting.templates import template_lessons
from rerankd.tools.adapting.writing import query_in


def _unit(vectors: np.ndarray) -> np.ndarray:
    units: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return units


def _blobs(*sizes: int) -> np.ndarray:
    """Vectors near the axes, of these numbers."""
    rng = np.random.default_rng(5)
    return _unit(np.repeat(np.eye(len(sizes)), sizes, axis=0) + rng.normal(scale=0.02, size=(sum(sizes), len(sizes))))


def test_k_means_finds_separate_topics() -> None:
    vectors = _blobs(10, 20, 30)
    # Of some draws of first centroids: k-means may end in a poor optimum, where a topic has two.
    found = [k_means(vectors, 3, np.random.default_rng(seed))[0] for seed in range(10)]
    of_topic = [{frozenset(np.flatnonzero(one == cluster).tolist()) for cluster in range(3)} for one in found]
    assert {frozenset(range(10)), frozenset(range(10, 30)), frozenset(range(30, 60))} in of_topic


def test_a_topic_gives_as_many_documents_as_its_share() -> None:
    chosen = choose_documents(_blobs(20, 60), 8, seed=1)
    assert len(chosen) == len(set(chosen)) == 8
    assert sum(place < 20 for place in chosen) == 2
    assert chosen == choose_documents(_blobs(20, 60), 8, seed=1)


@pytest.mark.parametrize("count", [4, 5, 9])
def test_a_small_corpus_is_chosen_whole(count: int) -> None:
    assert choose_documents(_blobs(2, 2), count, seed=1) == [0, 1, 2, 3]


def test_marginal_relevance_takes_no_copies() -> None:
    vectors = _unit(np.array([[1.0, 0.0], [1.0, 0.0], [0.7, 0.7]]))
    assert marginal_relevance(vectors, np.array([1.0, 1.0, 0.8]), 2).tolist() == [0, 2]


_LAYER = "The boundary layer is a thin region near the wall. It grows along a flat plate in a stream. Heat passes it."


def test_every_kind_of_query_is_taken_from_its_document() -> None:
    corpus = {str(number): Document(f"On layers {number}", f"{number} first. {_LAYER}") for number in range(60)}
    lessons = template_lessons(corpus, corpus, seed=3)
    queries = {lesson.query for lesson in lessons}
    assert "what is boundary layer?" in queries
    assert any(query.startswith("On layers") for query in queries)
    assert "It grows along a flat plate in a stream." in queries
    assert any(query.startswith(("boundary layer", "grows")) for query in queries)
    for lesson in lessons:
        [text] = lesson.reads.values()
        assert lesson.query not in text
    assert template_lessons(corpus, corpus, seed=3) == lessons


def test_sentences_without_capitals_are_taken_one_by_one() -> None:
    text = "heat flow in a slab was measured . the result agrees with known theory . a table of it is given below ."
    [lesson] = template_lessons(["x"], {"x": Document("", text)}, seed=1)
    assert lesson.reads["x"].count(" .") == 2
    assert all(word in text.split() for word in lesson.query.split())


@pytest.mark.parametrize(("words", "taken"), [(11, 0), (12, 4), (30, 10), (90, 12)])
def test_of_a_text_of_one_sentence_a_run_of_words_is_taken(words: int, taken: int) -> None:
    text = [f"word{number}" for number in range(words)]
    queries = [
        (lesson.query.split(), lesson.reads["x"].split())
        for seed in range(8)
        for lesson in template_lessons(["x"], {"x": Document("", " ".join(text))}, seed=seed)
    ]
    assert len(queries) == (8 if taken else 0)
    for query, rest in queries:
        start = text.index(query[0])
        assert query == text[start : start + taken]
        assert rest == text[:start] + text[start + taken :]


@pytest.mark.parametrize("document", [Document("", "One sentence."), Document("", ""), Document("Title", "  ")])
def test_a_document_with_nothing_to_take_gives_no_query(document: Document) -> None:
    assert template_lessons(["x"], {"x": document}, seed=1) == []


_CORPUS = {f"d{number}": Document("", f"wing flow number{number} " + "flow " * (9 - number)) for number in range(9)}


def _lesson(**changes: object) -> Lesson:
    fields = {"query_id": "q", "query": "flow number3", "gains": {"d3": 1.0}, "family": "f", **changes}
    return Lesson(**fields)  # type: ignore[arg-type]


def test_candidates_come_from_bm25_and_negatives_from_their_tail() -> None:
    lesson = FirstStage(_CORPUS).with_candidates(_lesson(), depth=9)
    assert lesson.candidates[0] == "d3"
    assert len(lesson.candidates) == 9
    assert is_found(lesson)
    group = group_of(lesson, _CORPUS, None, seed=1)
    others = [name for name in lesson.candidates if name != "d3"]
    assert list(group.negatives) == [_CORPUS[name].text for name in others[4:]]
    assert group.easiness == 1.0


def test_a_teacher_drops_what_it_scores_as_high_as_a_relevant_document() -> None:
    lesson = _lesson(candidates=[f"d{number}" for number in range(9)])
    scores = {f"d{number}": float(-number) for number in range(9)}
    group = group_of(lesson, _CORPUS, {"q": scores}, seed=1)
    assert list(group.negatives) == [_CORPUS[f"d{number}"].text for number in range(4, 9)]
    assert group.easiness == 1 / 4
    assert group.teacher[_CORPUS["d3"].text] == -3.0


def test_where_few_candidates_are_negatives_others_join_them() -> None:
    group = group_of(_lesson(candidates=["d3"]), _CORPUS, None, seed=1)
    assert len(group.negatives) >= 4
    assert _CORPUS["d3"].text not in group.negatives


@pytest.mark.parametrize(
    ("answer", "query"),
    [
        ("how do wings lift", "how do wings lift"),
        ('\n Query: "how do wings lift"\nSure!', "how do wings lift"),
        ("Search query: wing lift", "wing lift"),
        ("wing", ""),
        ("", ""),
        ("word " * 40, ""),
    ],
)
def test_the_query_of_an_answer(answer: str, query: str) -> None:
    assert query_in(answer) == query
