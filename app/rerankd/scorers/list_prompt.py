"""Prompts that show a language model a window of passages, each under an identifier: written, and cut to what fits."""

import re
import string
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from tokenizers import Tokenizer

from rerankd.domain import IntArray, WindowPlan
from rerankd.errors import ConfigError, InvalidRequest
from rerankd.scorers.beginnings import Part, Reach, read_parts
from rerankd.scorers.templates import fill, placeholders

T = TypeVar("T")

Identifiers = Literal["alphabetical", "numeric"]

# A passage keeps at least this many words, or the request is refused: cutting never goes on for ever.
LEAST_WORDS: Final = 4
# What has no white space for so long is several words: an address, or a script that writes none.
_LONGEST_WORD: Final = 24
_IDENTIFIER: Final = re.compile(r"\[(\d+|[A-Z])\]")


class ListTemplate(BaseModel):
    """A template file of a listwise method. `chat` holds {user} and may hold {system}, with the control tokens around
    them, those at the very beginning included; `user` holds {query} and {passages}, and may hold {count}.

    `tokenizer_beginning` puts before the prompt what the tokenizer puts before every text: for checkpoints whose own
    code tokenizes the finished chat prompt as any text, so that a first token stands there twice where both add it.
    """

    model_config = ConfigDict(extra="forbid")

    chat: str
    system: str = ""
    user: str
    passage: str = "[{identifier}] {text}\n"
    between: str = Field(default="", description="What stands between two passages.")
    identifiers: Identifiers
    passage_words: int = Field(default=300, ge=LEAST_WORDS)
    window_words: int | None = Field(default=None, ge=LEAST_WORDS, description="If given, divided among a window's.")
    keeps_lines: bool = Field(default=False, description="Whether passages keep their line breaks.")
    tokenizer_beginning: bool = False
    max_length: int | None = Field(default=None, ge=64)
    window: int = Field(default=20, ge=2, description="Unless the registry says otherwise.")
    schedule: str = Field(default="sliding", description="Unless the registry says otherwise.")

    @model_validator(mode="after")
    def _texts_have_their_places(self) -> "ListTemplate":
        for name, text, needed, allowed in (
            ("chat", self.chat, {"user"}, {"user", "system"}),
            ("user", self.user, {"query", "passages"}, {"query", "passages", "count"}),
            ("passage", self.passage, {"identifier", "text"}, {"identifier", "text"}),
        ):
            found = placeholders(text)
            if not needed <= found <= allowed:
                raise ValueError(f"{name}: it must hold {sorted(needed)} and may hold {sorted(allowed)}")
        return self

    def words_for(self, candidates: int) -> int:
        """Words that each of a window's passages may have."""
        if self.window_words is None:
            return self.passage_words
        return max(LEAST_WORDS, self.window_words // candidates)


class ScheduleOptions(BaseModel):
    """Options of the registry that scorers have which are asked about several documents at once."""

    model_config = ConfigDict(extra="forbid")

    template: str | None = Field(default=None, description="Default: the one that recognises the model's repository.")
    schedule: str | None = Field(default=None, description="What is compared with what; default: the template's.")
    settle: int = Field(
        default=10, ge=1, description="How many of the first places comparisons settle; `top_n` may ask for fewer."
    )
    rounds: int = Field(default=0, ge=0, description="Rounds of `swiss`; 0: as many as find the best.")
    both_orders: bool = Field(default=True, description="Whether comparisons of two are asked in both orders.")


class WindowOptions(ScheduleOptions):
    """Options of the registry that every listwise scorer has."""

    identifiers: Identifiers | None = Field(default=None, description="Default: the template's.")
    window: int | None = Field(
        default=None,
        ge=2,
        description="Candidates that the model reads at once; requests may ask for fewer. Default: the template's.",
    )
    stride: int | None = Field(default=None, ge=1, description="Default: half of the window.")
    depth: int = Field(default=100, ge=2, description="Candidates that are ranked at all; requests may ask for fewer.")

    @model_validator(mode="after")
    def _windows_overlap(self) -> "WindowOptions":
        if self.stride is not None and self.window is not None and self.stride >= self.window:
            raise ValueError(_no_overlap(self.window))
        return self

    def plan(self, template: ListTemplate) -> WindowPlan:
        """How candidates are put into windows, or compared.

        Raises:
            ConfigError: windows would not overlap.
        """
        window = self.window or template.window
        stride = window // 2 if self.stride is None else self.stride
        if stride >= window:
            raise ConfigError(_no_overlap(window))
        return WindowPlan(
            window=window,
            stride=stride,
            schedule=self.schedule or template.schedule,
            depth=self.depth,
            settle=self.settle,
            rounds=self.rounds,
            both_orders=self.both_orders,
        )


def _no_overlap(window: int) -> str:
    return f"stride: it must be below window = {window}, or nothing is carried upwards"


def identifier_texts(kind: Identifiers, *, count: int) -> list[str]:
    """The identifiers of a window's candidates.

    Raises:
        ConfigError: the alphabet does not have that many.
    """
    if kind == "numeric":
        return [str(number) for number in range(1, count + 1)]
    if count > len(string.ascii_uppercase):
        raise ConfigError(f"window = {count}, but there are {len(string.ascii_uppercase)} letters; use fewer")
    return list(string.ascii_uppercase[:count])


class ListPrompt:
    """Writes prompts. `escape` makes control tokens in a caller's texts harmless."""

    def __init__(self, template: ListTemplate, identifiers: Sequence[str], escape: Callable[[str], str]) -> None:
        self.template = template
        self._identifiers = identifiers
        self._escape = escape

    def clean(self, text: str) -> str:
        """One line, in which nothing reads as an identifier or a control token: else a passage could name itself."""
        text = text.strip() if self.template.keeps_lines else " ".join(text.split())
        return _IDENTIFIER.sub(r"(\1)", self._escape(text))

    def opening(self, query: str, *, count: int) -> str:
        """What all windows of `count` candidates begin with; `query` is clean."""
        return self._in_chat(self._filled(query, "\0", count=count)).split("\0", 1)[0]

    def write(self, query: str, passages: Sequence[str]) -> str:
        """The prompt; query and passages are clean."""
        return self._in_chat(self.user(query, passages))

    def user(self, query: str, passages: Sequence[str]) -> str:
        """The user's message alone; query and passages are clean."""
        lines = (
            fill(self.template.passage, {"identifier": identifier, "text": passage})
            for identifier, passage in zip(self._identifiers, passages, strict=False)
        )
        return self._filled(query, self.template.between.join(lines), count=len(passages))

    def _filled(self, query: str, passages: str, *, count: int) -> str:
        return fill(self.template.user, {"query": query, "passages": passages, "count": str(count)})

    def _in_chat(self, user: str) -> str:
        return fill(self.template.chat, {"system": self.template.system, "user": user})


def cut_words(text: str, words: int) -> str:
    """The first words of a clean text."""
    if len(text) <= words:
        return text
    left = words
    kept = []
    for word in text.split(" "):
        cost = -(-len(word) // _LONGEST_WORD) or 1
        if cost > left:
            if left and cost > 1:
                kept.append(word[: left * _LONGEST_WORD])
            break
        kept.append(word)
        left -= cost
    return " ".join(kept)


def count_words(text: str) -> int:
    """Words of a clean text, as `cut_words` counts them."""
    return sum(-(-len(word) // _LONGEST_WORD) or 1 for word in text.split(" "))


def first_words(documents: Sequence[str], words: int) -> list[Part[int]]:
    """The beginning of each document in which its first words are, and how many words it has."""
    return read_parts(
        documents,
        lambda texts: [count_words(" ".join(text.split())) for text in texts],
        enough=lambda count: count > words,
        reach=Reach.of(words),
    )


def passages_of(
    tokenizer: Tokenizer, prompt: ListPrompt, documents: Sequence[str], *, words: int, tokens: int | None
) -> tuple[list[Part[int]], list[str]]:
    """What may be read of each document: the beginning that has its first words; and that, cut to `tokens`, clean."""
    parts = first_words(documents, words)
    read = [document[: part.characters] for document, part in zip(documents, parts, strict=True)]
    return parts, [prompt.clean(text) for text in _beginnings(tokenizer, read, tokens)]


def _beginnings(tokenizer: Tokenizer, documents: Sequence[str], tokens: int | None) -> Sequence[str]:
    if tokens is None:
        return documents
    parts = read_parts(
        documents,
        lambda texts: tokenizer.encode_batch(list(texts), add_special_tokens=False),
        enough=lambda one: len(one.ids) >= 2 * tokens,
        reach=Reach.of(tokens),
    )
    return [
        document[: part.characters]
        if len(part.content.ids) <= tokens
        else document[: part.content.offsets[tokens - 1][1]]
        for document, part in zip(documents, parts, strict=True)
    ]


def dropped_words(parts: Sequence[Part[int]], kept: Sequence[str]) -> IntArray:
    """Words cut off each document, of which the prompt holds what is kept: an estimate of tokens."""
    counts = [
        max(0, part.content - count_words(text)) + part.beyond(part.content)
        for part, text in zip(parts, kept, strict=True)
    ]
    return np.array(counts, dtype=np.int64)


def fit(
    write: Callable[[Sequence[str]], T],
    passages: Sequence[str],
    *,
    length: Callable[[T], int],
    most: int,
    longest: int,
    unit: str = "tokens",
) -> tuple[T, list[str]]:
    """The longest prompt that the model reads, and what it holds of each passage: the same number of first words, at
    most `most`. `write` writes the prompt; its `length` is in `unit`s, and `longest` is the most that the model reads.

    Raises:
        InvalidRequest: even a few words of each passage do not fit.
    """

    @cache
    def written(words: int) -> tuple[T, list[str]]:
        kept = [cut_words(passage, words) for passage in passages]
        return write(kept), kept

    words = most_words(lambda words: length(written(words)[0]) <= longest, most=most)
    if words is None:
        raise InvalidRequest(
            f"the query and a few words of each of {len(passages)} passages are longer than the {longest} {unit} that "
            "this model reads: shorten the query or ask for a smaller window"
        )
    return written(words)


def most_words(fits: Callable[[int], bool], *, most: int) -> int | None:
    """The largest number of words a passage, from the least to `most`, for which a prompt fits; None: not even the
    least does. A prompt grows with this number.
    """
    if fits(most):
        return most
    low, high = LEAST_WORDS, most - 1
    if high < low or not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
