"""Whatever tokenizer_config.json says: the ids of a pair are those of transformers, or the folder is refused."""

import json
import random
from pathlib import Path
from typing import Any, Final

import pytest

from rerankd.errors import ConfigError
from rerankd.scorers import load_scorer
from rerankd.scorers.base import ScorerSpec
from tests.tiny_models import CORPUS, TOKENIZERS

pytestmark = pytest.mark.slow

_QUERIES: Final = ("Où est la CAPITALE de Österreich, 東京 or France?", "y", "numbers 3.14159 [SEP] and don't")
_DOCUMENTS: Final = (*_QUERIES, "  Wien\tist  groß  ", CORPUS[8])
_GENERIC: Final = ("PreTrainedTokenizerFast", "TokenizersBackend")
# By tokenizer: types of models and classes that may be named for it. Of other classes transformers 5 builds a tokenizer
# of its own that no version before it had; tokenizer.json counts there.
_NAMES: Final = {
    "bert": (
        ("bert", "electra", None),
        (*_GENERIC, "BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "ElectraTokenizer", None),
    ),
    "modernbert": (
        ("roberta", "modernbert", "gpt2", "longformer", None),
        (*_GENERIC, "RobertaTokenizer", "RobertaTokenizerFast", "GPT2Tokenizer", None),
    ),
    "xlmr": (("xlm-roberta", "camembert"), _GENERIC),
    "deberta": (("deberta-v2", "albert"), _GENERIC),
}
_SETTINGS: Final[dict[str, tuple[Any, ...]]] = {
    "do_lower_case": (True, False),
    "strip_accents": (True, False, None),
    "tokenize_chinese_chars": (True, False),
    "add_prefix_space": (True, False),
    "split_special_tokens": (True, False),
    "keep_accents": (True, False),
    "split_by_punct": (True, False),
    "add_bos_token": (True, False),
    "add_eos_token": (True, False),
    "clean_up_tokenization_spaces": (True, False),
    "model_input_names": (["input_ids", "attention_mask"], ["input_ids", "token_type_ids", "attention_mask"]),
    "padding_side": ("left", "right"),
}
_ROLES: Final = {
    "cls_token": ("[CLS]", "<s>"),
    "bos_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "eos_token": ("[SEP]", "</s>"),
    "unk_token": ("[UNK]", "<unk>"),
    "pad_token": ("[PAD]", "<pad>"),
}


def _write(folder: Path, dice: random.Random) -> dict[str, Any]:
    """A folder with some settings; returns what tokenizer_config.json says."""
    family = dice.choice(list(TOKENIZERS))
    tokenizer = TOKENIZERS[family]()
    types, classes = _NAMES[family]
    model_type, name = dice.choice(types), dice.choice(classes)
    segments = 2 if family == "bert" else 1
    config = {"id2label": {"0": "x"}, "pad_token_id": 0, "model_type": model_type, "type_vocab_size": segments}
    said: dict[str, Any] = {"model_max_length": 256, "tokenizer_class": name}
    said |= {
        role: token for role, tokens in _ROLES.items() for token in tokens if tokenizer.token_to_id(token) is not None
    }
    said |= {key: dice.choice(_SETTINGS[key]) for key in dice.sample(list(_SETTINGS), dice.choice([0, 1, 1, 2, 3]))}
    tokenizer.save(str(folder / "tokenizer.json"))
    for file, content in (("config.json", config), ("tokenizer_config.json", said)):
        kept = {key: value for key, value in content.items() if value is not None or key == "strip_accents"}
        (folder / file).write_text(json.dumps(kept))
    return said


@pytest.mark.parametrize("seed", range(40))
def test_a_pair_is_read_as_transformers_reads_it_or_not_at_all(seed: int, tmp_path: Path) -> None:
    from transformers import AutoTokenizer  # noqa: PLC0415 - only slow tests have it

    said = _write(tmp_path, random.Random(seed))
    try:
        scorer = load_scorer("cross-encoder", ScorerSpec(folder=tmp_path))
    except ConfigError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert any(name in refusal for name in (*said, "nothing between", "model_input_names")), refusal
        return
    oracle = AutoTokenizer.from_pretrained(tmp_path)
    segments = json.loads((tmp_path / "config.json").read_text())["type_vocab_size"] > 1
    for query in _QUERIES:
        for document in _DOCUMENTS:
            expected = oracle(query, document)
            (encoding,) = scorer.encode(query, [document], max_document_tokens=None).encodings
            assert encoding.ids.tolist() == expected["input_ids"], (said, query, document)
            if segments:
                types = [int(place >= encoding.boundary) for place in range(len(encoding.ids))]
                assert types == expected.get("token_type_ids", [0] * len(types)), said
