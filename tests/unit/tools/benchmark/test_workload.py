"""The made-up requests: lengths, shapes, and that no two are alike unless repetition is wanted."""

import json
from itertools import islice

import pytest

from rerankd.errors import ConfigError
from rerankd.tools.benchmark.workload import Format, Shape, Words, Workload


@pytest.mark.parametrize(("text", "sizes"), [("30", (30,)), ("10+30+100", (10, 30, 100)), ("1", (1,))])
def test_a_shape_is_read_and_written(text: str, sizes: tuple[int, ...]) -> None:
    assert Shape.parse(text) == Shape(sizes)
    assert str(Shape(sizes)) == text


@pytest.mark.parametrize("text", ["", "0", "10+", "ten", "-1", "1.5", "10++30"])
def test_a_shape_without_a_number_of_documents_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a number of documents"):
        Shape.parse(text)


def test_texts_have_as_many_words_as_asked_for() -> None:
    words = Words(document=(3, 6), query=(2, 2))
    bodies = [json.loads(body.content) for body in islice(Workload(Shape((50,)), seed=1, words=words), 10)]
    lengths = {len(document.split()) for body in bodies for document in body["documents"]}
    assert lengths == {3, 4, 5, 6}
    assert {len(body["query"].split()) for body in bodies} == {2}


def test_no_text_is_ever_sent_twice() -> None:
    bodies = [json.loads(body.content) for body in islice(Workload(Shape((30,)), seed=1), 200)]
    documents = [document for body in bodies for document in body["documents"]]
    assert len({body["query"] for body in bodies}) == 200
    assert len(set(documents)) >= len(documents) - 2  # starts on the tape are drawn, and may meet


def test_a_seed_makes_the_same_requests_and_another_seed_others() -> None:
    first, again, other = (list(islice(Workload(Shape((2,)), seed=seed), 5)) for seed in (1, 1, 2))
    assert first == again
    assert not set(first) & set(other)


def test_a_mix_draws_each_size_about_equally_often() -> None:
    sizes = [body.documents for body in islice(Workload(Shape((1, 4)), seed=3), 400)]
    assert 140 < sizes.count(1) < 260
    assert set(sizes) == {1, 4}


def test_the_stated_number_of_documents_is_the_number_sent() -> None:
    for body in islice(Workload(Shape((1, 7)), seed=3), 20):
        assert len(json.loads(body.content)["documents"]) == body.documents


def test_a_share_of_requests_repeats_earlier_ones() -> None:
    bodies = list(islice(Workload(Shape((1,)), seed=3, repeat_share=0.75), 400))
    assert 60 < len(set(bodies)) < 145


def test_a_repeat_share_of_one_repeats_the_first_request_for_ever() -> None:
    assert len(set(islice(Workload(Shape((1,)), seed=3, repeat_share=1.0), 50))) == 1


def test_repetition_of_large_requests_keeps_a_bounded_number_of_them() -> None:
    workload = Workload(Shape((1,)), seed=3, repeat_share=0.01)
    bodies = list(islice(workload, 2000))
    assert len(set(bodies)) > 1900


def test_a_servers_own_format_is_written() -> None:
    format_ = Format(documents_field="texts", extra={"model": 'a "b"', "return_text": False})
    body = json.loads(next(Workload(Shape((2,)), seed=1, format=format_)).content)
    assert list(body) == ["query", "texts", "model", "return_text"]
    assert body["model"] == 'a "b"'
    assert body["return_text"] is False
