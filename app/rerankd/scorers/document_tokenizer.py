"""Tokens of documents, of plain ones faster.

BERT's normalisation looks each character up in tables of Unicode, takes it apart and notes where it came from, which is
two fifths of the time that tokenizing takes. Of printable ASCII it changes the case alone, so such texts go to a
tokenizer without it.
"""

import re
from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

_NOT_PLAIN = re.compile(r"[^\t\n\r -~]")


class DocumentTokenizer:
    """The same tokens as its tokenizer's, without special ones."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._plain: Tokenizer | None = None
        normalizer = tokenizer.normalizer
        if isinstance(normalizer, BertNormalizer) and isinstance(tokenizer.pre_tokenizer, BertPreTokenizer):
            self._plain = Tokenizer.from_str(tokenizer.to_str())
            self._plain.normalizer = None
            self._lowercase: bool = normalizer.lowercase
        # Such as [SEP], which are looked for before letters become small ones.
        self._added = [str(token.content).lower() for token in tokenizer.get_added_tokens_decoder().values()]

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of every text's tokens."""
        if self._plain is None:
            return _ids(self._tokenizer, texts)
        plain = {position: text for position, text in enumerate(texts) if self._is_plain(text)}
        others = [text for position, text in enumerate(texts) if position not in plain]
        ids_of_plain = iter(_ids(self._plain, [text.lower() if self._lowercase else text for text in plain.values()]))
        ids_of_others = iter(_ids(self._tokenizer, others))
        return [next(ids_of_plain if position in plain else ids_of_others) for position in range(len(texts))]

    def _is_plain(self, text: str) -> bool:
        if _NOT_PLAIN.search(text):
            return False
        lowered = text.lower()
        return not any(token in lowered for token in self._added)


def _ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False) if texts else []
    return [encoding.ids for encoding in encodings]
