"""How one text becomes a sequence: the special tokens before and behind it, read off the tokenizer."""

from dataclasses import dataclass
from typing import Final

import numpy as np

from rerankd.domain import IntArray
from rerankd.errors import ConfigError
from rerankd.recognition.tokenizer_settings import check_text
from rerankd.scorers.tokenizer_files import TokenizerFolder

_PROBES: Final = ("a", "What is it?", "größe 漢字 \n")


@dataclass(frozen=True, slots=True)
class TextTemplate:
    """Token ids before and behind a text."""

    head: IntArray
    tail: IntArray

    @property
    def special_tokens(self) -> int:
        return len(self.head) + len(self.tail)

    def around(self, ids: IntArray) -> IntArray:
        joined: IntArray = np.concatenate((self.head, ids, self.tail), dtype=np.int64)
        return joined


def read_text_template(read: TokenizerFolder) -> TextTemplate:
    """Read the template off the tokenizer, and check it on a few texts.

    Raises:
        ConfigError: the tokenizer puts texts in a way that this template cannot say, or another file says another one.
    """
    tokenizer = read.tokenizer
    encoded = tokenizer.encode(_PROBES[0], add_special_tokens=True)
    owners = encoded.sequence_ids
    if 0 not in owners:
        raise ConfigError("the tokenizer encodes the letter a to nothing; is tokenizer.json complete?")
    start, end = owners.index(0), len(owners) - owners[::-1].index(0)
    template = TextTemplate(
        head=np.array(encoded.ids[:start], dtype=np.int64), tail=np.array(encoded.ids[end:], dtype=np.int64)
    )
    for text in _PROBES:
        expected = tokenizer.encode(text, add_special_tokens=True)
        plain = np.asarray(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)
        if template.around(plain).tolist() != expected.ids or any(expected.type_ids):
            raise ConfigError(
                f"texts assembled by hand differ from the tokenizer's own encoding of {text!r}; this tokenizer's "
                "post-processor is not supported"
            )
    check_text(read.files, tokenizer, head=template.head.tolist(), tail=template.tail.tolist())
    return template
