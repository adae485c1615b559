"""Which parts of a document speak of a query's words."""

import numpy as np
import pytest

from rerankd.pipeline.query_words import extract, overlaps, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Größe, and SIZE: 3.5!", ["größe", "and", "size", "3", "5"]),
        ("東京は日本", ["東", "京", "は", "日", "本"]),
        ("abc東京", ["abc", "東", "京"]),
        (" \n-", []),
    ],
)
def test_words_of_every_script(text: str, words: list[str]) -> None:
    assert words_of(text) == words


def test_rare_words_and_short_parts_count_more() -> None:
    parts = ["tea and tea", "tea and coffee", "tea", "tea and coffee and many other drinks of the world", "nothing"]
    query = words_of("tea coffee")
    scores = overlaps(query, parts)
    assert scores[1] > scores[3] > scores[0]
    assert scores[4] == 0
    assert overlaps([], parts).tolist() == [0] * 5
    assert overlaps(query, [""]).tolist() == [0]


def _by_definition(query: str, parts: list[str], room: int) -> list[int]:
    """The greedy choice once more, over the whole lists in every round."""
    weights = {
        word: float(np.log(1 + (len(parts) - count + 0.5) / (count + 0.5)))
        for word in set(query.split())
        if (count := sum(word in part.split() for part in parts))
    }
    chosen: list[int] = []
    while True:
        fitting = [
            (sum(weight for word, weight in weights.items() if word in part.split()), -index)
            for index, part in enumerate(parts)
            if index not in chosen and len(part.split()) <= room
        ]
        if not fitting:
            return sorted(chosen)
        _, place = max(fitting)
        chosen.append(-place)
        room -= len(parts[-place].split())
        for word in weights.keys() & set(parts[-place].split()):
            weights[word] /= 2


@pytest.mark.parametrize("room", [0, 1, 3, 5, 8, 12, 100])
def test_an_extract_is_the_greedy_cover(room: int) -> None:
    parts = [
        "title of all",
        "bees make honey",
        "bees bees bees",
        "a hive",
        "wasps make nothing at all",
        "honey is sweet",
    ]
    lengths = [len(part.split()) for part in parts]
    chosen = extract(words_of("honey bees hive"), parts, lengths, room=room)
    assert chosen == _by_definition("honey bees hive", parts, room)
    assert sum(lengths[index] for index in chosen) <= room
    assert (chosen == list(range(len(parts)))) is (room >= sum(lengths))


def test_without_query_words_the_beginning_is_read() -> None:
    assert extract(["x"], ["a b", "c d", "e f"], [2, 2, 2], room=4) == [0, 1]
