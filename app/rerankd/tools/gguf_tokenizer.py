"""Writes the tokenizer of a GGUF file as tokenizer.json.

A GGUF file holds the vocabulary and the merges. How a text is split before they apply is only named
(`tokenizer.ggml.pre`). The names that are converted are listed here with what they mean; others are refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from rerankd.errors import ConfigError
from rerankd.tools.gguf_files import GgufFile

_CONTROL: Final = 3
_USER_DEFINED: Final = 4
_SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORDS: Final = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _by_pattern(pattern: str) -> pre_tokenizers.PreTokenizer:
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior="isolated"), bytes_only])


_PRE_TOKENIZERS: Final[Mapping[str, pre_tokenizers.PreTokenizer]] = {
    "gpt-2": _WORDS,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _WORDS]),
    "llama-bpe": _by_pattern(_SPLIT.replace("DIGITS", "{1,3}")),
    "qwen2": _by_pattern(_SPLIT.replace("DIGITS", "")),
}
# Their authors' tokenizers take a whole word of the vocabulary before any merge, or compose characters first.
_WHOLE_WORDS_FIRST: Final = "llama-bpe"
_COMPOSED: Final = "qwen2"
_ROLES: Final[Mapping[str, str]] = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


def read_tokenizer(file: GgufFile) -> Tokenizer:
    """The tokenizer of a model's authors, from what the file says.

    Raises:
        ConfigError: it is of another kind than byte-level BPE, or splits texts in a way that is not known here.
    """
    kind, split = (str(file.says.get(f"tokenizer.ggml.{key}")) for key in ("model", "pre"))
    if kind != "gpt2" or split not in _PRE_TOKENIZERS:
        raise ConfigError(
            f"{file.path} has a tokenizer {kind!r} that splits texts by {split!r}, which is not converted (known: "
            f"'gpt2' by {', '.join(_PRE_TOKENIZERS)}); serve the repository that the file was made from"
        )
    tokens, merges = (_texts(file, key) for key in ("tokens", "merges"))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    if len(vocabulary) != len(tokens) or any(
        part not in vocabulary for left, right in pairs for part in (left, right, left + right)
    ):
        raise ConfigError(f"{file.path}: its merges do not fit its vocabulary; download it again")
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=split == _WHOLE_WORDS_FIRST))
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[split]
    tokenizer.decoder = decoders.ByteLevel()
    if split == _COMPOSED:
        tokenizer.normalizer = normalizers.NFC()
    _add_markup(tokenizer, tokens, file)
    _add_beginning(tokenizer, tokens, file)
    return tokenizer


def tokenizer_config(file: GgufFile) -> dict[str, Any]:
    """tokenizer_config.json: the length, and which tokens have a role."""
    tokens = _texts(file, "tokens")
    named = {role: key for role, key in _ROLES.items() if f"tokenizer.ggml.{key}_token_id" in file.says}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": file.size("context_length"),
        "clean_up_tokenization_spaces": False,
        **{f"{role}_token": tokens[_id_of(key, tokens, file)] for role, key in named.items()},
    }


def _texts(file: GgufFile, key: str) -> Sequence[str]:
    found = file.says.get(f"tokenizer.ggml.{key}")
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise ConfigError(f"{file.path} holds no tokenizer.ggml.{key}; download it again")
    return found


def _id_of(key: str, tokens: Sequence[str], file: GgufFile) -> int:
    """The place in the vocabulary of the token with a role."""
    number = file.says.get(f"tokenizer.ggml.{key}_token_id")
    if not isinstance(number, int) or not 0 <= number < len(tokens):
        raise ConfigError(
            f"{file.path} says tokenizer.ggml.{key}_token_id = {number!r:.60}, and has {len(tokens)} tokens; download "
            "it again"
        )
    return number


def _add_markup(tokenizer: Tokenizer, tokens: Sequence[str], file: GgufFile) -> None:
    """Mark the tokens that are never cut into pieces. Control tokens are special ones."""
    kinds = file.says.get("tokenizer.ggml.token_type", [])
    if not isinstance(kinds, list):
        raise ConfigError(f"{file.path} says tokenizer.ggml.token_type = {kinds!r:.60}; download it again")
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        marked = [token for token, found in zip(tokens, kinds, strict=False) if found == kind]
        tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in marked])


def _add_beginning(tokenizer: Tokenizer, tokens: Sequence[str], file: GgufFile) -> None:
    """Begin every text with a token, where the file says so."""
    if file.says.get("tokenizer.ggml.add_bos_token"):
        number = _id_of("bos", tokens, file)
        token = str(tokenizer.id_to_token(number))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{token}:0 $A:0", pair=f"{token}:0 $A:0 $B:1", special_tokens=[(token, number)]
        )
