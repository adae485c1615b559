"""Applies settings of tokenizer_config.json that overrule tokenizer.json, as transformers does.

tokenizer.json is a complete tokenizer, but many classes of transformers build parts from tokenizer_config.json instead.
Settings that versions 4 and 5 of transformers both use are applied here in the same way. Where the versions disagree
about a score, the folder must be explicit, or is refused. Classes that use tokenizer.json unchanged ignore these
settings, and so does this module.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer
from tokenizers.normalizers import BertNormalizer, Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import ByteLevel

from rerankd.errors import ConfigError
from rerankd.recognition.files import number_of, table_of, texts_of
from rerankd.recognition.kinds import ModelFiles

# Classes that build BERT's normalisation from tokenizer_config.json, and what they take where it says nothing.
_BERT: Final = frozenset([
    "BertTokenizer", "ConvBertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "FunnelTokenizer",
    "LayoutLMTokenizer", "LxmertTokenizer", "MPNetTokenizer", "MobileBertTokenizer", "SqueezeBertTokenizer",
])  # fmt: skip
# Those that build their bytes' pre-tokenizer from it.
_BYTES: Final = frozenset([
    "BartTokenizer", "GPT2Tokenizer", "LEDTokenizer", "LongformerTokenizer", "RobertaTokenizer",
])  # fmt: skip
# How many separators these put between two texts, whatever tokenizer.json says.
_SEPARATORS: Final[Mapping[str, int]] = {
    **dict.fromkeys(_BERT, 1),
    **dict.fromkeys(_BYTES - {"GPT2Tokenizer"}, 2),
    "CamembertTokenizer": 2,
    "MPNetTokenizer": 2,
    "XLMRobertaTokenizer": 2,
}
# Which of them give segments to a model where model_input_names says nothing.
_WITH_SEGMENTS: Final = (_BERT - {"DistilBertTokenizer", "FunnelTokenizer", "MPNetTokenizer"}) | {
    "DebertaTokenizer",
    "DebertaV2Tokenizer",
}
_WITHOUT_SEGMENTS: Final = _BYTES | {
    "CamembertTokenizer",
    "DistilBertTokenizer",
    "GemmaTokenizer",
    "LlamaTokenizer",
    "MPNetTokenizer",
    "Qwen2Tokenizer",
    "XLMRobertaTokenizer",
}
# Those that take tokenizer.json as it is.
_AS_IT_IS: Final = frozenset(["PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend", "PythonBackend"])
# The class of a model whose files name none.
_USUAL: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        ["bert", "convbert", "electra", "ernie", "layoutlm", "megatron-bert", "nomic_bert"], "BertTokenizer"
    ),
    "distilbert": "DistilBertTokenizer",
    "mpnet": "MPNetTokenizer",
    "mobilebert": "MobileBertTokenizer",
    **dict.fromkeys(["data2vec-text", "ibert", "longformer", "roberta", "roberta-prelayernorm"], "RobertaTokenizer"),
    "deberta": "DebertaTokenizer",
}
# Of these models transformers takes tokenizer.json as it is, whatever class is named.
_ALWAYS_AS_IT_IS: Final = frozenset(["mistral", "modernbert", "nystromformer", "phi3", "xlm-roberta-xl"])
_BERT_SETTINGS: Final[Mapping[str, str]] = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
_BERT_DEFAULTS: Final[Mapping[str, Any]] = {
    "do_lower_case": True,
    "strip_accents": None,
    "tokenize_chinese_chars": True,
}
_SAVE_ANEW: Final = (
    "save the tokenizer again (AutoTokenizer.from_pretrained(folder).save_pretrained(folder)), or correct the file "
    "that is wrong"
)
_USED_TOKENS: Final = ("cls_token", "sep_token")


def apply_settings(tokenizer: Tokenizer, files: ModelFiles) -> None:
    """Change a tokenizer in place into the one that transformers would load from the same folder.

    Raises:
        ConfigError: the two files disagree about something that is not applied here.
    """
    said = files.tokenizer_config
    name = tokenizer_class(files)
    if name in _BERT:
        _apply_bert(tokenizer, said)
    elif name in _BYTES:
        _apply_prefix_space(tokenizer, bool(said.get("add_prefix_space", False)))
    elif name not in _AS_IT_IS:
        _refuse_disagreement(tokenizer, said, name)
    tokenizer.encode_special_tokens = bool(said.get("split_special_tokens", False))
    _check_added_tokens(tokenizer, said)
    if files.transformer.get("do_lower_case"):
        _lower_first(tokenizer)


def tokenizer_class(files: ModelFiles) -> str:
    """The class that transformers would take, without the ending Fast; one that takes tokenizer.json as it is where no
    file names any.
    """
    named = files.tokenizer_config.get("tokenizer_class") or files.config.get("tokenizer_class")
    if files.model_type in _ALWAYS_AS_IT_IS:
        return "TokenizersBackend"
    return str(named or _USUAL.get(files.model_type, "TokenizersBackend")).removesuffix("Fast")


def refuse_other_vocabulary(tokenizer: Tokenizer, files: ModelFiles) -> None:
    """Refuse a tokenizer that has more words than the model has vectors for: it is another model's.

    Raises:
        ConfigError: it has. On a GPU such a token ends the whole process.
    """
    config, source = files.config, files.folder / "config.json"
    nested = table_of(config, "text_config", of=source)
    vectors = number_of(config, "vocab_size", of=source) or number_of(nested, "vocab_size", of=source)
    words = tokenizer.get_vocab_size(with_added_tokens=False)
    if vectors is not None and words > vectors:
        raise ConfigError(
            f"{files.folder}: tokenizer.json has {words} words, and config.json says vocab_size = {vectors}: this is "
            "another model's tokenizer; copy the model's own"
        )


def refuse_other_cuts(files: ModelFiles, *, side: str) -> None:
    """Refuse a model whose texts are to be cut from the left; `side` is what its tokenizer's two files say.

    Raises:
        ConfigError: they are.
    """
    if side != "right":
        raise ConfigError(
            f"{files.folder}: by tokenizer_config.json (truncation_side) or tokenizer.json (truncation.direction) "
            f'texts are cut at the {side}, and documents are cut at their end here; set "truncation_side": "right" in '
            "tokenizer_config.json if the model may be read so (a request can ask for the left: truncation_direction "
            "of text-embeddings-inference's dialect)"
        )


def refuse_other_code(files: ModelFiles) -> None:
    """Refuse a tokenizer of its authors' own code, which is not run.

    Raises:
        ConfigError: tokenizer_config.json names one.
    """
    code = files.tokenizer_config.get("auto_map")
    if code:
        raise ConfigError(
            f"{files.folder}: tokenizer_config.json names a tokenizer of its authors' own code "
            f"({json.dumps(code):.120}), which is not run; take auto_map out of it if tokenizer.json alone reads "
            "texts the same way"
        )


def gives_segments(files: ModelFiles) -> bool:
    """Whether a tokenizer that tells two texts apart by segments gives these to its model.

    Raises:
        ConfigError: the model reads segments, and no file says whether it is given any.
    """
    names = texts_of(files.tokenizer_config, "model_input_names", of="tokenizer_config.json")
    if names:
        return "token_type_ids" in names
    name = tokenizer_class(files)
    segments = number_of(files.config, "type_vocab_size", of=files.folder / "config.json") or 0
    if name in _WITH_SEGMENTS | _WITHOUT_SEGMENTS or segments < 2:
        return name not in _WITHOUT_SEGMENTS
    raise ConfigError(
        f"{files.folder}: this model reads segments (config.json: type_vocab_size = {segments}); with its "
        "tokenizer's class version 4 of transformers gives it some and version 5 none; write into tokenizer_config.json"
        ' what it was trained with: "model_input_names" = ["input_ids", "token_type_ids", "attention_mask"], or the '
        'same without "token_type_ids"'
    )


def check_pair(files: ModelFiles, tokenizer: Tokenizer, *, head: list[int], middle: list[int], tail: list[int]) -> None:
    """Refuse a folder whose tokenizer_config.json and tokenizer.json put other tokens around a pair: by tokenizer.json
    `head` before it, `middle` within and `tail` behind it.

    Raises:
        ConfigError: they do, and transformers' class would follow tokenizer_config.json.
    """
    name = tokenizer_class(files)
    separators = _SEPARATORS.get(name, len(middle))
    if len(middle) != separators:
        between = f"{separators} separators between two texts"
        raise _disagreement(
            f"tokenizer_class = {name}, which puts {between}", f"puts {_tokens(tokenizer, middle)} there"
        )
    check_text(files, tokenizer, head=head, tail=tail)


def check_text(files: ModelFiles, tokenizer: Tokenizer, *, head: list[int], tail: list[int]) -> None:
    """The same for what is around one text.

    Raises:
        ConfigError: as `check_pair`.
    """
    name = tokenizer_class(files)
    said = files.tokenizer_config
    if name in _BERT | _BYTES:
        for key, ids in (("cls_token", head), ("sep_token", tail)):
            token = content_of(said.get(key))
            if token is not None and ids != [tokenizer.token_to_id(token)]:
                raise _disagreement(f"{key} = {token!r}", f"puts {_tokens(tokenizer, ids)} there")
    elif name in _AS_IT_IS or name.startswith(("Llama", "Gemma", "Qwen", "GPT")):
        for key, token_key, ids in (("add_bos_token", "bos_token", head), ("add_eos_token", "eos_token", tail)):
            token = content_of(said.get(token_key))
            if not isinstance(said.get(key), bool) or token is None:
                continue
            if said[key] != (tokenizer.token_to_id(token) in ids):
                raise _disagreement(f"{key} = {json.dumps(said[key])}", f"puts {_tokens(tokenizer, ids)} there")


def content_of(token: object) -> str | None:
    """The text of a token, which tokenizer configs write as a string or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _apply_bert(tokenizer: Tokenizer, said: Mapping[str, Any]) -> None:
    wanted = {name: said.get(key, _BERT_DEFAULTS[key]) for key, name in _BERT_SETTINGS.items()}
    normalizer = tokenizer.normalizer
    if isinstance(normalizer, BertNormalizer):
        if any(getattr(normalizer, name) != value for name, value in wanted.items()):
            tokenizer.normalizer = BertNormalizer(clean_text=normalizer.clean_text, **wanted)
        return
    # The class would put BERT's normalisation in the place of this one.
    for key, name in _BERT_SETTINGS.items():
        if key in said and said[key] is not None and _does(tokenizer, key) != wanted[name]:
            raise _disagreement(f"{key} = {json.dumps(said[key])}", "normalises texts otherwise")


def _apply_prefix_space(tokenizer: Tokenizer, wanted: bool) -> None:  # noqa: FBT001 - the setting's own value
    pre_tokenizer = tokenizer.pre_tokenizer
    if isinstance(pre_tokenizer, ByteLevel):
        if pre_tokenizer.add_prefix_space != wanted:
            tokenizer.pre_tokenizer = ByteLevel(
                add_prefix_space=wanted, trim_offsets=pre_tokenizer.trim_offsets, use_regex=pre_tokenizer.use_regex
            )
    elif _does(tokenizer, "add_prefix_space") != wanted:
        raise _disagreement(f"add_prefix_space = {json.dumps(wanted)}", "begins texts otherwise")


def _refuse_disagreement(tokenizer: Tokenizer, said: Mapping[str, Any], name: str) -> None:
    """Of classes that are not followed here: refuse what they would do otherwise than tokenizer.json."""
    for key in ("do_lower_case", "strip_accents", "keep_accents", "add_prefix_space", "split_by_punct"):
        value = said.get(key)
        if isinstance(value, bool) and _does(tokenizer, key) != value:
            raise _disagreement(f"{key} = {json.dumps(value)} (tokenizer_class {name})", "does not do so")


def _does(tokenizer: Tokenizer, setting: str) -> bool:
    """Whether a tokenizer already does what a setting says, found out by trying."""
    normalizer, pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer

    def normalised(text: str) -> str:
        return text if normalizer is None else str(normalizer.normalize_str(text))

    if setting == "do_lower_case":
        return "a" in normalised("A")
    if setting in ("strip_accents", "keep_accents"):
        return ("e" in normalised("\u00e9").casefold()[:1]) == (setting == "strip_accents")
    if setting == "tokenize_chinese_chars":
        return " " in normalised("漢字").strip()
    text = normalised("a.b")
    parts = [part for part, _ in pre_tokenizer.pre_tokenize_str(text)] if pre_tokenizer else [text]
    if setting == "split_by_punct":
        return len(parts) > 1
    return parts[0][:1] in ("\u0120", "\u2581")


def _check_added_tokens(tokenizer: Tokenizer, said: Mapping[str, Any]) -> None:
    """Refuse tokens with other ids than tokenizer.json's; add those that it knows as words only."""
    known = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
    added = said.get("added_tokens_decoder")
    for number, token in added.items() if isinstance(added, dict) else ():
        content = content_of(token)
        found = None if content is None else tokenizer.token_to_id(content)
        if content is not None and str(found) != str(number):
            raise _disagreement(
                f"added_tokens_decoder: {content!r} has the id {number}",
                f"gives it {'none' if found is None else found}",
            )
    for key in _USED_TOKENS:
        content = content_of(said.get(key))
        if content is None or content in known:
            continue
        if tokenizer.token_to_id(content) is None:
            raise _disagreement(f"{key} = {content!r}", "has no such token")
        tokenizer.add_special_tokens([AddedToken(content, special=True)])


def _lower_first(tokenizer: Tokenizer) -> None:
    """sentence-transformers' own `do_lower_case` puts this before everything else."""
    before = [Lowercase()]
    tokenizer.normalizer = Normalizers([*before, tokenizer.normalizer] if tokenizer.normalizer else before)


def _tokens(tokenizer: Tokenizer, ids: list[int]) -> str:
    return " ".join(repr(tokenizer.id_to_token(number)) for number in ids) or "nothing"


def _disagreement(said: str, other: str) -> ConfigError:
    return ConfigError(f"tokenizer_config.json says {said}, but tokenizer.json {other}; {_SAVE_ANEW}")
