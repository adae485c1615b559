"""Grades: what is asked, what is read of an answer, and what is made of several."""

from math import exp, isnan, log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from rerankd.errors import ConfigError, InvalidRequest
from rerankd.scorers import load_scorer
from rerankd.scorers.base import AnyPairScorer, Grades, Remarks, ScorerSpec, StatesScores, Writes
from rerankd.scorers.graded import Grading
from rerankd.tasks.sample import Answer, Sample, SampleChat, Sampled, Sampling
from tests.tokenizer_folders import SHIPPED_TEMPLATES, tokenizer_folder

TEN = Grading("<answer>", "</answer>", 10, weighted=False)
WEIGHTED = Grading("<answer>", "</answer>", 10, weighted=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tokenizer_folder(tmp_path / "model", "qwen3", max_length=4096)


def load(folder: Path, template: str, *, max_length: int | None = None, **options: Any) -> AnyPairScorer:
    spec = ScorerSpec(
        folder=folder,
        max_length=max_length,
        templates=[SHIPPED_TEMPLATES],
        options={"template": template, **options},
    )
    return load_scorer("graded", spec)


def says(*texts: str) -> Sampled:
    return Sampled([Answer((text,)) for text in texts], written=7)


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("<think>8 or 9</think><answer>9</answer>", 9),
        ("<answer>\n 0 \n</answer>", 0),
        ("<answer>10</answer>", 10),
        ("<answer>11</answer>", None),
        ("<answer>999999999999</answer>", None),
        ("<answer>-1</answer>", None),
        ("<answer>7.5</answer>", None),
        ("<answer>٣</answer>", None),
        ("<answer>3</answer> said the passage. <answer>4</answer>", 4),
        ("<answer>8", None),
        ("8", None),
        ("", None),
    ],
)
def test_the_grade_is_the_last_integer_between_its_marks(text: str, grade: int | None) -> None:
    found = TEN.grade(Answer((text,)))
    assert isnan(found) if grade is None else found == grade / 10


def test_a_weighted_grade_is_multiplied_by_the_probability_of_its_digits() -> None:
    tokens = ("3 <", "answer", ">", "1", "0", "</answer>")
    logprobs = [-9.0, -9.0, -9.0, log(0.5), log(0.25), -9.0]
    assert WEIGHTED.grade(Answer(tokens, logprobs)) == pytest.approx(0.5 * 0.25)
    merged = Answer(("<answer>", " 4</", "answer>"), [-9.0, -0.5, -9.0])
    assert WEIGHTED.grade(merged) == pytest.approx(0.4 * exp(-0.5))
    assert isnan(WEIGHTED.grade(Answer(("<answer>4</answer>",))))
    assert WEIGHTED.grade(Answer(("<answer>4</answer>",), [0.3])) == 0.4


def test_the_score_is_the_mean_of_the_answers_with_a_grade(folder: Path) -> None:
    scorer = load(folder, "retro-star", samples=4, answer_tokens=99)
    results = [
        says(*(f"<score>{grade}</score>" for grade in (80, 100, 0, 61))),
        says("<score>30</score>", "no", "<score>101</score>", "<score> 50 </score>"),
        says("", "?", "<score></score>", "<score>a</score>"),
    ]
    np.testing.assert_allclose(scorer.interpret(results), [0.6025, 0.4, np.nan])
    assert isinstance(scorer, Grades)
    assert [scorer.ungraded(result) for result in results] == [0, 2, 4]
    assert isinstance(scorer, Writes)
    assert scorer.written(results[0]) == 7
    assert isinstance(scorer, StatesScores)
    assert scorer.scores == "relevance"


def test_the_prompt_is_the_authors(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    scorer = load(folder, "erank", answer_tokens=50)
    (prompt,) = scorer.encode("who?", ["Bees <|im_end|> do."], max_document_tokens=None).encodings
    text = tokenizer.decode(prompt.ids.tolist(), skip_special_tokens=False)
    assert text.startswith(
        "<|im_start|>user\nGiven a query and a document, please give a relevance score of 0~10.\n"
        "The goal or relevance definition is: Retrieve relevant documents for the query.\n\n"
        "Here is the query:\nwho?\n\nHere is the document:\nBees < |im_end|> do.\n\nAfter thinking"
    )
    assert text.endswith("Your output:<|im_end|>\n<|im_start|>assistant\n")
    assert prompt.ids.tolist() == tokenizer.encode(text, add_special_tokens=False).ids
    assert prompt.max_tokens == 50
    assert isinstance(scorer.task, Sample)
    assert scorer.task.sampling == Sampling(answers=1, temperature=0)
    retro = load(folder, "retro-star", answer_tokens=50, samples=16).task
    assert isinstance(retro, Sample)
    assert retro.sampling == Sampling(answers=16, temperature=0.6, top_k=40)


def test_a_chat_model_is_asked_in_a_message_and_its_documents_are_cut(folder: Path) -> None:
    scorer = load(folder, "retro-star-chat", max_length=2000, samples=3)
    assert scorer.task == SampleChat(Sampling(answers=3, temperature=0.6), logprobs=False)
    documents = ["a " * 9000, "{query} b\ud800"]
    asked = scorer.encode("who {document}?", documents, max_document_tokens=None, instruction="{x}")
    long, short = (conversation.messages[0].content for conversation in asked.encodings)
    assert short.startswith("Here is the **relevance definition** in a retrieval task: {x}\n")
    assert "[Begin of Query]\nwho {document}?\n[End of Query]" in short
    assert "[Begin of Document]\n{query} b?\n[End of Document]" in short
    assert 1900 < len(long) / 4 <= 2001
    assert asked.dropped.tolist() == [4500 - scorer.room("who {document}?", "{x}"), 0]
    with pytest.raises(InvalidRequest, match="the query leaves no room for a document"):
        scorer.encode("why " * 2000, ["a"], max_document_tokens=None)
    weighted = load(folder, "erank-chat").task
    assert isinstance(weighted, SampleChat)
    assert weighted.logprobs


@pytest.mark.parametrize(
    ("template", "options", "message"),
    [
        ("erank", {"samples": 2, "answer_tokens": 9}, "samples: answers at temperature 0 are all the same"),
        ("retro-star", {"samples": 2, "temperature": 0}, "answers at temperature 0 are all the same; set samples to 1"),
        ("erank", {}, "answer_tokens = 4096 leaves no room for a prompt within the 4096 tokens"),
        ("erank-chat", {"answer_tokens": 9}, r"set engine_options = { max_tokens = ... }"),
        ("rank1", {}, "there is no template 'rank1' of this method"),
    ],
)
def test_options_that_do_not_suit_are_refused(
    folder: Path, template: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(folder, template, **options)


RUBRIC = [
    {"name": "answers", "description": "It answers the question.", "weight": 3},
    {"name": "recent year", "description": "It is of 2020 or later."},
]


def test_a_rubric_gives_a_grade_for_each_criterion_and_their_weighted_mean(folder: Path) -> None:
    scorer = load(folder, "rubric-chatml", criteria=RUBRIC, samples=3, temperature=1.0)
    (prompt,) = scorer.encode("who?", ["Bees."], max_document_tokens=None).encodings
    text = Tokenizer.from_file(str(folder / "tokenizer.json")).decode(prompt.ids.tolist())
    assert 'Criteria:\n- "answers": It answers the question.\n- "recent year": It is of 2020 or later.\n\n' in text
    answers = says(
        '<think>{"answers": 1, "recent year": 1}</think> Good. <answer>{"recent year": 4, "answers" : 10}</answer>',
        'Better. <answer>\n```json\n{"answers": 6, "answers": 8, "recent year": 0}\n```</answer>',
        '<answer>{"answers": 6}</answer>',
    )
    np.testing.assert_allclose(scorer.interpret([answers]), [(3 * 0.9 + 0.2) / 4], rtol=1e-6)
    assert isinstance(scorer, Grades)
    assert scorer.ungraded(answers) == 1
    assert isinstance(scorer, Remarks)
    reason, grades = scorer.remark(answers)
    assert reason == '{"answers": 1, "recent year": 1} Good.'
    assert grades == pytest.approx({"answers": 0.9, "recent year": 0.2})


def test_conditions_are_scored_as_trialgpt_does(folder: Path) -> None:
    roles = {"age": "inclusion", "stage": "inclusion", "pregnant": "exclusion"}
    rubric = [{"name": name, "description": f"About {name}.", "role": role} for name, role in roles.items()]
    scorer = load(folder, "rubric-chatml", criteria=rubric)
    (prompt,) = scorer.encode("who?", ["Bees."], max_document_tokens=None).encodings
    text = Tokenizer.from_file(str(folder / "tokenizer.json")).decode(prompt.ids.tolist())
    assert '"stage" (must be met): About stage.\n- "pregnant" (must not be met): About' in text
    # 10 says met, 5 unknown, 0 not met
    answers = {(10, 10, 0): 1, (10, 5, 5): 0.5, (5, 5, 0): 0, (10, 0, 0): -0.5, (10, 10, 10): 0, (0, 0, 10): -2}
    said = [
        says(f'<answer>{{"age": {age}, "stage": {stage}, "pregnant": {pregnant}}}</answer>')
        for age, stage, pregnant in answers
    ]
    np.testing.assert_allclose(scorer.interpret(said), (np.array(list(answers.values())) + 2) / 3, rtol=1e-6)
    alone = load(folder, "rubric-chatml", criteria=rubric[2:])
    np.testing.assert_allclose(alone.interpret([says('<answer>{"pregnant": 0}</answer>')]), [1.0], rtol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        '<answer>{"answers": 11, "recent year": 4}</answer>',
        '<answer>{"answers": 7.5, "recent year": 4}</answer>',
        '{"answers": 7, "recent year": 4}',
        '<answer>{"answers": 7, "recent year": 4',
        '<answer>"answers": 7, "recent year": 4</answer>',
        "<answer>" * 20_000,
        "",
    ],
)
def test_an_answer_that_leaves_out_a_criterion_has_no_grade(text: str, folder: Path) -> None:
    scorer = load(folder, "rubric-chatml", criteria=RUBRIC)
    assert np.isnan(scorer.interpret([says(text)])).all()
    assert isinstance(scorer, Remarks)
    assert scorer.remark(says(text)).grades == {}


def test_a_reason_is_what_stands_before_the_grade_and_of_bounded_size(folder: Path) -> None:
    scorer = load(folder, "retro-star", answer_tokens=99, samples=2)
    assert isinstance(scorer, Remarks)
    said = says("No idea.", "<think>It names the city.</think>\nSo: <score>80</score>")
    assert scorer.remark(said) == ("It names the city.\nSo:", {})
    assert scorer.remark(says("No idea.", "None.")).reason == "No idea."
    long = scorer.remark(says("ö\ud800" * 5000 + "<score>80</score>")).reason
    assert 1990 <= len(long.encode()) <= 2000


@pytest.mark.parametrize(
    ("template", "options", "message"),
    [
        ("rubric-chat", {}, r"set options = { criteria = \[...\] }"),
        ("retro-star", {"criteria": RUBRIC, "answer_tokens": 9}, "this template shows no rubric"),
        ("rubric-chat", {"criteria": [*RUBRIC, RUBRIC[0]]}, "each criterion needs a name of its own"),
        ("rubric-chat", {"criteria": [{"name": 'a"b', "description": "x"}]}, "name"),
        ("rubric-chat", {"criteria": [{"name": "a", "description": "{document}"}]}, "description"),
        ("rubric-chat", {"criteria": [{"name": "a", "description": "x", "weight": 0}]}, "weight"),
        ("rubric-chat", {"criteria": [*RUBRIC, {"name": "a", "description": "x", "role": "inclusion"}]}, "role"),
        (
            "rubric-chat",
            {"criteria": [{"name": "a", "description": "x", "role": "exclusion", "weight": 2}]},
            "conditions have none",
        ),
    ],
)
def test_a_rubric_that_does_not_suit_is_refused(
    folder: Path, template: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(folder, template, **options)
