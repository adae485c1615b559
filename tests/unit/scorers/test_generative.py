"""Generated permutations: whatever a model writes, an order comes of it."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerankd.errors import ConfigError, InvalidRequest
from rerankd.scorers import load_list_scorer
from rerankd.scorers.base import AnyListScorer, ScorerSpec
from rerankd.scorers.generative import read_permutation
from rerankd.tasks.generate import Generate, Generated
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


def local(folder: Path, *, max_length: int | None = None) -> AnyListScorer:
    options = {"template": "rank-zephyr"}
    spec = ScorerSpec(folder=folder, max_length=max_length, templates=[SHIPPED_TEMPLATES], options=options)
    return load_list_scorer("generative", spec)


def remote(folder: Path, **options: object) -> AnyListScorer:
    given = {"template": "rankgpt", **options}
    return load_list_scorer("generative", ScorerSpec(folder=folder, templates=[SHIPPED_TEMPLATES], options=given))


def test_what_an_endpoint_is_sent_are_messages(tmp_path: Path) -> None:
    scorer = remote(tmp_path)
    encoded = scorer.encode_window("größte [1] Stadt", ["Wien\nist es", "x " * 400], max_document_tokens=None)
    system, user = encoded.encoding.messages
    assert (system.role, user.role) == ("system", "user")
    assert "[1] Wien ist es\n[2] x x" in user.content
    assert user.content.count("größte (1) Stadt") == 2
    assert "[2] > [1]" in user.content
    limited = scorer.encode_window("q", ["x " * 400], max_document_tokens=7)
    assert limited.dropped.tolist() == [393]


def test_what_is_no_unicode_does_not_reach_an_endpoint(tmp_path: Path) -> None:
    _, user = remote(tmp_path).encode_window("q\ud800", ["a"], max_document_tokens=None).encoding.messages
    assert "q?" in user.content
    user.content.encode()


def test_an_order_is_read_from_the_text_that_an_endpoint_writes(tmp_path: Path) -> None:
    written = Generated("né [3] > [1]")
    assert remote(tmp_path).interpret_window(written, candidates=3).argsort()[::-1].tolist() == [2, 0, 1]
    letters = remote(tmp_path, identifiers="alphabetical")
    assert letters.interpret_window(written, candidates=3).tolist() == [0, 0, 0], "it names none"


def test_what_an_endpoint_reads_costs_about_as_many_tokens_as_it_has(tmp_path: Path) -> None:
    scorer = remote(tmp_path)
    conversation = scorer.encode_window("q", ["a few words of English " * 40] * 5, max_document_tokens=None).encoding
    words = sum(len(message.content.split()) for message in conversation.messages)
    (cost,) = scorer.task.costs([conversation])
    assert words < cost < 2 * words


def test_a_prompt_that_no_endpoint_could_read_is_refused_by_its_characters(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="longer than the 2000000 characters"):
        remote(tmp_path).encode_window("why " * 600_000, ["a"], max_document_tokens=None)


def test_a_local_models_tokens_are_decoded_without_special_ones(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path / "zephyr", "mistral")
    task = local(folder).task
    assert isinstance(task, Generate)
    from tokenizers import Tokenizer  # noqa: PLC0415 - only here

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode("[2] > [3]", add_special_tokens=False).ids
    assert task.decode([*ids, tokenizer.token_to_id("</s>")]) == "[2] > [3]"


def test_room_is_left_for_the_answer(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path / "zephyr", "mistral", max_length=900)
    scorer = local(folder)
    encoded = scorer.encode_window("q", ["word " * 300] * 4, max_document_tokens=None)
    assert 650 < len(encoded.encoding.ids) <= 700 == scorer.max_length
    assert encoded.encoding.max_tokens == 200
    with pytest.raises(ConfigError, match="reads 900 tokens, of which 200 are left to the answer"):
        local(folder, max_length=150)
    with pytest.raises(InvalidRequest, match="longer than the 700 tokens"):
        scorer.encode_window("why " * 900, ["a"], max_document_tokens=None)
    with pytest.raises(InvalidRequest, match="instruction"):
        scorer.encode_window("q", ["a"], max_document_tokens=None, instruction="x")


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("hm, [3] or [1]?</think>\n\n[3] > [2] = [1]", [-2, -1, 0]),
        ("[2] is good, and so is [1], but", [0, 0, 0]),
        ("hm</think>none", [0, 0, 0]),
    ],
)
def test_a_thought_that_the_prompt_begins_is_no_answer(text: str, scores: list[float], tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path / "qwen", "qwen3", max_length=8192)
    spec = ScorerSpec(folder=folder, templates=[SHIPPED_TEMPLATES], options={"template": "rank-k"})
    scorer = load_list_scorer("generative", spec)
    assert scorer.interpret_window(Generated(text), candidates=3).tolist() == scores
    assert scorer.max_length == 8192 - 4000
