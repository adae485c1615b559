"""How many tokens a text has for a model whose tokenizer only its server knows: an estimate."""

from typing import Final

# UTF-8 bytes a token: about right for English, a little low for Chinese and for code.
BYTES_PER_TOKEN: Final = 4


def size_of(text: str) -> int:
    """In bytes of UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def tokens_of(text: str) -> int:
    """The tokens of a text, at least one unless it is empty."""
    return -(-size_of(text) // BYTES_PER_TOKEN)
