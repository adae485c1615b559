"""Rubrics: named criteria by which a model grades a document, and what is kept of what it writes.

After Jin et al., "Matching Patients to Clinical Trials with Large Language Models" (TrialGPT), 2024: one grade for each
criterion, then one score. Here that is the weighted mean.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

# Of a reason: more is cut off. A cache keeps as much of each document.
_MOST_BYTES: Final = 2000
_NAME: Final = re.compile(r"\w[\w -]{0,39}")
_MARKS: Final = re.compile(r"</?(?:think|reason|answer)>|```(?:json)?")


class Criterion(BaseModel):
    """One line of a rubric."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="What the model and `explain` call it.")
    description: str = Field(min_length=1, max_length=2000, description="What the model is told.")
    weight: float = Field(default=1.0, gt=0, le=1000, allow_inf_nan=False, description="What it counts.")

    @model_validator(mode="after")
    def _fits_into_a_prompt(self) -> Self:
        if not _NAME.fullmatch(self.name):
            raise ValueError("name: at most 40 letters, digits, spaces, hyphens and underscores")
        if set("{}") & set(self.description):
            raise ValueError("description: it must not have braces, which are a template's placeholders")
        return self


def _of_different_names(criteria: tuple[Criterion, ...]) -> tuple[Criterion, ...]:
    names = [criterion.name for criterion in criteria]
    if len(set(names)) < len(names):
        raise ValueError("each criterion needs a name of its own")
    return criteria


Rubric = Annotated[tuple[Criterion, ...], Field(max_length=32), AfterValidator(_of_different_names)]


def written(criteria: Sequence[Criterion]) -> str:
    """A rubric as a prompt shows it."""
    return "\n".join(f'- "{criterion.name}": {criterion.description}' for criterion in criteria)


def find_grades(text: str, names: Sequence[str], *, start: int, end: int) -> Mapping[str, tuple[int, int]]:
    """Where in a JSON object between two places of a text each criterion's grade, an integer, stands; the last one of a
    name counts.
    """
    found = {}
    for name in names:
        grade = re.compile(rf'"{re.escape(name)}"\s*:\s*([0-9]{{1,9}})\s*[,}}]')
        for match in grade.finditer(text, start, end):
            found[name] = match.span(1)
    return found


def reason_in(text: str) -> str:
    """What a model wrote before its answer, without the marks around it, cut to a bounded size in UTF-8."""
    plain = _MARKS.sub("", text).strip().encode("utf-8", "replace")
    return plain[:_MOST_BYTES].decode("utf-8", "ignore")
