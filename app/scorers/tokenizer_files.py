"""Reads the parts of a Hugging Face model folder that a scorer needs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from app.domain import IntArray
from app.errors import ConfigError

# Tokenizer configs say "no limit" with numbers like 10**30.
_NO_LIMIT = 10**9
# What is read of a model whose files say no length, if nobody else says one.
_UNDECLARED = 512
# These count positions from behind the padding id, so two of them are never used.
_OFFSET_POSITIONS = {
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}
_ROBERTA_PAD_ID = 1


@dataclass(frozen=True, slots=True)
class TokenizerFolder:
    """What a model folder says about how its model reads texts."""

    folder: Path
    tokenizer: Tokenizer
    config: Mapping[str, Any]
    tokenizer_config: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "TokenizerFolder":
        """Read tokenizer and configuration.

        Raises:
            ConfigError: a file is missing or unusable.
        """
        config = read_json(folder / "config.json")
        tokenizer_config = read_optional_json(folder / "tokenizer_config.json")
        return cls(folder, load_tokenizer(folder), config, tokenizer_config)

    @property
    def pad_id(self) -> int:
        return pad_id_of(self.tokenizer, self.config, self.tokenizer_config)

    @property
    def longest(self) -> int:
        """Tokens that the model can read, as far as its files say."""
        return declared_length(self.config, self.tokenizer_config) or _UNDECLARED

    def length(self, stated: int | None, *, usual: int | None = None) -> int:
        """How many tokens to read: what the operator states, or else what is usual for the model.

        Raises:
            ConfigError: the operator states more than the model can read.
        """
        if declared_length(self.config, self.tokenizer_config) is None:
            return stated or usual or _UNDECLARED
        if stated is not None and stated > self.longest:
            raise ConfigError(f"max_length = {stated}, but the model in {self.folder} reads {self.longest} tokens")
        return stated or min(self.longest, usual or self.longest)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ConfigError: the file is missing or is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; is this a Hugging Face model folder?") from None
    except ValueError as error:
        raise ConfigError(f"{path} is no valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no JSON object")
    return content


def ids_of(tokenizer: Tokenizer, text: str) -> IntArray:
    """The ids of a text, without special tokens of the tokenizer's own."""
    # `encode` keeps all other threads of Python waiting, the event loop's too: milliseconds for a long prompt.
    (encoded,) = tokenizer.encode_batch_fast([text], add_special_tokens=False)
    return np.asarray(encoded.ids, dtype=np.int64)


def drops(tokenizer: Tokenizer, text: str) -> bool:
    """Whether a tokenizer leaves nothing of a text. A token for what it does not know is something."""
    return not len(ids_of(tokenizer, text))


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load `tokenizer.json` without any truncation or padding of its own.

    Raises:
        ConfigError: the file is missing or the tokenizers library cannot read it.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(
            f"no tokenizer.json in {folder}; save the model's fast tokenizer there: "
            "AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception
        raise ConfigError(f"cannot read {path}: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_optional_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a file that is not there is an empty one.

    Raises:
        ConfigError: the file is no JSON object.
    """
    return read_json(path) if path.is_file() else {}


def pad_id_of(tokenizer: Tokenizer, config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> int:
    """The id to fill rows with. The model's own word comes first: some models count positions by it."""
    stated = config.get("pad_token_id")
    if isinstance(stated, int) and stated >= 0:
        return stated
    token = tokenizer_config.get("pad_token")
    text = token.get("content") if isinstance(token, dict) else token
    known = tokenizer.token_to_id(text) if isinstance(text, str) else None
    return known if known is not None else 0


def declared_length(config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> int | None:
    """Tokens that the model can read: the smaller of what its tokenizer and its position table allow; None: no file
    says anything, as those of Gemma 3 from 4B on do not.
    """
    limits = []
    # Models that see pictures too keep what is said of their language model in a part of its own.
    positions = config.get("max_position_embeddings") or _text_config(config).get("max_position_embeddings")
    if isinstance(positions, int) and positions > 0:
        limits.append(positions - _unused_positions(config))
    declared = tokenizer_config.get("model_max_length")
    if isinstance(declared, int | float) and 0 < declared < _NO_LIMIT:
        limits.append(int(declared))
    return min(limits, default=None)


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else {}


def _unused_positions(config: Mapping[str, Any]) -> int:
    if config.get("model_type") not in _OFFSET_POSITIONS:
        return 0
    pad_id = config.get("pad_token_id")
    return (pad_id if isinstance(pad_id, int) else _ROBERTA_PAD_ID) + 1
