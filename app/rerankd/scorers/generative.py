"""Generated permutations: a language model writes "[3] > [1] > ..." and the text is read as an order.

Sun et al., "Is ChatGPT Good at Search? Investigating Large Language Models as Re-Ranking Agents", 2023 (RankGPT);
Pradeep et al., "RankZephyr", 2023. Whatever is written, what comes of it is a permutation.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final, Literal, TypeVar

import numpy as np
from pydantic import Field

from rerankd.config.options import read_options
from rerankd.domain import FloatArray, WindowPlan
from rerankd.scorers.base import Kinds, Made, ScorerSpec
from rerankd.scorers.list_prompt import WindowOptions, identifier_texts
from rerankd.scorers.list_writers import (
    Writer,
    WrittenTemplate,
    WrittenWindows,
    answer_in,
    load_writer,
)
from rerankd.scorers.templates import read_prompt_template
from rerankd.tasks.generate import Generated

_BRACKETED: Final = re.compile(r"\[\s*(\w+)\s*\]")
_BARE: Final = re.compile(r"\b(\d+|[A-Z])\b")
_AROUND_A_NAME: Final = " \n\t.,:;>()\"'*"
T = TypeVar("T")


class GenerativeTemplate(WrittenTemplate):
    """A template file of the method "generative". `answer` says whether the model writes an order or names the best
    passage only.
    """

    answer: Literal["order", "best"] = "order"


class GenerativeOptions(WindowOptions):
    """`[model.options]` of the scorer `generative`."""

    answer_tokens: int | None = Field(default=None, ge=1, description="Default: the template's.")


class Generative(WrittenWindows[T]):
    def __init__(self, writer: Writer[T], template: GenerativeTemplate, *, plan: WindowPlan) -> None:
        super().__init__(writer, template, identifier_texts(template.identifiers, count=plan.window))
        self.names_best = template.answer == "best"
        self.task = writer.generating()
        self.plan = plan
        self.fingerprint = json.dumps(["generative", self.max_length, asdict(plan), template.model_dump()])

    @classmethod
    def load(cls, spec: ScorerSpec) -> "Generative[Any]":
        """Read the prompt template, and for a local model tokenizer and configuration.

        Raises:
            ConfigError: a file is missing, or no template is known for the model.
        """
        options = read_options(spec.options, GenerativeOptions, of="scorer 'generative'")
        template = read_prompt_template(
            spec, scorer="generative", name=options.template, shapes={"generative": GenerativeTemplate}
        )
        changes = {"identifiers": options.identifiers, "answer_tokens": options.answer_tokens}
        template = template.model_copy(update={name: value for name, value in changes.items() if value is not None})
        writer = load_writer(spec, template, scorer="generative")
        return Generative(writer, template, plan=options.plan(template))

    def by_kind(self, kinds: Kinds[Made], /) -> Made:
        return kinds.lists(self)

    def interpret_window(self, result: Generated, /, *, candidates: int) -> FloatArray:
        """What was written, as scores that say its order; shape [candidates]. All are equal where it names none, or
        several where it should name the best.
        """
        text = self._whole(result.text)
        scores = np.zeros(candidates, dtype=np.float32)
        named = named_places(text, self._identifiers[:candidates])
        if self.names_best:
            if len(named) == 1:
                scores[named] = 1
        elif named:
            order = read_permutation(text, self._identifiers[:candidates])
            scores[order] = -np.arange(candidates, dtype=np.float32)
        return scores


def read_permutation(text: str, identifiers: Sequence[str]) -> list[int]:
    """Places of candidates in the order that a text says: what it names twice or wrongly is left out, what it does not
    name follows in input order.
    """
    named = named_places(text, identifiers)
    return [*named, *(place for place in range(len(identifiers)) if place not in named)]


def named_places(text: str, identifiers: Sequence[str]) -> list[int]:
    """Places of the candidates that a text names, in its order; none: it is a refusal, or noise. A thought is not an
    answer, and one without an end has no answer behind it.
    """
    place_of = {identifier: place for place, identifier in enumerate(identifiers)}
    answer = answer_in(text)
    named = dict.fromkeys(place_of[name] for name in _BRACKETED.findall(answer) if name in place_of)
    if named:
        return list(named)
    bare = dict.fromkeys(place_of[name] for name in _BARE.findall(answer) if name in place_of)
    # "I cannot rank these 4 passages" orders nothing.
    return list(bare) if len(bare) > 1 or answer.strip(_AROUND_A_NAME) in place_of else []
