"""What is known is not tokenised again; memory stays bounded; threads do not disturb one another."""

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from app.scorers.token_cache import DocumentTokens, TokenCache


class _Tokenizer:
    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, documents: Sequence[str], room: int) -> list[DocumentTokens]:
        self.asked.append(list(documents))
        ids = [np.array([int(word) for word in text.split()], dtype=np.int32) for text in documents]
        return [DocumentTokens(each[:room], len(each)) for each in ids]


def _get(cache: TokenCache, tokenize: _Tokenizer, *documents: str, room: int = 8) -> list[list[int]]:
    return [tokens.ids.tolist() for tokens in cache.get(documents, lambda texts: tokenize(texts, room), room=room)]


def test_only_unknown_documents_are_tokenised_in_one_call() -> None:
    cache, tokenize = TokenCache(max_tokens=100), _Tokenizer()
    assert _get(cache, tokenize, "1 2", "3") == [[1, 2], [3]]
    assert _get(cache, tokenize, "4", "1 2", "5", "3") == [[4], [1, 2], [5], [3]]
    assert tokenize.asked == [["1 2", "3"], ["4", "5"]]


def test_nothing_unknown_is_no_call() -> None:
    cache, tokenize = TokenCache(max_tokens=100), _Tokenizer()
    _get(cache, tokenize, "1")
    assert _get(cache, tokenize, "1", "1") == [[1], [1]]
    assert len(tokenize.asked) == 1


def test_a_document_cut_elsewhere_is_another_one() -> None:
    cache, tokenize = TokenCache(max_tokens=100), _Tokenizer()
    assert _get(cache, tokenize, "1 2 3", room=2) == [[1, 2]]
    assert _get(cache, tokenize, "1 2 3", room=1) == [[1]]
    assert _get(cache, tokenize, "1 2 3", room=2) == [[1, 2]]
    assert len(tokenize.asked) == 2


def test_a_whole_document_is_known_beside_queries_of_all_lengths() -> None:
    cache, tokenize = TokenCache(max_tokens=100), _Tokenizer()
    assert _get(cache, tokenize, "1 2 3", room=2) == [[1, 2]]
    for room in (3, 9, 1):
        assert _get(cache, tokenize, "1 2 3", room=room)[0][:room] == [1, 2, 3][:room]
    assert len(tokenize.asked) == 2


def test_the_least_recently_used_go_when_there_are_too_many_tokens() -> None:
    cache, tokenize = TokenCache(max_tokens=4), _Tokenizer()
    _get(cache, tokenize, "1 1", "2 2")
    _get(cache, tokenize, "1 1")
    _get(cache, tokenize, "3")
    assert cache.tokens == 3
    tokenize.asked.clear()
    _get(cache, tokenize, "1 1", "3", "2 2")
    assert tokenize.asked == [["2 2"]]


def test_equal_documents_in_one_call_count_once() -> None:
    cache = TokenCache(max_tokens=100)
    assert _get(cache, _Tokenizer(), "1 2 3", "1 2 3") == [[1, 2, 3], [1, 2, 3]]
    assert cache.tokens == 3


def test_a_document_larger_than_the_cache_is_not_kept() -> None:
    cache, tokenize = TokenCache(max_tokens=2), _Tokenizer()
    assert _get(cache, tokenize, "1 2 3") == [[1, 2, 3]]
    assert cache.tokens == 0


def test_threads_do_not_disturb_one_another() -> None:
    cache, tokenize = TokenCache(max_tokens=50), _Tokenizer()

    def work(seed: int) -> bool:
        rng = random.Random(seed)
        for _ in range(200):
            numbers = [rng.randrange(40) for _ in range(5)]
            if _get(cache, tokenize, *map(str, numbers)) != [[number] for number in numbers]:
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))
    assert cache.tokens <= 50
