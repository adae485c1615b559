"""Reads the parts of a Hugging Face model folder that a scorer needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from rerankd.domain import IntArray
from rerankd.errors import ConfigError
from rerankd.recognition.files import number_of, read_optional_json, refuse_hollow
from rerankd.recognition.kinds import ModelFiles
from rerankd.recognition.lengths import declared_length
from rerankd.recognition.tokenizer_settings import (
    apply_settings,
    content_of,
    refuse_other_code,
    refuse_other_vocabulary,
)

# What is read of a model whose files say no length, if nobody else says one.
_UNDECLARED = 512
_ANY_TEXT = "what is a probe"


@dataclass(frozen=True, slots=True)
class TokenizerFolder:
    """What a model folder says about how its model reads texts."""

    folder: Path
    tokenizer: Tokenizer
    files: ModelFiles
    pad: int | None
    truncation_side: str

    @classmethod
    def read(cls, folder: Path) -> "TokenizerFolder":
        """Read tokenizer and configuration.

        Raises:
            ConfigError: a file is missing or unusable, or two of them disagree.
        """
        files = ModelFiles.read(folder)
        refuse_other_code(files)
        tokenizer = _read_tokenizer(folder)
        truncation, padding = tokenizer.truncation or {}, tokenizer.padding or {}
        _let_be(tokenizer)
        refuse_other_vocabulary(tokenizer, files)
        apply_settings(tokenizer, files)
        return cls(
            folder=folder,
            tokenizer=tokenizer,
            files=files,
            pad=_pad_id(tokenizer, files, padding=padding),
            truncation_side=str(files.tokenizer_config.get("truncation_side") or truncation.get("direction", "right")),
        )

    @property
    def pad_id(self) -> int:
        return self.pad or 0

    @property
    def names_pad(self) -> bool:
        """Whether a file names the token that rows are filled with."""
        return self.pad is not None

    @property
    def longest(self) -> int:
        """Tokens that the model can read, as far as its files say."""
        return declared_length(self.files) or _UNDECLARED

    def length(self, stated: int | None, *, usual: int | None = None) -> int:
        """How many tokens to read: what the operator states, or else what is usual for the model.

        Raises:
            ConfigError: the operator states more than the model can read.
        """
        if declared_length(self.files) is None:
            return stated or usual or _UNDECLARED
        if stated is not None and stated > self.longest:
            raise ConfigError(f"max_length = {stated}, but the model in {self.folder} reads {self.longest} tokens")
        return stated or min(self.longest, usual or self.longest)


def ids_of(tokenizer: Tokenizer, text: str) -> IntArray:
    """The ids of a text, without special tokens of the tokenizer's own."""
    # `encode` keeps all other threads of Python waiting, the event loop's too: milliseconds for a long prompt.
    (encoded,) = tokenizer.encode_batch_fast([text], add_special_tokens=False)
    return np.asarray(encoded.ids, dtype=np.int64)


def beginning_ids(tokenizer: Tokenizer) -> IntArray:
    """What a tokenizer puts before every text.

    Raises:
        ConfigError: it puts something behind them too, where a prompt's answer is read.
    """
    whole, text = (tokenizer.encode(_ANY_TEXT, add_special_tokens=added).ids for added in (True, False))
    added = len(whole) - len(text)
    if whole[added:] != text:
        raise ConfigError("tokenizer_beginning: this tokenizer puts tokens behind texts too, where the answer is read")
    return np.array(whole[:added], dtype=np.int64)


def drops(tokenizer: Tokenizer, text: str) -> bool:
    """Whether a tokenizer leaves nothing of a text. A token for what it does not know is something."""
    return not len(ids_of(tokenizer, text))


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load `tokenizer.json` without any truncation or padding of its own.

    Raises:
        ConfigError: the file is missing or the tokenizers library cannot read it.
    """
    tokenizer = _read_tokenizer(folder)
    _let_be(tokenizer)
    return tokenizer


def _let_be(tokenizer: Tokenizer) -> None:
    """Take away what a file may say of cutting and filling up: both are done elsewhere."""
    tokenizer.no_truncation()
    tokenizer.no_padding()


def _read_tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        slow = next(
            (f" (it makes one of {one.name}, with sentencepiece and protobuf)" for one in folder.glob("*.model")), ""
        )
        raise ConfigError(
            f"no tokenizer.json in {folder}; save the model's fast tokenizer there: "
            f"AutoTokenizer.from_pretrained(...).save_pretrained(...){slow}"
        )
    refuse_hollow(path)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception
        raise ConfigError(f"cannot read {path}: {error}; download or save it again") from None


def _pad_id(tokenizer: Tokenizer, files: ModelFiles, *, padding: Mapping[str, Any]) -> int | None:
    """The id to fill rows with, None where no file names one. The model's own word comes first: some models count
    positions by it. `padding` is what tokenizer.json says, last.
    """
    stated = number_of(files.config, "pad_token_id", of=files.folder / "config.json")
    if stated is not None and stated >= 0:
        return stated
    for said in (files.tokenizer_config, read_optional_json(files.folder / "special_tokens_map.json"), padding):
        text = content_of(said.get("pad_token"))
        known = None if text is None else tokenizer.token_to_id(text)
        if known is not None:
            return int(known)
    return None
