"""Folders of language models: what sentence-transformers wrote there is what the template says, or it is refused."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rerankd.errors import ConfigError
from rerankd.scorers import load_list_scorer, load_scorer
from rerankd.scorers.base import ScorerSpec
from rerankd.scorers.yes_no import YesNo
from tests.tokenizer_folders import SHIPPED_TEMPLATES, tokenizer_folder

Change = Callable[[Path], object]

_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
    {"idx": 1, "name": "1", "path": "1_LogitScore", "type": "sentence_transformers.cross_encoder.modules.LogitScore"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tokenizer_folder(tmp_path, "qwen3")


def yes_no(folder: Path, **options: Any) -> YesNo:
    options = {"template": "qwen3-reranker", **options}
    return YesNo.load(ScorerSpec(folder=folder, templates=[SHIPPED_TEMPLATES], options=options))


def said(folder: Path, name: str, content: object) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))


def reads_answers(folder: Path, ids: Mapping[str, int | None]) -> None:
    said(folder, "modules.json", _MODULES)
    said(folder, "1_LogitScore/config.json", ids)


def test_answer_tokens_that_are_the_templates_are_well(folder: Path) -> None:
    yes, no = yes_no(folder).task.tokens
    reads_answers(folder, {"true_token_id": yes, "false_token_id": no})
    assert yes_no(folder).task.outputs == 2


@pytest.mark.parametrize("ids", [(1, 0), (0, None), (0, 5)])
def test_other_answer_tokens_than_the_templates_are_refused(folder: Path, ids: tuple[int, int | None]) -> None:
    tokens = [*yes_no(folder).task.tokens, None, None, None, 77]
    true, false = ids
    reads_answers(folder, {"true_token_id": tokens[true], "false_token_id": None if false is None else tokens[false]})
    with pytest.raises(ConfigError, match=r"modules\.json .*the template reads .*write a template"):
        yes_no(folder)


def test_an_answer_token_that_is_no_number_is_refused(folder: Path) -> None:
    reads_answers(folder, {"true_token_id": "yes"})  # type: ignore[dict-item] # that is what is wrong
    with pytest.raises(ConfigError, match=r"true_token_id is \"yes\"; it must be a whole number"):
        yes_no(folder)


def test_another_default_instruction_than_the_templates_is_a_choice_of_the_operator(folder: Path) -> None:
    prompts = {"prompts": {"web": "Judge as a lawyer would."}, "default_prompt_name": "web"}
    said(folder, "config_sentence_transformers.json", prompts)
    with pytest.raises(ConfigError, match=r"Judge as a lawyer would.*options = \{ instruction"):
        yes_no(folder)
    assert "lawyer" in yes_no(folder, instruction="Judge as a lawyer would.").fingerprint


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        ("Qwen3ForSequenceClassification", 'scorer = "cross-encoder"'),
        ("JinaForRanking", "JinaForRanking"),
        ("BertForMaskedLM", "ForCausalLM"),
    ],
)
@pytest.mark.parametrize("scorer", ["yes-no", "first", "generative"])
def test_what_is_no_language_model_is_refused_by_every_scorer_of_them(
    folder: Path, scorer: str, architecture: str, message: str
) -> None:
    templates = {"yes-no": "qwen3-reranker", "first": "first-qwen3", "generative": "rank-zephyr"}
    said(folder, "config.json", {"architectures": [architecture], "max_position_embeddings": 2048})
    spec = ScorerSpec(folder=folder, templates=[SHIPPED_TEMPLATES], options={"template": templates[scorer]})
    with pytest.raises(ConfigError, match=message):
        load_scorer(scorer, spec) if scorer == "yes-no" else load_list_scorer(scorer, spec)
