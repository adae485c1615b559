"""What is learnt from, what is held out, and that no query is on both sides."""

import json
from pathlib import Path

import pytest

from rerankd.errors import ConfigError
from rerankd.tools.adapting.lessons import (
    Document,
    Lesson,
    data_set,
    judged_lessons,
    read_corpus,
    renumbered,
    split,
    without,
)

_CORPUS = {"a": Document("Title", "Text."), "b": Document("", "Other.")}


def _lesson(number: int, family: str) -> Lesson:
    return Lesson(query_id=str(number), query=f"query {number}", gains={"a": 1.0}, family=family)


def test_queries_of_one_document_are_never_on_both_sides() -> None:
    lessons = [_lesson(number, family=str(number // 4)) for number in range(400)]
    learnt, held_out = split(lessons, seed=1, most_held_out=1000)
    assert not {one.family for one in learnt} & {one.family for one in held_out}
    assert len(learnt) + len(held_out) == 400
    assert 40 < len(held_out) < 130
    again, _ = split(lessons[::-1], seed=1, most_held_out=1000)
    assert {one.query_id for one in again} == {one.query_id for one in learnt}
    assert {one.query_id for one in split(lessons, seed=2, most_held_out=1000)[0]} != {one.query_id for one in learnt}


def test_too_few_queries_to_split_are_an_error() -> None:
    with pytest.raises(ConfigError, match="1 queries are too few"):
        split([_lesson(1, "x")], seed=1, most_held_out=9)


def test_what_the_proof_asks_is_not_learnt() -> None:
    lessons = [_lesson(1, "x"), _lesson(2, "y")]
    asked = data_set([Lesson(query_id="z", query="Query  2", gains={"a": 1.0}, family="z")], _CORPUS, name="set")
    assert without(lessons, [asked]) == lessons[:1]


def test_a_document_reads_without_what_its_query_was_taken_from() -> None:
    lesson = Lesson(
        query_id="q", query="title", gains={"a": 0.5}, family="a", reads={"a": "Text."}, candidates=["b", "a"]
    )
    made = data_set([lesson], _CORPUS, name="set")
    [question] = made.questions
    assert [made.texts[name] for name in question.document_ids] == ["Other.", "Text."]
    assert [question.grades.get(name, 0) for name in question.document_ids] == [0, 50]
    assert made.texts["a"] == "Title. Text."


def test_equal_queries_are_asked_once() -> None:
    twice = [_lesson(1, "x"), Lesson(query_id="2", query="QUERY 1", gains={"b": 1.0}, family="y"), _lesson(3, "z")]
    assert [one.query_id for one in renumbered(twice, prefix="n")] == ["n0", "n1"]
    assert [one.gains for one in renumbered(twice, prefix="n")] == [{"a": 1.0}, {"a": 1.0}]


def test_grades_become_shares_of_the_highest(tmp_path: Path) -> None:
    queries = tmp_path / "queries.jsonl"
    queries.write_text('{"id": "1", "text": "one"}\n{"id": "2", "text": "two"}\n')
    grades = {"1": {"a": 2, "b": 4, "away": 4}, "2": {"a": 0, "b": -1}, "3": {"a": 4}}
    [lesson] = judged_lessons(grades, queries, _CORPUS)
    assert (lesson.query, lesson.gains) == ("one", {"a": 0.5, "b": 1.0})
    with pytest.raises(ConfigError, match="judged relevant document"):
        judged_lessons({"2": {"a": 0}}, queries, _CORPUS)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds 0 documents"),
        ([{"id": 1, "text": "alone"}], "holds 1 documents"),
        ([{"id": 1}], "id, text"),
        ([{"id": 1, "text": None}], "must be strings"),
        ([{"id": 1, "text": "x", "title": 7}], "must be strings"),
    ],
)
def test_a_corpus_that_cannot_be_used_is_an_error(tmp_path: Path, lines: list[object], message: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ConfigError, match=message):
        read_corpus(path)
