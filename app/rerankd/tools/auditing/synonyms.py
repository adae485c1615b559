"""Words that may stand for one another: a small table of English, or a user's own."""

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rerankd.errors import ConfigError

# fmt: off
_CLASSES: Final = (
    "big large", "small little", "begin start", "buy purchase", "help assist", "show display", "use employ",
    "need require", "get obtain", "make create", "fast quick rapid", "hard difficult", "easy simple", "whole entire",
    "wrong incorrect", "right correct", "illness disease", "doctor physician", "medicine drug", "sick ill",
    "child kid", "car automobile", "house home", "movie film", "job occupation", "answer reply", "ask inquire",
    "end finish", "cause induce", "effect impact", "method technique", "study investigation", "result outcome",
    "reduce decrease lower", "increase raise", "important significant", "common frequent", "rare uncommon",
    "dangerous hazardous", "harmful damaging", "treat cure", "prevent avert", "risk danger", "death mortality",
    "cell cells", "error mistake", "measure assess", "find discover", "growth development", "area region",
    "amount quantity", "speed velocity", "usually normally", "often frequently", "also additionally", "about regarding",
    "many numerous", "enough sufficient", "near close", "different distinct", "symptom sign", "build construct",
    "famous renowned", "country nation", "money cash", "city town", "road street", "picture image", "happen occur",
)
# fmt: on
_WORD: Final = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Synonyms:
    """By word, in lower case: the words that may stand for it, itself among them, sorted."""

    of: Mapping[str, Sequence[str]]

    @classmethod
    def read(cls, path: Path | None) -> "Synonyms":
        """A JSON object of words and lists of words, or the built-in table for None.

        Raises:
            ConfigError: the file is missing, or is no such object.
        """
        if path is None:
            return cls({word: sorted(words) for line in _CLASSES for words in [line.split()] for word in words})
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
        except ValueError as error:
            raise ConfigError(f"{path} is not JSON in UTF-8: {error}") from None
        if not isinstance(said, dict) or not all(
            isinstance(words, list) and all(isinstance(word, str) for word in words) for words in said.values()
        ):
            raise ConfigError(f"{path} must be an object whose values are lists of words")
        return cls(
            {word.lower(): sorted({word.lower(), *(one.lower() for one in words)}) for word, words in said.items()}
        )

    def replaced(self, text: str, rng: random.Random) -> str:
        """The text with another word for every word that has one."""

        def other(match: re.Match[str]) -> str:
            words = [word for word in self.choices(match[0]) if word != match[0].lower()]
            return rng.choice(words) if words else match[0]

        return _WORD.sub(other, text)

    def sampled(self, text: str, rng: random.Random) -> str:
        """The text with every word drawn from those that may stand for it, itself among them."""
        return _WORD.sub(lambda match: rng.choice(words) if (words := self.choices(match[0])) else match[0], text)

    def choices(self, word: str) -> Sequence[str]:
        return self.of.get(word.lower(), ())

    def overlaps(self, text: str) -> Iterator[float]:
        """For each word of a text that has synonyms: how much of what is drawn for it is also drawn for the synonym
        that an attacker would choose. 1 minus the total variation between the two draws, the least over synonyms.
        """
        for match in _WORD.finditer(text):
            own = set(self.choices(match[0]))
            if len(own) > 1:
                yield min(_overlap(own, set(self.choices(word)) or {word}) for word in own)


def _overlap(one: set[str], other: set[str]) -> float:
    return len(one & other) / max(len(one), len(other))
