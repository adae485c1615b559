"""Rubrics: named criteria by which a model grades a document, and what is kept of what it writes.

One grade for each criterion, then one score: their weighted mean, or with inclusion and exclusion criteria the score of
Jin et al., "Matching Patients to Clinical Trials with Large Language Models" (TrialGPT), 2024.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Final, Literal, Self

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
    weight: float = Field(default=1.0, gt=0, le=1000, allow_inf_nan=False, description="What it counts in the mean.")
    role: Literal["graded", "inclusion", "exclusion"] = Field(
        default="graded", description="Part of the mean, or a condition: one to meet, or one not to meet."
    )

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
    if len({criterion.role == "graded" for criterion in criteria}) > 1:
        raise ValueError("role: give all criteria the role inclusion or exclusion, or none")
    if any(criterion.role != "graded" and criterion.weight != 1 for criterion in criteria):
        raise ValueError("weight: conditions have none; leave it out, or leave role out")
    return criteria


Rubric = Annotated[tuple[Criterion, ...], Field(max_length=32), AfterValidator(_of_different_names)]


_TOLD: Final = {"graded": "", "inclusion": " (must be met)", "exclusion": " (must not be met)"}


def written(criteria: Sequence[Criterion]) -> str:
    """A rubric as a prompt shows it."""
    return "\n".join(f'- "{one.name}"{_TOLD[one.role]}: {one.description}' for one in criteria)


def aggregated(criteria: Sequence[Criterion], grades: Mapping[str, float]) -> float:
    """One score in [0, 1] of a grade in [0, 1] for each criterion.

    Of conditions a grade of 2/3 or more says that one is met, of 1/3 or less that it is not, and any other that this is
    unknown. TrialGPT's score is the share of inclusion criteria that are met, minus 1 if one is not met, minus 1 if an
    exclusion criterion is met; here it is moved from [-2, 1] to [0, 1].
    """
    if criteria[0].role == "graded":
        total = sum(criterion.weight for criterion in criteria)
        return sum(criterion.weight * grades[criterion.name] for criterion in criteria) / total
    inclusion, exclusion = (
        [grades[criterion.name] for criterion in criteria if criterion.role == role]
        for role in ("inclusion", "exclusion")
    )
    met = sum(map(_is_met, inclusion)) / len(inclusion) if inclusion else 1.0
    return (met - any(map(_is_not_met, inclusion)) - any(map(_is_met, exclusion)) + 2) / 3


def _is_met(grade: float) -> bool:
    return grade >= 2 / 3


def _is_not_met(grade: float) -> bool:
    return grade <= 1 / 3


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
