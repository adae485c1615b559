"""Groupwise grades: a language model reads a group of documents together and writes a grade for each, as JSON.

Sun et al., "GroupRank: A Groupwise Reranking Paradigm Driven by Reinforcement Learning", 2025. What becomes of the
grades of several groups is in `rerankd.pipeline.grouped`.
"""

import json
import re
from dataclasses import asdict
from typing import Any, Final, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rerankd.config.options import read_options
from rerankd.domain import FloatArray, GroupPlan
from rerankd.scorers.base import Kinds, Made, ScorerSpec
from rerankd.scorers.list_prompt import identifier_texts
from rerankd.scorers.list_writers import Writer, WrittenTemplate, WrittenWindows, answer_in, load_writer
from rerankd.scorers.rubric import reason_in
from rerankd.scorers.templates import read_prompt_template
from rerankd.tasks.sample import Sampled, Sampling

# A grade that something follows: one at the very end may be cut off.
_GRADE: Final = re.compile(r'"\[?(\w{1,4})\]*"\s*:\s*(\d{1,4}(?:\.\d{1,4})?)\s*[,}]')

T = TypeVar("T")


class GroupwiseTemplate(WrittenTemplate):
    """A template file of the method "groupwise". The model writes {"[1]": 5, ...}: a grade of 0 to `highest` for each
    passage of a group of at most `window`, and `passes` times for each document.
    """

    highest: int = Field(ge=1)
    passes: int = Field(default=2, ge=1, le=32)
    temperature: float = Field(default=0.0, ge=0, le=10)
    answer_tokens: int = 4096
    window: int = Field(default=10, ge=2, description="Unless the registry says otherwise.")


class GroupwiseOptions(BaseModel):
    """`[model.options]` of the scorer `groupwise`."""

    model_config = ConfigDict(extra="forbid")

    template: str | None = Field(default=None, description="Default: the one that recognises the model's repository.")
    group: int | None = Field(default=None, ge=2, le=100, description="Documents in a prompt; default: the template's.")
    passes: int | None = Field(
        default=None, ge=1, le=32, description="How often each document is graded; default: the template's."
    )
    temperature: float | None = Field(default=None, ge=0, le=10, description="0: greedy; default: the template's.")
    answer_tokens: int | None = Field(
        default=None, ge=1, description="The longest answer of a local model; default: the template's."
    )


class Groupwise(WrittenWindows[T]):
    def __init__(self, writer: Writer[T], template: GroupwiseTemplate) -> None:
        super().__init__(writer, template, identifier_texts(template.identifiers, count=template.window))
        self._highest = template.highest
        self.task = writer.sampling(Sampling(temperature=template.temperature))
        self.plan = GroupPlan(size=template.window, passes=template.passes)
        self.fingerprint = json.dumps(["groupwise", self.max_length, asdict(self.plan), template.model_dump()])

    @classmethod
    def load(cls, spec: ScorerSpec) -> "Groupwise[Any]":
        """Read the prompt template, and for a local model tokenizer and configuration.

        Raises:
            ConfigError: a file is missing, or no template is known for the model.
        """
        options = read_options(spec.options, GroupwiseOptions, of="scorer 'groupwise'")
        template = read_prompt_template(
            spec, scorer="groupwise", name=options.template, shapes={"groupwise": GroupwiseTemplate}
        )
        changes = options.model_dump(include={"passes", "temperature", "answer_tokens"}, exclude_none=True)
        if options.group is not None:
            changes["window"] = options.group
        template = template.model_copy(update=changes)
        return Groupwise(load_writer(spec, template, scorer="groupwise"), template)

    def by_kind(self, kinds: Kinds[Made], /) -> Made:
        return kinds.groups(self)

    def written(self, sampled: Sampled, /) -> int:
        """How many tokens the model wrote."""
        return sampled.written

    def reason(self, sampled: Sampled, /) -> str:
        """What the model wrote before its grades."""
        before, found, text = sampled.answers[0].text.rpartition("{")
        return reason_in(before if found else text)

    def grades(self, sampled: Sampled, /, *, candidates: int) -> FloatArray:
        """The grades in the last JSON object of the answer, divided by the highest; shape [candidates], NaN for those
        without one. A group's model may leave documents out, and its answer may be cut off.
        """
        place_of = {identifier: place for place, identifier in enumerate(self._identifiers[:candidates])}
        grades = np.full(candidates, np.nan, dtype=np.float32)
        for answer in sampled.answers:
            written = answer_in(self._whole(answer.text))
            for identifier, grade in _GRADE.findall(written[written.rfind("{") :] if "{" in written else ""):
                if identifier in place_of and float(grade) <= self._highest:
                    grades[place_of[identifier]] = float(grade) / self._highest
        return grades
