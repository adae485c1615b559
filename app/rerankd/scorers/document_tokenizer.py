"""Tokens of documents, where BERT's WordPiece makes them with our own code, many times as fast.

BERT's normalisation looks each character up in tables of Unicode, takes it apart and notes where it came from. Words of
printable ASCII need none of that (`rerankd.scorers.wordpiece`); the tokenizer itself gets the rest.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordPiece as WordPieceModel
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

if TYPE_CHECKING:
    from rerankd.scorers.wordpiece._compiled import WordPiece


class DocumentTokenizer:
    """The same tokens as its tokenizer's, without special ones. Safe to use from threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._wordpiece = _wordpiece_of(tokenizer)

    def tokenize(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """The ids of every text's tokens, shape [tokens]."""
        return self._all(texts) if self._wordpiece is None else self._wordpiece.encode(texts, self._distinct)

    @property
    def is_fast(self) -> bool:
        """Whether most texts take no longer than to look their tokens up."""
        return self._wordpiece is not None

    def is_quick(self, texts: Sequence[str]) -> bool:
        """Whether these few texts take microseconds each."""
        return self._wordpiece is not None and self._wordpiece.is_plain(texts)

    def _distinct(self, texts: list[str]) -> list[NDArray[np.int32]]:
        """Of texts that are often equal: words, and punctuation."""
        distinct = list(dict.fromkeys(texts))
        ids_of = dict(zip(distinct, self._all(distinct), strict=True))
        return [ids_of[text] for text in texts]

    def _all(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False) if texts else []
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]


def _wordpiece_of(tokenizer: Tokenizer) -> "WordPiece | None":
    """The same tokenizer for plain words; None if it is of another kind, or was not compiled."""
    normalizer, model = tokenizer.normalizer, tokenizer.model
    is_bert = isinstance(normalizer, BertNormalizer) and isinstance(tokenizer.pre_tokenizer, BertPreTokenizer)
    if not is_bert or not isinstance(model, WordPieceModel):
        return None
    try:
        from rerankd.scorers.wordpiece._compiled import WordPiece  # noqa: PLC0415 - may be missing
    except ImportError:
        return None
    said = json.loads(tokenizer.to_str())["model"]
    added = [str(token.content) for token in tokenizer.get_added_tokens_decoder().values()]
    try:
        return WordPiece(
            said["vocab"],
            prefix=said["continuing_subword_prefix"],
            unknown=said["vocab"][said["unk_token"]],
            max_characters=said["max_input_chars_per_word"],
            lowercase=normalizer.lowercase,
            # Some are looked for in the normalised text.
            added=[*added, *map(normalizer.normalize_str, added)],
        )
    except (KeyError, ValueError):
        # No token for what is unknown, an added token of several words, or words without end.
        return None
