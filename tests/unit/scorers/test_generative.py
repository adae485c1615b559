"""Generated permutations: whatever a model writes, an order comes of it."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerankd.errors import ConfigError, InvalidRequest
from rerankd.scorers import load_list_scorer
from rerankd.scorers.base import ListScorer, ScorerSpec
from rerankd.scorers.generative import read_permutation
from tests.tokenizer_folders import SHIPPED_TEMPLATES, tokenizer_folder

NUMBERS = ["1", "2", "3", "4"]
LETTERS = ["A", "B", "C"]


@pytest.mark.parametrize(
    ("text", "identifiers", "order"),
    [
        ("[3] > [1] > [2] > [4]", NUMBERS, [2, 0, 1, 3]),
        ("[3]>[1]", NUMBERS, [2, 0, 1, 3]),
        ("3 > 1 > 2", NUMBERS, [2, 0, 1, 3]),
        ("The 4 passages are ranked: [2] > [4]", NUMBERS, [1, 3, 0, 2]),
        ("[2] > [2] > [9] > [0] > [4]", NUMBERS, [1, 3, 0, 2]),
        ("[ 2 ] > [4]", NUMBERS, [1, 3, 0, 2]),
        ("[C] > [A]", LETTERS, [2, 0, 1]),
        ("C, A, B", LETTERS, [2, 0, 1]),
        ("[1] > [2]", LETTERS, [0, 1, 2]),
        ("<think>[4] seems best</think>[2] > [1]", NUMBERS, [1, 0, 2, 3]),
        ("<think>[4] is good, but [3]", NUMBERS, [0, 1, 2, 3]),
        ("first [4] <answer>[2] > [3]</answer> so [1]", NUMBERS, [1, 2, 0, 3]),
        ("<answer>[2] > [3]", NUMBERS, [1, 2, 0, 3]),
        ("I cannot help with that.", NUMBERS, [0, 1, 2, 3]),
        ("I cannot rank these 4 passages.", NUMBERS, [0, 1, 2, 3]),
        ("Here is C.", LETTERS, [0, 1, 2]),
        ("**3**.\n", NUMBERS, [2, 0, 1, 3]),
        ("", NUMBERS, [0, 1, 2, 3]),
        ("\u0663 [\u0663] [²]", NUMBERS, [0, 1, 2, 3]),
    ],
)
def test_an_order_is_read_from_what_a_model_writes(text: str, identifiers: list[str], order: list[int]) -> None:
    assert read_permutation(text, identifiers) == order


@settings(max_examples=200)
@given(st.text(alphabet="[]<>/ thinkaswer0123456789ABC,.\n²٣", max_size=80), st.integers(1, 30))
def test_any_text_at_all_gives_a_permutation(text: str, count: int) -> None:
    assert sorted(read_permutation(text, [str(number) for number in range(1, count + 1)])) == list(range(count))


def local(folder: Path, *, max_length: int | None = None) -> ListScorer:
    options = {"template": "rank-zephyr"}
    spec = ScorerSpec(folder=folder, max_length=max_length, templates=[SHIPPED_TEMPLATES], options=options)
    return load_list_scorer("generative", spec)


def remote(folder: Path, **options: object) -> ListScorer:
    given = {"template": "rankgpt", **options}
    return load_list_scorer("generative", ScorerSpec(folder=folder, templates=[SHIPPED_TEMPLATES], options=given))


def test_what_an_endpoint_is_sent_are_messages(tmp_path: Path) -> None:
    scorer = remote(tmp_path)
    encoded = scorer.encode_window("größte [1] Stadt", ["Wien\nist es", "x " * 400], max_document_tokens=None)
    system, user = json.loads(bytes(encoded.encoding.ids.astype(np.uint8)))
    assert (system["role"], user["role"]) == ("system", "user")
    assert "[1] Wien ist es\n[2] x x" in user["content"]
    assert user["content"].count("größte (1) Stadt") == 2
    assert "[2] > [1]" in user["content"]
    limited = scorer.encode_window("q", ["x " * 400], max_document_tokens=7)
    assert limited.dropped.tolist() == [393]


def test_what_an_endpoint_writes_is_bytes(tmp_path: Path) -> None:
    outputs = np.full(40, -1, dtype=np.float32)
    written = "né [3] > [1]".encode()
    outputs[: len(written)] = list(written)
    assert remote(tmp_path).interpret_window(outputs, candidates=3).argsort()[::-1].tolist() == [2, 0, 1]
    letters = remote(tmp_path, identifiers="alphabetical")
    assert letters.interpret_window(outputs, candidates=3).tolist() == [0, 0, 0], "it names nobody"


def test_a_local_models_tokens_are_decoded(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path / "zephyr", "mistral")
    scorer = local(folder)
    from tokenizers import Tokenizer  # noqa: PLC0415 - only here

    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode("[2] > [3]", add_special_tokens=False).ids
    outputs = np.array([*ids, -1, -1], dtype=np.float32)
    assert scorer.interpret_window(outputs, candidates=3).argsort()[::-1].tolist() == [1, 2, 0]


def test_room_is_left_for_the_answer(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path / "zephyr", "mistral", max_length=900)
    scorer = local(folder)
    encoded = scorer.encode_window("q", ["word " * 300] * 4, max_document_tokens=None)
    assert 650 < len(encoded.encoding.ids) <= 700 == scorer.max_length
    with pytest.raises(ConfigError, match="reads 900 tokens, of which 200 are left to the answer"):
        local(folder, max_length=150)
    with pytest.raises(InvalidRequest, match="longer than the 700 tokens"):
        scorer.encode_window("why " * 900, ["a"], max_document_tokens=None)
    with pytest.raises(InvalidRequest, match="instruction"):
        scorer.encode_window("q", ["a"], max_document_tokens=None, instruction="x")
