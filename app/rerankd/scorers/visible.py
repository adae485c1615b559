"""Decides whether a text shows anything. Pure.

A model also reads what is invisible: zero-width spaces, byte order marks, soft hyphens. Such a text would get a score.
"""

import re
import string
from typing import Final

# Only this many characters of a text are examined, here and by the models: what comes later is not read.
LOOKED_AT: Final = 2**18
# Letters and marks by category that show nothing: fillers of Hangul, the blank of Braille, joiners, Khmer's inherent
# vowels, selectors of a variant.
_UNSEEN: Final = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0 "
    + "".join(map(chr, (*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))
)
# Most texts begin with one of these.
PLAIN_STARTS: Final = frozenset(string.ascii_letters + string.digits)
_LETTER: Final = re.compile(r"[^\W_\u115f\u1160\u17b4\u17b5\u3164\uffa0]")
_FIRST_LOOK: Final = 100


def is_plain(text: str) -> bool:
    """Whether a short look finds a letter or a digit, as in nearly every text. False says nothing."""
    return text[:1] in PLAIN_STARTS or _LETTER.search(text, 0, _FIRST_LOOK) is not None


def is_visible(text: str) -> bool:
    """Whether a text shows anything."""
    return is_plain(text) or bool(visible_characters(text))


def visible_characters(text: str) -> set[str]:
    """The different characters of a text that show something: none that is a separator, a control character, a format
    character, unassigned or private.
    """
    return {character for character in set(text[:LOOKED_AT]) if character.isprintable()} - _UNSEEN
