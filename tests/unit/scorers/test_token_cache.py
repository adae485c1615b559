"""What is known is not tokenized again; memory stays bounded; threads do not disturb one another."""

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import pytest

from rerankd.cache.lru import ENTRY_BYTES
from rerankd.scorers.token_cache import DocumentTokens, TokenCache

# What a document takes beside its ids.
_ENTRY: Final = ENTRY_BYTES + 304


class _Tokenizer:
    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def __call__(self, documents: Sequence[str], room: int) -> list[DocumentTokens]:
        self.asked.append(list(documents))
        ids = [np.array([int(word) for word in text.split()], dtype=np.int32) for text in documents]
        return [DocumentTokens(each[:room], len(each)) for each in ids]


def _get(cache: TokenCache, tokenize: _Tokenizer, *documents: str, room: int = 8, owner: str = "") -> list[list[int]]:
    found = cache.get(documents, lambda texts: tokenize(texts, room), room=room, owner=owner)
    return [tokens.ids.tolist() for tokens in found]


def test_only_unknown_documents_are_tokenized_in_one_call() -> None:
    cache, tokenize = TokenCache(max_bytes=10**6), _Tokenizer()
    assert _get(cache, tokenize, "1 2", "3") == [[1, 2], [3]]
    assert _get(cache, tokenize, "4", "1 2", "5", "3") == [[4], [1, 2], [5], [3]]
    assert tokenize.asked == [["1 2", "3"], ["4", "5"]]


def test_nothing_unknown_is_no_call() -> None:
    cache, tokenize = TokenCache(max_bytes=10**6), _Tokenizer()
    _get(cache, tokenize, "1")
    assert _get(cache, tokenize, "1", "1") == [[1], [1]]
    assert len(tokenize.asked) == 1


def test_a_document_cut_elsewhere_is_another_one() -> None:
    cache, tokenize = TokenCache(max_bytes=10**6), _Tokenizer()
    assert _get(cache, tokenize, "1 2 3", room=2) == [[1, 2]]
    assert _get(cache, tokenize, "1 2 3", room=1) == [[1]]
    assert _get(cache, tokenize, "1 2 3", room=2) == [[1, 2]]
    assert len(tokenize.asked) == 2


def test_a_whole_document_is_known_beside_queries_of_all_lengths() -> None:
    cache, tokenize = TokenCache(max_bytes=10**6), _Tokenizer()
    assert _get(cache, tokenize, "1 2 3", room=2) == [[1, 2]]
    for room in (3, 9, 1):
        assert _get(cache, tokenize, "1 2 3", room=room)[0][:room] == [1, 2, 3][:room]
    assert len(tokenize.asked) == 2


def test_the_least_recently_used_go_when_there_are_too_many_tokens() -> None:
    cache, tokenize = TokenCache(max_bytes=2 * _ENTRY + 16), _Tokenizer()
    _get(cache, tokenize, "1 1", "2 2")
    _get(cache, tokenize, "1 1")
    _get(cache, tokenize, "3")
    assert cache.size == 2 * _ENTRY + 3 * 4
    tokenize.asked.clear()
    _get(cache, tokenize, "1 1", "3", "2 2")
    assert tokenize.asked == [["2 2"]]


def test_equal_documents_in_one_call_count_once() -> None:
    cache = TokenCache(max_bytes=10**6)
    assert _get(cache, _Tokenizer(), "1 2 3", "1 2 3") == [[1, 2, 3], [1, 2, 3]]
    assert cache.size == _ENTRY + 3 * 4


def test_a_document_larger_than_the_cache_is_not_kept() -> None:
    cache, tokenize = TokenCache(max_bytes=_ENTRY), _Tokenizer()
    assert _get(cache, tokenize, "1 2 3") == [[1, 2, 3]]
    assert cache.size == 0


def test_threads_do_not_disturb_one_another() -> None:
    cache, tokenize = TokenCache(max_bytes=30 * _ENTRY), _Tokenizer()

    def work(seed: int) -> bool:
        rng = random.Random(seed)
        for _ in range(200):
            numbers = [rng.randrange(40) for _ in range(5)]
            if _get(cache, tokenize, *map(str, numbers)) != [[number] for number in numbers]:
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(8)))
    assert cache.size <= 30 * _ENTRY


def test_what_one_owner_asked_for_is_not_known_to_another() -> None:
    cache, tokenize = TokenCache(max_bytes=10**6), _Tokenizer()
    _get(cache, tokenize, "1 2", owner="a")
    _get(cache, tokenize, "1 2", owner="b")
    _get(cache, tokenize, "1 2", owner="a")
    assert tokenize.asked == [["1 2"], ["1 2"]]


def test_an_owner_that_asks_much_does_not_push_out_what_another_has() -> None:
    cache, tokenize = TokenCache(max_bytes=100 * _ENTRY), _Tokenizer()
    _get(cache, tokenize, *map(str, range(40)), owner="light")
    for number in range(1000):
        _get(cache, tokenize, str(number), owner="heavy")
    tokenize.asked.clear()
    _get(cache, tokenize, *map(str, range(40)), owner="light")
    assert tokenize.asked == []


def test_what_is_beyond_the_characters_that_are_read_makes_no_other_document_but_its_length_does() -> None:
    cache, asked = TokenCache(max_bytes=10**6), list[str]()

    def tokenize(texts: Sequence[str]) -> list[DocumentTokens]:
        asked.extend(texts)
        return [DocumentTokens(np.array([1], dtype=np.int32), len(text)) for text in texts]

    for text in ("a" * 20, "a" * 10 + "b" * 10, "a" * 21, "a" * 10, "a" * 10 + "\x00" * 7 + "\x14"):
        cache.get([text], tokenize, room=1, most=10)
    assert list(map(len, asked)) == [20, 21, 10, 18]


_FILL = """
import json, resource, sys
from pathlib import Path
import numpy as np
from rerankd.scorers.token_cache import DocumentTokens, TokenCache

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

tokens = int(sys.argv[1])
cache = TokenCache(max_bytes=32 * 2**20)
before = resident()
def tokenize(texts):
    # As many as were asked for, and a number of its own for each.
    return [DocumentTokens(np.zeros(tokens, dtype=np.int32), 10**6 + int(text)) for text in texts]
for number in range(0, 120_000, 100):
    cache.get([str(one) for one in range(number, number + 100)], tokenize, room=tokens)
print(json.dumps((resident() - before) / 2**20))
"""


@pytest.mark.parametrize("tokens", [0, 1, 5, 500])
def test_whatever_documents_come_the_memory_is_bounded(tokens: int) -> None:
    done = subprocess.run([sys.executable, "-c", _FILL, str(tokens)], capture_output=True, check=True, timeout=120)
    assert json.loads(done.stdout) < 32 * 1.2
