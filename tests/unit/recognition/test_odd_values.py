"""Values of types that nobody expects, in every place that is read: a model is loaded or refused, nothing breaks."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest

from rerankd.errors import ConfigError
from rerankd.recognition.weights import check_code
from rerankd.scorers import load_scorer
from rerankd.scorers.base import ScorerSpec
from tests.tiny_models import TINY_BERT

_VALUES: Final[tuple[Any, ...]] = (None, True, -1, 1.5, 10**40, "x", [], {}, ["a"], [{}], {"a": {}}, {"content": 5})
_PLACES: Final = {
    "config.json": (
        "id2label num_labels pad_token_id max_position_embeddings architectures model_type problem_type auto_map "
        "vocab_size sentence_transformers text_config type_vocab_size tokenizer_class "
        "sbert_ce_default_activation_function"
    ),
    "tokenizer_config.json": (
        "model_max_length model_input_names pad_token cls_token sep_token added_tokens_decoder auto_map chat_template "
        "do_lower_case strip_accents tokenize_chinese_chars add_prefix_space split_special_tokens truncation_side "
        "tokenizer_class add_bos_token bos_token"
    ),
    "config_sentence_transformers.json": "model_type prompts default_prompt_name activation_fn",
    "sentence_bert_config.json": "transformer_task modality_config max_seq_length do_lower_case processing_kwargs",
    "special_tokens_map.json": "pad_token",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY_BERT / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", list(_PLACES))
def test_an_odd_value_is_read_or_refused(name: str, folder: Path) -> None:
    if name == "sentence_bert_config.json":
        (folder / "modules.json").write_text(json.dumps([{"type": "st.Transformer", "path": ""}]))
    usual = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    for key in _PLACES[name].split():
        for value in _VALUES:
            (folder / name).write_text(json.dumps({**usual, key: value}))
            _load(folder)


@pytest.mark.parametrize(
    "modules", [[], [{}], [{"type": 5}], [{"type": "st.Transformer", "path": 3}], {"a": 1}, [1], "Transformer", None]
)
def test_an_odd_chain_is_refused(modules: Any, folder: Path) -> None:
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ConfigError, match=r"modules\.json"):
        load_scorer("cross-encoder", ScorerSpec(folder=folder))


def _load(folder: Path) -> None:
    with suppress(ConfigError):
        load_scorer("cross-encoder", ScorerSpec(folder=folder))
    with suppress(ConfigError):
        check_code(folder, trust_remote_code=False, loader="AutoModelForSequenceClassification")
