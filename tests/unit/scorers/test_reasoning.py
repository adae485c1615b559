"""Judges that think: what is asked, and what is read of a thought that does not end."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from rerankd.errors import ConfigError, InvalidRequest
from rerankd.scorers import load_scorer
from rerankd.scorers.base import AnyPairScorer, ScorerSpec, Writes
from rerankd.scorers.reasoning import whole_sentences
from rerankd.tasks.reason import Judged, Reason
from tests.tokenizer_folders import SHIPPED_TEMPLATES, tokenizer_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tokenizer_folder(tmp_path / "model", "rank1")


def load(folder: Path, *templates: Path, **options: object) -> AnyPairScorer:
    chosen = {"template": "rank1", "answer_tokens": 100, **options}
    return load_scorer(
        "reasoning", ScorerSpec(folder=folder, templates=[*templates, SHIPPED_TEMPLATES], options=chosen)
    )


@pytest.mark.parametrize(
    ("thought", "kept"),
    [
        ("It fits. It does", "It fits."),
        ("Does it? Yes! Since", "Does it? Yes!"),
        ("no end", "no end"),
        (" All of it.\n", "All of it."),
        ("1.5 times", "1."),
        ("", ""),
    ],
)
def test_a_thought_is_cut_behind_its_last_sentence(thought: str, kept: str) -> None:
    assert whole_sentences(thought) == kept


def test_the_prompt_is_the_authors_and_a_thought_without_end_is_closed(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    scorer = load(folder)
    (prompt,) = scorer.encode("who?", ["Bees do."], max_document_tokens=None, instruction="be strict").encodings
    text = (
        "Determine if the following passage is relevant to the query. Answer only with 'true' or 'false'.\n"
        "Query: who? be strict\nPassage: Bees do.\n<think>"
    )
    assert tokenizer.decode(prompt.ids.tolist()) == text
    assert prompt.max_tokens == 100
    assert isinstance(scorer.task, Reason)
    closed = scorer.task.close(prompt.ids, " Bees are meant. And")
    assert tokenizer.decode(closed.tolist()) == f"{text}\nBees are meant.\n</think>"
    assert [tokenizer.id_to_token(token) for token in scorer.task.tokens] == [" true", " false"]
    assert scorer.task.endings == ("</think> true", "</think> false")


def test_the_score_is_the_log_odds_of_true(folder: Path) -> None:
    scorer = load(folder, activation={"scale": 2})
    judged = [Judged(np.array(logits, dtype=np.float32), written=9, thought="") for logits in ([2, 0.5], [-1, 1])]
    assert scorer.interpret(judged).tolist() == [1.5, -2]
    assert isinstance(scorer, Writes)
    assert scorer.written(judged[0]) == 9
    assert scorer.activation(np.array([0.5], dtype=np.float32)) == pytest.approx(1 / (1 + np.exp(-1)))


def test_room_is_left_for_the_thought(folder: Path) -> None:
    assert load(folder).max_length == 2048 - 100 - 16
    with pytest.raises(ConfigError, match="answer_tokens = 2000 leaves no room for a prompt within the 2048 tokens"):
        load(folder, answer_tokens=2000)
    with pytest.raises(InvalidRequest, match="shorten the query"):
        load(folder).encode("why " * 2000, ["a"], max_document_tokens=None)


def test_a_template_ends_with_plain_text(folder: Path, tmp_path: Path) -> None:
    shipped = (SHIPPED_TEMPLATES / "rank1.toml").read_text()
    (tmp_path / "ours.toml").write_text(shipped.replace('"<think>"', '"<think>{query}"'))
    with pytest.raises(ConfigError, match="its last part begins the thought, and holds no placeholder"):
        load(folder, tmp_path, template="ours")
